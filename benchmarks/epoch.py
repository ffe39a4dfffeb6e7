"""Where a second of training goes, seen from outside: by hooks, and without waiting."""

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.data import TRAIN, whole_epoch
from benchmarks.rows import PROJECT, Row, Setup, seconds
from benchmarks.steps import RATE, our_options
from helpers import dataset, models, train_test
from helpers.memory import keeping_freed_memory

GROUP = "where a second of training goes"
PARTS = ("data", "forward", "loss and backward", "optimizer", "evaluation")
SYNCS = "waits for the GPU between first and last step"
NO_WAITS = "the trace has none at all, so it doesn't tell"
TEST = 10_000  # images of CIFAR-10's; the shares are of an epoch of TRAIN and these
TRACED = train_test.Recipe(epochs=1, peak_epoch=0.9, max_lr=RATE)


class Clock:
    """Marks in time: the host's on a CPU; the device's own on CUDA, read afterwards."""

    def __init__(self, device: torch.device):
        self.cuda, self.marks = device.type == "cuda", []

    def mark(self, name: str) -> None:
        """What begins now is `name`."""
        if self.cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self.marks.append((name, moment))

    def totals(self) -> dict[str, float]:
        """Seconds in all of each name, up to the last mark."""
        if self.cuda:
            torch.cuda.synchronize()
        found = dict.fromkeys((name for name, _ in self.marks[:-1]), 0.0)
        for (name, start), (_, end) in zip(self.marks, self.marks[1:]):
            found[name] += start.elapsed_time(end) / 1e3 if self.cuda else end - start
        return found


@contextmanager
def watched(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, clock: Clock
) -> Iterator[None]:
    """Marks where loss and optimizer begin; what follows its step counts as its."""
    hooks = [
        model.register_forward_hook(lambda *_: clock.mark("loss and backward")),
        optimizer.register_step_pre_hook(lambda *_: clock.mark("optimizer")),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class WatchedLoader:
    """A loader that marks when a batch is asked for, and when it has come."""

    def __init__(self, loader, clock: Clock):
        self.loader, self.clock = loader, clock

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        self.clock.mark("data")
        for batch in self.loader:
            self.clock.mark("forward")
            yield batch
            self.clock.mark("data")


def measure(setup: Setup) -> list[Row]:
    torch.set_num_threads(setup.threads)
    device, count = setup.device, setup.batch_size * setup.steps
    # Where a test takes milliseconds, its fixed costs must not be scaled up too.
    whole = device.type == "cuda" and not setup.smoke
    tested = TEST if whole else setup.batch_size
    train, test = dataset.synthetic_cifar10(train=count, test=tested)
    if whole:
        train, count = whole_epoch(train), TRAIN  # as for the test
    loaders = dataset.make_loaders(
        train, test, batch_size=setup.batch_size, device=device
    )
    model = models.CustomResNet().to(device, memory_format=torch.channels_last)
    optimizer = train_test.make_optimizer(model, TRACED, lr=RATE)
    scheduler = train_test.make_scheduler(
        optimizer, TRACED, max_lr=RATE, steps_per_epoch=100_000
    )
    options = {**our_options(device), "scheduler": scheduler}
    # Until memory is settled; to cuDNN an epoch's partial last batch is another shape.
    first = loaders.train if whole else [next(iter(loaders.train))] * 4
    shares: dict[str, list[float]] = {part: [] for part in PARTS}
    with keeping_freed_memory(device, options["dtype"]):  # as in fit
        train_test.train_one_epoch(model, first, optimizer, **options)  # warm-up
        train_test.evaluate(model, loaders.test, device=device)
        for _ in range(setup.repeats):
            clock = Clock(device)
            loader = WatchedLoader(loaders.train, clock)
            with watched(model, optimizer, clock):
                train_test.train_one_epoch(model, loader, optimizer, **options)
            took = seconds(
                lambda: train_test.evaluate(model, loaders.test, device=device), device
            )
            found = {part: t * TRAIN / count for part, t in clock.totals().items()}
            found["evaluation"] = took * TEST / tested
            for part, times in shares.items():
                times.append(100 * found[part] / sum(found.values()))
    rows = [
        Row(group=GROUP, name=part, unit="%", values=values)
        for part, values in shares.items()
    ]
    waits = {"note": "needs a CUDA device"}
    if device.type == "cuda" or setup.smoke:
        trace = PROJECT / "build" / f"trace-{device.type}.json.gz"
        recipe = replace(TRACED, batch_size=setup.batch_size)
        try:
            seen = waits_in(trace, models.CustomResNet(), loaders, recipe, device)
            # An epoch ends with one, when its metrics are read.
            waits = {"note": NO_WAITS} if seen is None else {"values": [seen]}
        except Exception as error:  # noqa: BLE001 - the shares are worth having all the same
            waits = {"note": f"{type(error).__name__}: {error}"}
    return [*rows, Row(group=GROUP, name=SYNCS, unit="in an epoch", **waits)]


def waits_in(
    trace: Path, model, loaders, recipe: train_test.Recipe, device: torch.device
) -> int | None:
    """How often fit waited for the GPU within an epoch, by the trace that is left.

    None where the trace has no wait at all, not even the one at the epoch's end: then it
    doesn't tell.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()),
        torch.profiler.profile() as profiler,  # of all that this machine has
    ):
        train_test.fit(model, loaders, recipe, device=device)
    trace.parent.mkdir(exist_ok=True)
    profiler.export_chrome_trace(str(trace))
    # The device's own events are named after the steps too, and are later.
    events = [
        (each.name, each.time_range.start)
        for each in profiler.events()
        if each.device_type == torch.autograd.DeviceType.CPU
    ]
    return between_steps(events) if any(is_wait(name) for name, _ in events) else None


def is_wait(name: str) -> bool:
    return name.startswith("cuda") and name.endswith("Synchronize")


def between_steps(events: Sequence[tuple[str, float]]) -> int:
    """How many of the events (name, start) are waits between the first and the last step.

    The epoch's draws go to the device before the first step, and its metrics come back
    after the last one: once an epoch.
    """
    steps = [start for name, start in events if name.startswith("Optimizer.step#")]
    first, last = min(steps), max(steps)
    return sum(is_wait(name) for name, start in events if first < start < last)
