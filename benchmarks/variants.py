"""The step with what could be switched on, and whether compiling pays back.

python -m benchmarks.variants BATCH_SIZE STEPS SEARCH is a process of its own: cuDNN uses
again what it has once chosen, so its search can't be switched on in one where it was off.
"""

import gc
import os
import statistics
import subprocess
import sys
import tempfile
from unittest.mock import patch

import torch
from torch import nn

from benchmarks import fresh
from benchmarks.data import TRAIN
from benchmarks.rows import Row, Setup, compared, interleaved, median, seconds, versus
from benchmarks.steps import OURS, contender, our_epoch, random_batches
from helpers import models, train_test, utils

GROUP = "variants of the step, CustomResNet"
POOL = "ours, MaxPool2d(4) for AdaptiveMaxPool2d(1)"
BARE = "ours, without the biases that BatchNorm subtracts"
# bfloat16 gets torch's own BatchNorm, float16 cuDNN's.
HALF = "ours, float16"
COMPILED = "ours, torch.compile"
PRICE = "compiling for one size of batch"  # fit has four
PAYS = "epochs of 50,000 images until compiling has paid back"
NEVER = "never: no faster"
ALONE = "ours, in a process of its own"
SEARCHED = "ours, in its own process, cuDNN having searched"


def measure(setup: Setup) -> list[Row]:
    torch.set_num_threads(setup.threads)
    cuda = setup.device.type == "cuda"
    batches = random_batches(setup.batch_size, setup.steps, setup.device)
    pooled, bare, compiled = (models.CustomResNet() for _ in range(3))
    pooled.pool = nn.MaxPool2d(4)
    for layer in bare.modules():
        if isinstance(layer, nn.Conv2d):
            layer.bias = None
    # On CUDA also as CUDA graphs, which take the launches off the host.
    mode = "reduce-overhead" if cuda else "default"
    compiled.compile(mode=mode, dynamic=False, backend=setup.compiler)
    works = {
        OURS: our_epoch(models.CustomResNet(), batches, setup.device),
        POOL: our_epoch(pooled, batches, setup.device),
        BARE: our_epoch(bare, batches, setup.device),
        COMPILED: our_epoch(compiled, batches, setup.device),
    }
    others = []
    already = train_test.choose_dtype("auto", setup.device) == torch.float16
    if (cuda and not already) or setup.smoke:
        works[HALF] = our_epoch(models.CustomResNet(), batches, setup.device, "float16")
    else:
        note = "ours is it already" if already else "needs a CUDA device"
        others.append(Row(group=GROUP, name=HALF, unit="images/s", note=note))
    # What the libraries need for their own start is no price of compiling.
    works[OURS]()
    # What an earlier process has compiled would make this one's price look lower.
    with (
        # Inductor's processes may still be writing when it goes.
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty,
        patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=empty),
    ):
        first_pass = None
        try:
            first_pass = seconds(works[COMPILED], setup.device)
        except Exception as error:  # noqa: BLE001 - no compiler for its code, say
            del works[COMPILED]
            said = " ".join(str(error).splitlines()[:2])
            why = f"{type(error).__name__}: {said}"
            others.append(Row(group=GROUP, name=COMPILED, unit="images/s", note=why))
        values = interleaved(
            {
                name: contender(work, batches, setup, as_in_fit=True)
                for name, work in works.items()
            },
            setup.repeats,
            warm_up=False,  # each measures the second pass of two
        )
    rows = compared(GROUP, "images/s", values, against=OURS)
    if first_pass:
        speed = median(next(row for row in rows if row.name == COMPILED))
        passed = setup.batch_size * setup.steps / speed
        # In a rehearsal, where nothing is compiled, chance can make the first pass shorter.
        price = max(first_pass - passed, 0)
        others.append(Row(group=GROUP, name=PRICE, unit="s", values=[price]))
        others.append(pays(rows, price))
    del works, pooled, bare, compiled
    if cuda:  # whose memory other processes need now
        gc.collect()
        torch.cuda.empty_cache()
    return [*rows, *others, *searched(setup)]


def searched(setup: Setup) -> list[Row]:
    """What cuDNN's search for the fastest algorithm gains."""
    if setup.device.type == "cpu" and not setup.smoke:
        given = {"group": GROUP, "unit": "images/s", "note": "needs a CUDA device"}
        return [Row(name=SEARCHED, **given)]

    def child(search: int) -> float:
        numbers = map(str, (setup.batch_size, setup.steps, search))
        said = fresh.python("-m", "benchmarks.variants", *numbers, setup=setup)
        return float(said.splitlines()[-1])

    try:
        values = interleaved(
            {ALONE: lambda: child(0), SEARCHED: lambda: child(1)},
            setup.process_repeats,
            warm_up=False,
        )
    except subprocess.CalledProcessError as error:  # the rows before are worth having
        note = f"exit status {error.returncode}"
        return [Row(group=GROUP, name=SEARCHED, unit="images/s", note=note)]
    return compared(GROUP, "images/s", values, against=ALONE)


def pays(rows: list[Row], price: float) -> Row:
    """When what each epoch saves adds up to the price."""
    found = {row.name: row for row in rows}
    faster = versus(rows, found[COMPILED])
    saved = TRAIN / median(found[OURS]) * (1 - 1 / faster)
    when = {"values": [price / saved]} if saved > 0 else {"note": NEVER}
    return Row(group=GROUP, name=PAYS, unit="epochs", **when)


def main(batch_size: int, steps: int, search: int) -> None:
    """Print the images/s of our step."""
    torch.backends.cudnn.benchmark = bool(search)
    device = utils.get_device()
    batches = random_batches(batch_size, steps, device)
    work = our_epoch(models.CustomResNet(), batches, device)
    work()  # the search
    took = statistics.median(seconds(work, device) for _ in range(5))
    print(batch_size * steps / took)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
