"""The data path: images a second from uint8 in memory to augmented, normalized batches."""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks import students
from benchmarks.rows import Row, Setup, compared, interleaved, seconds
from helpers import dataset

GROUP = "data path, one core"
TORCHVISION = "torchvision, an image at a time"
ALBUMENTATIONS = "Albumentations, an image at a time"
OURS_PER_IMAGE = 'ours, augment_on="cpu"'
OURS_BATCHED = 'ours, augment_on="device", on the CPU'
OURS_ON_GPU = 'ours, augment_on="device", on the GPU'
CPU = torch.device("cpu")
TRAIN = 50_000  # images of CIFAR-10's training set


def builders(batch_size: int) -> dict[str, Callable]:
    """From a training set to each contender's loader. fresh.py starts them too."""

    def ours(augment_on: str, device: torch.device) -> Callable:
        return lambda train: (
            dataset.make_loaders(
                train,
                train.take(np.arange(1)),  # the others' loaders have no test set
                batch_size=batch_size,
                device=device,
                augment_on=augment_on,
                num_workers=0,
            ).train
        )

    return {
        ALBUMENTATIONS: lambda train: students.albumentations_loader(train, batch_size),
        TORCHVISION: lambda train: students.torchvision_loader(train, batch_size),
        OURS_PER_IMAGE: ours("cpu", CPU),
        OURS_BATCHED: ours("device", CPU),
        OURS_ON_GPU: ours("device", torch.device("cuda")),
    }


def whole_epoch(train: dataset.ImageSet) -> dataset.ImageSet:
    """As many images as an epoch has, over and over the same: drawing them takes longer."""
    return train.take(np.resize(np.arange(len(train)), TRAIN))


def measure(setup: Setup) -> list[Row]:
    train, _ = dataset.synthetic_cifar10(train=setup.images, test=1)
    torch.set_num_threads(1)
    build = builders(min(setup.batch_size, setup.images))
    if setup.device.type == "cpu":
        del build[OURS_ON_GPU]
    # A whole epoch takes these hardly longer: more images than the CPU's caches hold, and
    # on a GPU its beginning costs as much as batches do.
    fast = () if setup.smoke else (OURS_BATCHED, OURS_ON_GPU)
    loaders = {
        name: make(whole_epoch(train) if name in fast else train)
        for name, make in build.items()
    }

    def one_pass(loader) -> float:
        sizes = []

        def drain() -> None:
            sizes.extend(len(labels) for _, labels in loader)

        took = seconds(drain, setup.device)
        return sum(sizes) / took

    values = interleaved(
        {name: lambda one=loader: one_pass(one) for name, loader in loaders.items()},
        setup.repeats + 2,  # a pass takes less than a second
    )
    rows = compared(GROUP, "images/s", values, against=ALBUMENTATIONS)
    if setup.device.type == "cpu":
        row = Row(
            group=GROUP, name=OURS_ON_GPU, unit="images/s", note="needs a CUDA device"
        )
        rows.append(row)
    return rows
