"""The training step: images a second of the same network on the same batches."""

import contextlib
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks import students
from benchmarks.rows import Contenders, Row, Setup, compared, interleaved, seconds
from helpers import models, train_test
from helpers.memory import keeping_freed_memory
from helpers.optimizer import make_scaler

STUDENTS = "the usual loop, float32"
KEPT = "the usual loop, freed memory kept"
FINDER = "torch-lr-finder's range test"
OURS = "ours, as fit calls it"
RATE = 1e-4  # of all: its value costs nothing
Batches = list[tuple[Tensor, Tensor]]


def group(model: str, batch_size: int) -> str:
    return f"training step, {model}, batch {batch_size}"


def measure(setup: Setup) -> list[Row]:
    rows = []
    for name, batch_size, repeats in (
        ("CustomResNet", setup.batch_size, setup.repeats + 2),  # of a target
        ("CustomResNet", setup.small_batch, setup.repeats + 4),  # takes seconds
        ("ResNet18", setup.batch_size, setup.repeats),
    ):
        batches = random_batches(batch_size, setup.steps, setup.device)
        values = interleaved(contenders(name, batches, setup), repeats, warm_up=False)
        rows += compared(group(name, batch_size), "images/s", values, against=STUDENTS)
    return rows


def random_batches(batch_size: int, count: int, device: torch.device) -> Batches:
    """Batches on the device, so that loading them is no part of the step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (batch_size,), generator=generator)
    return [(images.to(device), labels.to(device))] * count


def contenders(name: str, batches: Batches, setup: Setup) -> Contenders:
    device = setup.device
    torch.set_num_threads(setup.threads)
    usual = students_epoch(models.MODELS[name]().to(device), batches, device)
    # On a GPU torch keeps memory for either.
    works = {STUDENTS: usual} | ({KEPT: usual} if device.type == "cpu" else {})
    works |= {
        FINDER: finder_test(models.MODELS[name]().to(device), batches, device),
        OURS: our_epoch(models.MODELS[name](), batches, device),
    }
    return {
        label: contender(work, batches, setup, as_in_fit=label in (KEPT, OURS))
        for label, work in works.items()
    }


def contender(
    work: Callable[[], object], batches: Batches, setup: Setup, *, as_in_fit: bool
) -> Callable[[], float]:
    """Images/s of `work`, one pass of the batches, the second of two in a row.

    as_in_fit: memory is kept from step to step, where fit does so.
    """
    count = sum(len(labels) for _, labels in batches)

    def measure() -> float:
        dtype = train_test.choose_dtype("auto", setup.device)
        keeping = keeping_freed_memory(setup.device, dtype)
        with keeping if as_in_fit else contextlib.nullcontext():
            work()  # the others have left caches and memory as suits them
            return count / seconds(work, setup.device)

    return measure


def students_epoch(model: nn.Module, batches: Batches, device: torch.device):
    optimizer = Adam(model.parameters(), lr=RATE)
    scheduler = OneCycleLR(optimizer, RATE, total_steps=100_000)
    return lambda: students.train_one_epoch(
        model, batches, optimizer, scheduler, device
    )


def our_options(device: torch.device, precision: str = "auto") -> dict[str, Any]:
    """What fit gives train_one_epoch on this device, anew."""
    dtype = train_test.choose_dtype(precision, device)
    return {"device": device, "dtype": dtype, "scaler": make_scaler(device, dtype)}


def our_epoch(
    model: nn.Module, batches: Batches, device: torch.device, precision: str = "auto"
):
    model.to(device, memory_format=torch.channels_last)
    recipe = train_test.Recipe()
    optimizer = train_test.make_optimizer(model, recipe, lr=RATE)
    scheduler = train_test.make_scheduler(
        optimizer, recipe, max_lr=RATE, steps_per_epoch=100_000
    )
    options = our_options(device, precision)
    return lambda: train_test.train_one_epoch(
        model, batches, optimizer, scheduler=scheduler, **options
    )


def finder_test(model: nn.Module, batches: Batches, device: torch.device):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its tqdm being experimental
        from torch_lr_finder import LRFinder, TrainDataLoaderIter

    def work() -> None:
        # A finder can't be used twice. To make one copies the weights, milliseconds.
        optimizer = Adam(model.parameters(), lr=RATE)
        finder = LRFinder(model, optimizer, nn.CrossEntropyLoss(), device=device)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            finder.range_test(
                TrainDataLoaderIter(batches),
                end_lr=2 * RATE,
                num_iter=len(batches),
                diverge_th=math.inf,
            )

    return work
