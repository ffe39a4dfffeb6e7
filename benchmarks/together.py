"""One training by one and by two processes, each with one thread or one GPU.

torchrun -m benchmarks.together BATCH_SIZE STEPS is such a training.
"""

import sys

import torch

from benchmarks import fresh
from benchmarks.rows import Row, Setup, interleaved, seconds
from benchmarks.steps import our_options
from helpers import dataset, models, train_test, utils
from helpers.memory import keeping_freed_memory

GROUP = "training by several processes"
RATE, SPEEDUP = "processes: {}", "speed of 2 over that of 1"


def measure(setup: Setup) -> list[Row]:
    """On CPUs, unless there are two GPUs; where the device is the only GPU, not at all."""
    gpus = torch.cuda.device_count() >= 2
    if setup.device.type == "cuda" and not gpus:
        return [Row(group=GROUP, name=SPEEDUP, unit="×", note="needs two GPUs")]
    steps = setup.steps if gpus else 2  # on one core each takes seconds
    environment = {"OMP_NUM_THREADS": "1"}
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    values = interleaved(
        {
            RATE.format(size): lambda size=size: torchrun(
                size, steps, setup, environment
            )
            for size in (1, 2)
        },
        setup.process_repeats,
        warm_up=False,
    )
    where = "a GPU each" if gpus else "CPU, a thread each"
    rows = [
        Row(group=GROUP, name=f"{name}, {where}", unit="images/s", values=found)
        for name, found in values.items()
    ]
    times = [two / one for one, two in zip(*values.values(), strict=True)]
    return [*rows, Row(group=GROUP, name=SPEEDUP, unit="×", values=times)]


def torchrun(size: int, steps: int, setup: Setup, environment: dict[str, str]) -> float:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    launch += ["--local-addr=127.0.0.1"]  # the host's own name may lead nowhere
    work = ["-m", "benchmarks.together", str(setup.batch_size), str(steps)]
    said = fresh.python(*launch, *work, setup=setup, **environment)
    return float(said.splitlines()[-1])


def main(batch_size: int, steps: int) -> None:
    with train_test.connected() as processes:
        device = utils.get_device()
        sets = dataset.synthetic_cifar10(train=batch_size * steps, test=batch_size)
        # The images to test on are the warm-up's.
        train, warm_up = (
            dataset.make_loaders(
                images,
                images,
                batch_size=batch_size,
                device=device,
                augment_on="device",
                share=processes,
            ).train
            for images in sets
        )
        utils.set_seed(0)
        model = models.CustomResNet().to(device, memory_format=torch.channels_last)
        model = processes.wrap(model, device)
        optimizer = train_test.make_optimizer(model, train_test.Recipe(), lr=1e-4)
        options = our_options(device)
        with keeping_freed_memory(device, options["dtype"]):  # as in fit
            train_test.train_one_epoch(model, warm_up, optimizer, **options)
            took = seconds(
                lambda: train_test.train_one_epoch(model, train, optimizer, **options),
                device,
            )
        if processes.first:
            print(batch_size * steps / took)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
