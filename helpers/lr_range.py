"""The learning-rate range test and the rule that reads it; train_test.lr_range_test runs it.

The test is Leslie Smith's ("Cyclical Learning Rates for Training Neural Networks", 2015):
train for some steps while the learning rate grows exponentially, and watch the loss.
"""

import contextlib
import copy
import io
import itertools
import math
import random
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from helpers.preflight import pair

START_LR, END_LR = 1e-5, 1.0  # from where nothing happens to where nothing works
DIVERGED = 4.0  # a loss this many times a test's lowest ends that test
CLIMB = 0.25  # of the valley's depth, from the first loss to the lowest
SAFETY = 3.0  # half a decade: a cycle spends many steps near its peak, a test only one


@dataclass(frozen=True)
class LRRangeTest:
    """What the range tests saw, and the learning rate chosen from it.

    learning_rates: (S,), one a step. losses: a list a seed, nats per example, shorter
    where that test was ended. smoothed: the same over neighbouring steps. median: over
    the tests, up to the end of the shortest, the curve that the rule reads; rim: the loss
    at which it counts as having left the valley. divergence_lr: where it does, None if it
    doesn't.
    """

    learning_rates: list[float]
    losses: list[list[float]]
    smoothed: list[list[float]]
    median: list[float]
    rim: float
    max_lr: float
    divergence_lr: float | None


def run_range_test(
    model: nn.Module,
    loader,
    *,
    device: torch.device,
    dtype: torch.dtype,
    make_optimizer: Callable[[nn.Module, float], Optimizer],
    label_smoothing: float,
    steps: int,
    seeds: int,
    bar: Callable[[Iterable, str], Iterable],
) -> LRRangeTest:
    """Range tests of `steps` steps, each beginning with another epoch.

    make_optimizer: from a model and its first learning rate. bar: shows how far a test of
    that name is. Works on copies, so that the model is as before, and so are the random
    generators and the loader's epoch.
    """
    if not len(loader):
        raise ValueError("the loader has no batch; give it at least one")
    # Only a loader that tells its epoch can be given it back.
    told = hasattr(loader, "set_epoch")
    epoch = getattr(loader, "epoch", None) if told else None
    losses = []
    try:
        for seed in range(seeds):
            with untouched_generators(device):
                torch.manual_seed(seed)
                if epoch is not None:
                    loader.set_epoch(seed)
                tried = copy.deepcopy(model).to(
                    device, memory_format=torch.channels_last
                )
                rates, one = sweep(
                    tried.train(),
                    loader,
                    make_optimizer(tried, START_LR),
                    nn.CrossEntropyLoss(label_smoothing=label_smoothing),
                    device=device,
                    dtype=dtype,
                    steps=steps,
                    counted=bar(range(steps), f"range test {seed + 1} of {seeds}"),
                )
            losses.append(one)
    finally:
        if epoch is not None:
            loader.set_epoch(epoch)
    return choose_max_lr(rates, losses)


@contextlib.contextmanager
def untouched_generators(device: torch.device) -> Iterator[None]:
    """Afterwards Python's, NumPy's and torch's generators are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def sweep(
    model: nn.Module,
    loader,
    optimizer: Optimizer,
    criterion: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    steps: int,
    counted: Iterable[int],
) -> tuple[list[float], list[float]]:
    """One range test with torch-lr-finder: all learning rates, and the losses it got to.

    counted: the numbers of its steps, for it to go through.
    """
    with warnings.catch_warnings():
        # Its tqdm import warns of being experimental, and of missing widgets.
        warnings.simplefilter("ignore")
        try:
            from torch_lr_finder import LRFinder, TrainDataLoaderIter, lr_finder
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error.name} is not installed; pip install torch-lr-finder, or give "
                "max_lr"
            ) from error

    class Pairs(TrainDataLoaderIter):
        def inputs_labels_from_batch(self, batch):
            return pair(batch)

    # It prints where we return, and draws a bar that can't be turned off.
    quiet = patch.object(lr_finder, "tqdm", lambda _: counted)
    with quiet, contextlib.redirect_stdout(io.StringIO()):
        finder = LRFinder(
            model,
            optimizer,
            criterion,
            device=device,
            amp_backend="torch",
            amp_config={
                "device_type": device.type,
                "dtype": dtype,
                "enabled": dtype != torch.float32,
            },
            grad_scaler=torch.amp.GradScaler(
                device.type, enabled=dtype == torch.float16
            ),
        )
        finder.range_test(
            Pairs(loader),
            end_lr=END_LR,
            num_iter=steps,
            smooth_f=0,
            diverge_th=DIVERGED,
        )
    ratio = (END_LR / START_LR) ** (1 / (steps - 1))
    return [START_LR * ratio**step for step in range(steps)], finder.history["loss"]


def choose_max_lr(
    learning_rates: Sequence[float], losses: Sequence[Sequence[float]]
) -> LRRangeTest:
    """Read the peak learning rate off range tests: a third of where they diverge.

    losses: a list a test, nats per example, one for each of the (S,) learning_rates up to
    where that test was ended. Each test's finite losses are averaged over neighbouring
    steps, then the median over the tests is taken: a curve with a valley. It diverges
    where, beyond the bottom, it has climbed by a quarter of the valley's depth, or where
    a test was ended or its loss is no longer finite. A curve that does neither counts as
    diverging at the end of the range.

    Raises ValueError where the loss never falls, or is not finite from the start.
    """
    smoothed = [smooth(finite(one), len(learning_rates) // 20) for one in losses]
    reached = min(len(one) for one in smoothed)
    curve = [statistics.median(step) for step in zip(*smoothed, strict=False)]
    if not curve:
        raise ValueError(
            "the loss is not finite in the first step of a range test; look for what is "
            "not finite in images or model"
        )
    bottom = min(curve)
    if bottom >= curve[0]:
        raise ValueError(
            f"the loss never fell between learning rates {learning_rates[0]:.0e} and "
            f"{learning_rates[-1]:.0e}; give lr_test_steps more steps, or max_lr"
        )
    rim = bottom + CLIMB * (curve[0] - bottom)
    beyond = range(curve.index(bottom), reached)
    step = next((step for step in beyond if curve[step] > rim), reached)
    diverged = step < len(learning_rates)
    edge = learning_rates[step] if diverged else learning_rates[-1]
    return LRRangeTest(
        learning_rates=list(learning_rates),
        losses=[list(one) for one in losses],
        smoothed=smoothed,
        median=curve,
        rim=rim,
        max_lr=edge / SAFETY,
        divergence_lr=edge if diverged else None,
    )


def finite(losses: Sequence[float]) -> list[float]:
    """The losses up to the first that is NaN or infinite."""
    return list(itertools.takewhile(math.isfinite, losses))


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Means of each value and up to `reach` neighbours on either side; no lag."""
    around = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [statistics.fmean(neighbours) for neighbours in around]
