"""What needs a fresh process: seconds to the first batch, peak memory, import times.

python -m benchmarks.fresh CONTENDER DATA BATCH_SIZE STEPS is such a process.
"""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch

from benchmarks import data
from benchmarks.rows import PROJECT, Row, Setup, compared, interleaved
from helpers import dataset

COLD = "from process start to the first batch"
MEMORY = "peak memory of training"
IMPORTS = "imports"
NBVAL, CELLS = "the notebook's smoke test", "all cells with nbval, profile smoke"

TIME_IMPORTS = """
import json, time
def took(name):
    start = time.perf_counter(); __import__(name)
    return time.perf_counter() - start
print(json.dumps([took(name) for name in ("helpers", "torch", "helpers.models")]))
"""


def python(*arguments: str, setup: Setup, **environment: str) -> str:
    """What a fresh Python prints; its messages go where ours do."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": str(setup.threads), **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def child(contender: str, steps: int, setup: Setup) -> dict[str, float]:
    """first_batch: seconds. peak: MB. loading: MB by which loading raised the peak."""
    start = time.time()
    said = python(
        "-m",
        "benchmarks.fresh",
        contender,
        setup.data,
        str(setup.batch_size),
        str(steps),
        setup=setup,
    )
    found = json.loads(said.splitlines()[-1])
    return {**found, "first_batch": found["first_batch"] - start}


def measure(setup: Setup) -> list[Row]:
    build = data.builders(setup.batch_size)
    if setup.device.type == "cpu":
        del build[data.OURS_ON_GPU]
    values = interleaved(
        {
            name: lambda name=name: child(name, 0, setup)["first_batch"]
            for name in build
        },
        setup.process_repeats,
        warm_up=False,
    )
    rows = compared(COLD, "s", values, against=data.ALBUMENTATIONS)
    return [*rows, *memory(setup), *imports(setup), nbval(setup)]


def memory(setup: Setup) -> list[Row]:
    """Of the usual loop, and of ours with the defaults of make_loaders.

    Both load with Albumentations on a CPU, which itself takes 70 MB.
    """
    cuda = setup.device.type == "cuda"
    ours = data.OURS_ON_GPU if cuda else data.OURS_PER_IMAGE
    what = "torch.cuda.max_memory_allocated" if cuda else "resident memory"
    contenders = {
        f"the usual loop, {what}": data.ALBUMENTATIONS,
        f"ours, {what}": ours,
    }
    loading: list[float] = []

    def peak(contender: str) -> float:
        found = child(contender, 4, setup)
        if contender == ours:
            loading.append(found["loading"])
        return found["peak"]

    values = interleaved(
        {name: lambda one=one: peak(one) for name, one in contenders.items()},
        setup.process_repeats,
        warm_up=False,
    )
    names = list(contenders)
    loading_row = Row(
        group=MEMORY,
        name="ours, what reading the images adds",
        unit="MB",
        values=loading,
    )
    return [*compared(MEMORY, "MB", values, against=names[0]), loading_row]


def imports(setup: Setup) -> list[Row]:
    found = [
        json.loads(python("-c", TIME_IMPORTS, setup=setup))
        for _ in range(setup.process_repeats)
    ]
    names = ("helpers", "torch", "helpers.models, after torch")
    return [
        Row(
            group=IMPORTS,
            name=name,
            unit="ms",
            values=[1e3 * value for value in values],
        )
        for name, values in zip(names, zip(*found, strict=True), strict=True)
    ]


def nbval(setup: Setup) -> Row:
    if setup.smoke:
        return Row(
            group=NBVAL, name=CELLS, unit="s", note="takes longer than a rehearsal"
        )
    start = time.perf_counter()
    try:
        python("-m", "pytest", "-q", "S10.ipynb", setup=setup, S10_PROFILE="smoke")
    except subprocess.CalledProcessError as error:  # the rows before are worth having
        print(error.stdout)
        return Row(group=NBVAL, name=CELLS, unit="s", note="it failed")
    return Row(group=NBVAL, name=CELLS, unit="s", values=[time.perf_counter() - start])


# --------------------------------------------------------------------------------------
# In the fresh process
# --------------------------------------------------------------------------------------


def peak_resident() -> float:
    """MB that this process has had in memory at most."""
    if sys.platform == "linux":
        # ru_maxrss would begin with the memory of the process that started this one.
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)[1]) / 1024
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def main(contender: str, source: str, batch_size: int, steps: int) -> None:
    before = peak_resident()
    if source == "synthetic":
        # Only the size matters here, and drawing 50,000 images takes a while.
        train, _ = dataset.synthetic_cifar10(train=batch_size * max(steps, 1), test=1)
    else:
        train, _ = dataset.load_cifar10(source, download=False)
    after = peak_resident()
    loader = data.builders(batch_size)[contender](train)
    batches = islice(loader, max(steps, 1))
    first = next(batches)
    if torch.cuda.is_available():  # where all need them, and pay for CUDA's own start
        first = tuple(part.cuda() for part in first)
        torch.cuda.synchronize()
    found = {"first_batch": time.time(), "loading": after - before}
    if steps:  # its imports are no part of the time above
        from benchmarks.steps import our_epoch, students_epoch
        from helpers import models, train_test, utils
        from helpers.memory import keeping_freed_memory

        ours = contender in (data.OURS_PER_IMAGE, data.OURS_BATCHED, data.OURS_ON_GPU)
        device = utils.get_device()
        epoch = our_epoch if ours else students_epoch
        model = models.CustomResNet().to(device)
        dtype = train_test.choose_dtype("auto", device)
        with keeping_freed_memory(device, dtype) if ours else nullcontext():
            epoch(model, [first, *batches], device)()
        found["peak"] = (
            torch.cuda.max_memory_allocated() / 1024**2
            if device.type == "cuda"
            else peak_resident()
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
