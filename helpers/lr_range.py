"""The learning-rate range test and the rule that reads it.

Train for some steps while the learning rate grows, and watch where that ends: the idea is
Leslie Smith's ("Cyclical Learning Rates for Training Neural Networks", 2015), who lets the
rate grow linearly and plots accuracy. To let it grow exponentially, and to watch the loss,
is fastai's variant, which torch-lr-finder has.
"""

import io
import itertools
import math
import random
import statistics
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from helpers.copies import copy_of, to_channels_last, uncompiled
from helpers.memory import explaining_memory, keeping_freed_memory
from helpers.optimizer import (
    choose_dtype,
    make_optimizer,
    make_scaler,
    require_finite_gradients,
)
from helpers.optional import optional
from helpers.preflight import (
    as_pair,
    require_gradients,
    require_kinds,
    require_model,
    require_outputs,
)
from helpers.processes import Processes
from helpers.progress import step_bar
from helpers.recipe import Recipe

START_LR, END_LR = 1e-5, 1.0  # from where nothing happens to where nothing works
DIVERGED = 4.0  # a loss above the first and this many times the lowest ends a test
CLIMB = 0.25  # of the valley's depth, from the first loss to the lowest
SAFETY = 3.0  # half a decade: a cycle spends many steps near its peak, a test only one


@dataclass(frozen=True)
class LRRangeTest:
    """What the range tests saw, and the learning rate chosen from it.

    learning_rates: (S,), one per step.
    losses: a list for each test, nats per example (of smoothed labels, if they were
        smoothed), shorter where that test was ended.
    smoothed: their means over neighbouring steps, up to the first that isn't finite.
    median: of smoothed over the tests, up to the end of the shortest: a fall and a rise.
    rim: a loss above this has diverged: the lowest plus a quarter of the fall.
    max_lr: the choice: a third of divergence_lr, or of the last rate where that is None.
    divergence_lr: where the median has risen past rim or a test was ended; None if neither.
    """

    learning_rates: list[float]
    losses: list[list[float]]
    smoothed: list[list[float]]
    median: list[float]
    rim: float
    max_lr: float
    divergence_lr: float | None


def lr_range_test(
    model: nn.Module, loader, recipe: Recipe, *, device: torch.device | str
) -> LRRangeTest:
    """Find the peak learning rate for `model` on `loader`'s batches, leaving no trace.

    loader: an iterable with a length, of (images (B, C, H, W), labels (B,)).
    recipe: gives the number of tests, their steps and all that decides a step of `fit`.

    The test is fastai's variant of Smith's (2015), with a rate that grows exponentially and
    an eye on the loss; the rule that reads it is this project's (`choose_max_lr`).
    Model, global random generators and the loader's epoch are afterwards as they were (not
    a DataLoader's own generator and persistent_workers). Of several processes the first
    runs the test, on whole batches, and tells the others.

    Raises ValueError where the loss falls no more than it scatters, as on a model that was
    trained before, or is not finite from the start, for a loader without batches, for a
    model that doesn't fit the recipe or the batches, for a loss without a gradient, within
    torch.autocast, and for a device that `choose_dtype` refuses, TypeError for a model that
    gives no tensor or can't be copied, a loader without a length and arguments of other
    kinds, NonFiniteLoss where float16 skips the steps, ModuleNotFoundError without
    torch-lr-finder, and MemoryError with a batch size that would fit.
    """
    require_kinds(model, (loader, loader), recipe)
    if not len(loader):
        raise ValueError("the loader has no batch; give it at least one")
    dtype = choose_dtype(recipe.precision, device)  # raises for a device that won't do
    device = torch.device(device)
    if Processes.of(loader).first:
        # A batch may draw from any generator.
        with borrowed(loader), untouched_generators(device):
            require_model(model, (loader, loader), recipe, device=device, dtype=dtype)
    return run_lr_range_test(model, loader, recipe, device=device, dtype=dtype)


def run_lr_range_test(
    model: nn.Module,
    loader,
    recipe: Recipe,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> LRRangeTest:
    """The range test of a model that fits."""
    processes, found = Processes.of(loader), None
    if processes.first:
        with (
            borrowed(loader),
            explaining_memory(uncompiled(model), loader, dtype, device),
            keeping_freed_memory(device, dtype),
        ):
            rates = np.geomspace(START_LR, END_LR, recipe.lr_test_steps).tolist()
            losses = [
                range_test(model, loader, recipe, seed=seed, device=device, dtype=dtype)
                for seed in range(recipe.lr_test_seeds)
            ]
            found = choose_max_lr(rates, losses)
    return processes.broadcast(found)


@contextmanager
def borrowed(loader) -> Iterator[None]:
    """Within, the loader gives whole batches, not a share; then it is as it was."""
    share, epoch = getattr(loader, "share", None), told_epoch(loader)
    if share:
        loader.share = (0, 1)
    try:
        yield
    finally:
        if share:
            loader.share = share
        if epoch is not None:
            loader.set_epoch(epoch)


def told_epoch(loader) -> int | None:
    """The loader's next epoch, if it tells that and can be set to one."""
    return getattr(loader, "epoch", None) if hasattr(loader, "set_epoch") else None


def range_test(
    model: nn.Module,
    loader,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[float]:
    """The losses of one test, of a copy of the model and on the epoch `seed`."""
    with untouched_generators(device):
        torch.manual_seed(seed)
        if told_epoch(loader) is not None:
            loader.set_epoch(seed)
        # A wrapper's copy would be compiled anew in each test.
        tried = copy_of(uncompiled(model))
        to_channels_last(tried, device)
        name = f"range test {seed + 1} of {recipe.lr_test_seeds}"
        return sweep(tried, loader, recipe, device=device, dtype=dtype, name=name)


@contextmanager
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
    recipe: Recipe,
    *,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
) -> list[float]:
    """The losses of training `model` at rising rates, until it diverges."""
    with warnings.catch_warnings():
        # Its tqdm import warns of being experimental, and of missing widgets.
        warnings.simplefilter("ignore")
        with optional("torch-lr-finder", ", or give max_lr"):
            from torch_lr_finder import LRFinder, TrainDataLoaderIter, lr_finder

    class Pairs(TrainDataLoaderIter):
        def inputs_labels_from_batch(self, batch):
            return as_pair(batch)

    class Loss(nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            require_outputs(labels, logits)
            loss = super().forward(logits.float(), labels)  # as train_one_epoch does
            require_gradients(loss)
            return loss

    scaler = make_scaler(device, dtype)
    # Made before stdout is redirected to where nobody watches.
    bar = step_bar(range(recipe.lr_test_steps), name)

    def until_diverged(_: range) -> Iterator[int]:
        for step in bar:
            yield step
            losses = finder.history["loss"]
            # Where losses get near 0, one batch's may be many times another's. NaN ends it.
            if not losses[-1] <= max(losses[0], DIVERGED * min(losses)):
                return

    # It prints where we return, and draws a bar that can't be turned off.
    quiet = patch.object(lr_finder, "tqdm", until_diverged)
    with quiet, redirect_stdout(io.StringIO()):
        finder = LRFinder(
            model,
            make_optimizer(model, recipe, lr=START_LR),
            Loss(label_smoothing=recipe.label_smoothing),
            device=device,
            amp_backend="torch",
            amp_config={
                "device_type": device.type,
                "dtype": dtype,
                "enabled": dtype != torch.float32,
            },
            grad_scaler=scaler,
        )
        finder.range_test(
            Pairs(loader),
            end_lr=END_LR,
            num_iter=recipe.lr_test_steps,
            smooth_f=0,
            diverge_th=math.inf,  # until_diverged tells
        )
    require_finite_gradients(scaler, "the range test")
    return finder.history["loss"]


def choose_max_lr(
    learning_rates: Sequence[float], losses: Sequence[Sequence[float]]
) -> LRRangeTest:
    """Read the peak learning rate off range tests: a third of where they diverge.

    losses: a list per test, nats per example, one for each of the (S,) learning_rates up to
    where that test was ended. Each test's finite losses are averaged over neighbouring
    steps, then the median over the tests is taken: a curve with a valley. It diverges
    where, beyond the bottom, it has climbed by a quarter of the valley's depth, or where
    a test was ended or its loss is no longer finite. A curve that does neither counts as
    diverging at the end of the range, with a warning.

    Raises ValueError where the loss falls by no more than twice its scatter, the median
    distance of a loss to its neighbours' mean, or is not finite from the start.
    """
    # Up to the first that is NaN or infinite.
    runs = [list(itertools.takewhile(math.isfinite, one)) for one in losses]
    reach = len(learning_rates) // 20
    smoothed = [smooth(one, reach) for one in runs]
    curve = [statistics.median(step) for step in zip(*smoothed, strict=False)]
    if not curve:
        raise ValueError(
            "the loss is not finite in the first step of a range test; look for what is "
            "not finite in images or model"
        )
    bottom = min(curve)
    falling = curve.index(bottom) + 1  # beyond, it explodes
    scatter = statistics.median(
        abs(loss - mean)
        for one in runs
        for loss, mean in zip(one[:falling], smooth(one, max(1, reach)))
    )
    if curve[0] - bottom <= 2 * scatter:
        raise ValueError(
            f"the loss didn't fall by more than twice its scatter, {scatter:.2g} (first "
            f"{curve[0]:.3g}, lowest {bottom:.3g}), between learning rates "
            f"{learning_rates[0]:.0e} and {learning_rates[-1]:.0e}; make the model anew if "
            "it has been trained before, or give lr_test_steps more steps, or max_lr"
        )
    rim = bottom + CLIMB * (curve[0] - bottom)
    beyond = range(falling - 1, len(curve))
    step = next((step for step in beyond if curve[step] > rim), len(curve))
    diverged = step < len(learning_rates)
    edge = learning_rates[step] if diverged else learning_rates[-1]
    if not diverged:
        warnings.warn(
            f"the range test saw no divergence up to a learning rate of {edge:.2g}, and its "
            "max_lr, a third of that, may be far too high; give it more steps "
            "(lr_test_steps) or tests (lr_test_seeds), or give max_lr",
            stacklevel=4,
        )
    return LRRangeTest(
        learning_rates=list(learning_rates),
        losses=[list(one) for one in losses],
        smoothed=smoothed,
        median=curve,
        rim=rim,
        max_lr=edge / SAFETY,
        divergence_lr=edge if diverged else None,
    )


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Means of each value and up to `reach` neighbours on either side; no lag."""
    around = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [statistics.fmean(neighbours) for neighbours in around]
