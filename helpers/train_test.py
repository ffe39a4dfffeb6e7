"""From batches to metrics: one epoch, a whole training; the recipe's parts lie below it."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from helpers import preflight
from helpers.checkpoint import (
    drop_previous,
    kept_checkpoints,
    require_free,
    require_readable,
    require_writable,
    save_checkpoint,
)
from helpers.copies import to_channels_last, uncompiled
from helpers.files import place_of
from helpers.history import Epoch, History, Metrics
from helpers.lr_range import LRRangeTest, lr_range_test, run_lr_range_test
from helpers.memory import (
    explaining_evaluation_memory,
    explaining_memory,
    keeping_freed_memory,
)
from helpers.optimizer import (
    NonFiniteLoss,
    autocast,
    choose_dtype,
    make_optimizer,
    make_scaler,
    make_scheduler,
    planned_learning_rates,
    require_finite_gradients,
)
from helpers.processes import Processes, connected
from helpers.progress import step_bar
from helpers.recipe import PROFILES, RECIPES, Recipe
from helpers.resume import (
    load_checkpoint,
    plan_of,
    read_history,
    require_same_everywhere,
    tell_where_it_goes_on,
)

__all__ = [
    "PROFILES",
    "RECIPES",
    "Epoch",
    "History",
    "LRRangeTest",
    "Metrics",
    "NonFiniteLoss",
    "Predictions",
    "Recipe",
    "choose_dtype",
    "connected",
    "evaluate",
    "fit",
    "lr_range_test",
    "make_optimizer",
    "make_scheduler",
    "planned_learning_rates",
    "predict",
    "read_history",
    "train_one_epoch",
]


def train_one_epoch(
    model: nn.Module,
    loader,
    optimizer: Optimizer,
    *,
    device: torch.device | str,
    scheduler: LRScheduler | None = None,
    scaler: torch.amp.GradScaler | None = None,
    dtype: torch.dtype = torch.float32,
    label_smoothing: float = 0,
    epoch: int = 1,
    on_step: Callable[[int, float], None] = lambda images, learning_rate: None,
) -> Metrics:
    """One pass over `loader`; the metrics are of the batches as they were trained on.

    model: on `device` already; all of it is put in training mode, and left in it.
    loader: an iterable with a length, of (images (B, C, H, W), integers (B,)). Where each
        process has one with its share of every batch, and its `share` tells so, the metrics
        are of all shares, and the model must be in DistributedDataParallel, which averages
        gradients.
    scheduler: stepped after each batch; step one that counts epochs yourself.
    scaler: needed for float16, the same one in every epoch.
    dtype: what autocast computes in; float32 turns it off.
    label_smoothing: see Recipe.
    epoch: its number from 1, for the progress bar and errors.
    on_step: called after each step with the number of images in the whole batch, all
        processes' together, and the learning rate.

    Raises NonFiniteLoss; ValueError for a loader whose length is wrong or whose batches
    are no such pairs, a model that can't take them or doesn't give (B, classes), a label
    on the CPU for which there is no output, a loss without a gradient, an optimizer of
    another model, a scheduler of another optimizer, and within torch.autocast; TypeError
    for a loader without a length, a model that gives no tensor and ReduceLROnPlateau. Warns
    where a layer was replaced since the optimizer was made.
    """
    device = torch.device(device)
    preflight.require_no_autocast(device)
    preflight.require_optimizing(optimizer, model, scheduler)
    if dtype == torch.float16 and scaler is None:
        warnings.warn(
            "in float16 small gradients vanish without a scaler; give all epochs one "
            f'scaler=torch.amp.GradScaler("{device.type}")',
            stacklevel=2,
        )
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    processes = Processes.of(loader)
    processes.warn_unless_averaging(model)
    batch_sizes = getattr(loader, "batch_sizes", None)
    model.train()
    steps = preflight.number_of_batches(loader)
    losses, rates, sizes = [], [], []
    correct = torch.zeros((), dtype=torch.int64, device=device)
    bar = step_bar(loader, f"epoch {epoch}", processes.first)
    for step, batch in counted(steps, bar):
        images, labels = to_device(batch, device)
        optimizer.zero_grad()  # before the forward pass, where memory is scarcest
        with autocast(device, dtype):
            logits = preflight.logits_of(model, images)
            # A GPU would say so steps later, and be of no use from then on.
            if batch[1].device.type == "cpu":
                preflight.require_outputs(batch[1], logits)
            # CUDA's autocast would leave its logarithms in 16 bits, a CPU's wouldn't.
            loss = F.cross_entropy(
                logits.float(), labels, label_smoothing=label_smoothing
            )
        preflight.require_gradients(loss)
        # Gradients are averaged over the processes: each counts by its share of the batch.
        equal = processes.size * len(labels)  # unless the loader tells better
        whole = batch_sizes[step - 1] if batch_sizes else equal
        scaler.scale(loss * (equal / whole)).backward()
        # A number already, unless an optimizer of somebody's own holds a tensor.
        rates.append(float(optimizer.param_groups[0]["lr"]))
        scaler.step(optimizer)
        scaler.update()
        if scheduler:
            scheduler.step()
        # Kept on the device: reading a number there would wait for all that is queued.
        losses.append(loss.detach())
        correct += (logits.detach().argmax(1) == labels).sum()
        sizes.append(len(labels))
        on_step(whole, rates[-1])
        if device.type == "cpu":  # where reading it costs nothing
            require_finite(losses[-1:], rates[-1:], epoch, step)
    require_finite(losses, rates, epoch, 1)
    require_finite_gradients(scaler, f"epoch {epoch}")
    weights = torch.tensor(sizes, dtype=torch.float64, device=device)
    total = (torch.stack(losses).double() * weights).sum()
    sums = torch.stack([total, correct.double(), weights.sum()])
    total, right, count = processes.all_reduce(sums).tolist()
    return Metrics(total / count, right / count)


def counted(steps: int, loader: Iterable) -> Iterator[tuple[int, Any]]:
    """Each batch with its number, from 1.

    Raises ValueError where they aren't as many as the loader says, or none.
    """
    given = 0
    for given, batch in enumerate(loader, start=1):
        if given > steps:
            break
        yield given, batch
    if given != steps or not steps:
        raise ValueError(
            f"the training loader says it has {steps} batches and gave "
            f"{'more' if given > steps else given}; its __len__ must be the number of its "
            "batches, 1 or more"
        )


def to_device(batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images, channels last, and labels on the device."""
    images, labels = preflight.as_pair(batch)
    # Elsewhere a batch's memory may be used again before the copy is complete.
    cuda = device.type == "cuda"
    images = images.to(device, non_blocking=cuda, memory_format=torch.channels_last)
    return images, labels.to(device, non_blocking=cuda)


def require_finite(
    losses: list[Tensor], rates: list[float], epoch: int, first_step: int
) -> None:
    finite = torch.stack(losses).isfinite()
    if not finite.all():
        at = int((~finite).int().argmax())
        step = first_step + at
        remedy = (
            "look for what is not finite in images or model"
            if epoch == step == 1  # which no rate can have caused
            else "train with a lower max_lr, or look for what is not finite in the images"
        )
        raise NonFiniteLoss(
            f"the loss is {float(losses[at])} in epoch {epoch}, step {step}, at learning "
            f"rate {rates[at]:.2e}; {remedy}, and make the model anew, as by now it may "
            "hold NaN"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards for each layer the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Predictions(NamedTuple):
    """logits: float32 (N, classes). labels: int64 (N,). Both in the loader's order."""

    logits: Tensor
    labels: Tensor

    @property
    def answers(self) -> Tensor:
        """int64 (N,), the class with the largest logit."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """float32 (N, classes), each row with a sum of 1."""
        return self.logits.softmax(1)

    @property
    def metrics(self) -> Metrics:
        """Loss and accuracy over all N; ValueError for a label without a logit."""
        preflight.require_outputs(self.labels, self.logits)
        loss = F.cross_entropy(self.logits.double(), self.labels)
        correct = (self.answers == self.labels).double().mean()
        return Metrics(float(loss), float(correct))


def predict(
    model: nn.Module,
    loader,
    *,
    device: torch.device | str,
    flip_tta: bool = False,
) -> Predictions:
    """The model's logits for each image of `loader`, and its labels, on the CPU.

    model: on `device` already; it is given images in channels-last memory, in evaluation
        mode. Afterwards each layer has the mode that it had.
    loader: an iterable of (images (B, C, H, W), labels (B,)). Where each process has one
        with its share, each gets the answers to all images. Warns of one that shuffles
        (make_loaders' train, a DataLoader with shuffle=True or a random sampler): nobody
        could tell which image an answer belongs to.
    flip_tta: the logits are the means of those of the image and of its mirror image.

    It computes in float32, unless torch.autocast is around it. Newer GPUs convolve float32
    in TF32, with 10 bits of mantissa, unless torch is told otherwise. Warns of images whose
    probabilities are NaN, as after a training that diverged.

    Raises ValueError where the loader gives nothing, or batches that are no such pairs or
    that the model can't take, and for a model that gives no (B, classes), TypeError for one
    that gives no tensor, MemoryError where batches are too large, unless cuDNN says only
    that it finds no engine.
    """
    preflight.warn_of_order(loader)
    found = all_answers(model, loader, device=device, flip_tta=flip_tta)
    if without := int(found.probabilities.isnan().any(1).sum()):
        warnings.warn(
            f"the model has no answer to {without:,} of {len(found.labels):,} images: its "
            "logits are NaN or infinite, and what is counted for them means nothing; look "
            "for what is not finite in the images, or train with a lower max_lr",
            stacklevel=2,
        )
    return found


@torch.no_grad()  # not inference_mode: its tensors are of no use to a later training
def all_answers(
    model: nn.Module, loader, *, device: torch.device | str, flip_tta: bool = False
) -> Predictions:
    """What `predict` gives, in whatever order."""
    device = torch.device(device)
    torch.clear_autocast_cache()  # which may hold weights as they were before a step
    all_logits, all_labels = [], []
    with evaluating(model), explaining_evaluation_memory(device):
        for batch in loader:
            images, labels = to_device(batch, device)
            # Both before the model sees the images, which it may change in place.
            views = [images, images.flip(3)] if flip_tta else [images]
            # A sum is a copy: a compiled model may use the memory of its output again.
            total = sum(preflight.logits_of(model, view).float() for view in views)
            all_logits.append(total / len(views))
            all_labels.append(labels)
    if not all_logits:
        raise ValueError("there is nothing to evaluate: the loader gave no batch")
    processes = Processes.of(loader)
    found = (torch.cat(parts).cpu() for parts in (all_logits, all_labels))
    return Predictions(*map(processes.all_gather, found))


def evaluate(model: nn.Module, loader, *, device: torch.device | str) -> Metrics:
    """Loss and accuracy of `model` over all examples of `loader`; see `predict`.

    Raises ValueError also for a label that has no output.
    """
    return all_answers(model, loader, device=device).metrics


STATEFUL = ("model", "optimizer", "scheduler", "scaler")  # of a Training


class Training:
    """All that changes while `fit` works, which is what a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        loaders,
        recipe: Recipe,
        history: History,
        *,
        device: torch.device,
        dtype: torch.dtype,
        processes: Processes,
    ):
        self.train, self.test = loaders
        self.recipe, self.history = recipe, history
        self.device, self.dtype, self.processes = device, dtype, processes
        self.wrapped = processes.wrap(model, device)
        self.model = uncompiled(model)
        self.optimizer = make_optimizer(model, recipe, lr=history.max_lr)
        # Before the optimizer's state is loaded: building it resets the learning rate.
        self.scheduler = make_scheduler(
            self.optimizer,
            recipe,
            max_lr=history.max_lr,
            steps_per_epoch=len(self.train),
        )
        self.scaler = make_scaler(device, dtype)

    def circumstances(self) -> dict[str, Any]:
        """What alters the results a little where it changes; None where that's unknown."""
        on_cpu = self.device.type == "cpu"  # elsewhere threads decide nothing
        return {
            "threads": torch.get_num_threads() if on_cpu else None,
            "processes": self.processes.size,
            "precision": str(self.dtype).removeprefix("torch."),
            # Somebody else's loaders don't tell where they augment.
            "augmentation": getattr(self.train, "augment_on", None),
        }

    def state_dict(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            **{name: getattr(self, name).state_dict() for name in STATEFUL},
            "history": self.history.as_dict(),
            **self.circumstances(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in STATEFUL:
            # A scaler that is off has an empty state, and one that is on refuses that.
            if name != "scaler" or state[name]:
                getattr(self, name).load_state_dict(state[name])
        left = len(self.history.epochs) < self.recipe.epochs
        for kind, value in self.circumstances().items():
            if left and state[kind] != value and None not in (state[kind], value):
                warnings.warn(
                    f"the training began with {state[kind]} {kind} and goes on with "
                    f"{value}: its results will differ a little",
                    stacklevel=3,
                )
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def run_epoch(self) -> Epoch:
        """Train, evaluate, and add a row to the history."""
        number, sizes = len(self.history.epochs) + 1, []
        for loader in (self.train, self.test):
            # A DataLoader's DistributedSampler has it, the DataLoader itself doesn't.
            for part in (loader, preflight.sampler_of(loader)):
                if hasattr(part, "set_epoch"):
                    part.set_epoch(number - 1)

        def on_step(images: int, learning_rate: float) -> None:
            sizes.append(images)
            self.history.learning_rates.append(learning_rate)

        start = time.perf_counter()
        with explaining_memory(self.model, self.train, self.dtype, self.device):
            trained = train_one_epoch(
                self.wrapped,
                self.train,
                self.optimizer,
                device=self.device,
                scheduler=self.scheduler,
                scaler=self.scaler,
                dtype=self.dtype,
                label_smoothing=self.recipe.label_smoothing,
                epoch=number,
                on_step=on_step,
            )
        seconds = time.perf_counter() - start
        self.processes.align_buffers(self.model)
        metrics = evaluate(self.model, self.test, device=self.device)
        if not math.isfinite(metrics.loss):
            warnings.warn(
                f"the test loss is {metrics.loss} in epoch {number}; train with a lower "
                "max_lr, or look for what is not finite in the test images",
                stacklevel=3,
            )
        row = Epoch(
            number,
            *trained,
            *metrics,
            learning_rate=self.history.learning_rates[-1],
            seconds=time.perf_counter() - start,
            images_per_second=sum(sizes) / seconds,
        )
        self.history.epochs.append(row)
        return row


def fit(
    model: nn.Module,
    loaders,
    recipe: Recipe,
    *,
    device: torch.device | str,
    checkpoint: str | PathLike | None = None,
    resume: bool = False,
) -> History:
    """Train `model` by `recipe`, evaluate after each epoch, print a line for each.

    The loss is cross-entropy. What is left in the model are the weights that the last epoch
    was evaluated with, not the best epoch's.

    model: any classifier that takes images in channels-last memory (`.flatten(1)`, not
        `.view`); it is moved to the device, trained in place, all of it in training mode
        (BatchNorm of frozen layers too), and left in evaluation mode, also where an epoch
        is broken off.
    loaders: (train, test), each an iterable with a length, of (images (B, C, H, W),
        labels (B,)); one with `set_epoch`, or whose sampler has it, is told which epoch
        begins, counted from 0, and what else it may tell is listed in
        helpers.loaders.Loader. Warns of training images that come in one order.
    recipe: all of it is applied but batch_size, train_images, test_images, augmentation
        and logit_scale, which are for whoever makes loaders and model, as in
        `make_loaders(..., batch_size=recipe.batch_size, **recipe.augmentation)`. Another
        augmentation and more images are warned of, another batch_size or logit_scale is
        refused. Without a max_lr the range test finds one, and a line tells it.
    checkpoint: a file that is written after each epoch; its folder is made if missing,
        so mount a drive first.
    resume: go on from the checkpoint if it is there, with the same recipe, loaders, kinds
        of layers and frozen ones; another max_lr is ignored, with a warning, and one in
        place of the range test's, or the other way round, refused. On a CPU the
        results are those of a training without a stop if the loaders draw by `set_epoch` or
        torch's global generator alone: make_loaders' do, with the same augment_on; those of
        a DataLoader with persistent_workers don't.

    Where torch.distributed has connected several processes, each calls this with its
    share of the loaders: they train one model, and the first of them prints and writes.

    Raises ValueError for loaders that don't fit the recipe or the model, a model that
    doesn't fit the recipe or makes layers when it is first called, a checkpoint that
    doesn't fit, resume without a checkpoint, processes that differ, devices other than cpu
    and cuda, a loss without a gradient, and within torch.autocast, TypeError for a model
    that gives no tensor or can't be copied and arguments of other kinds, FileExistsError
    for a checkpoint in the way, IsADirectoryError for a folder in its place, OSError for a
    folder that can't be written to, NonFiniteLoss when training fails, MemoryError, which
    names a batch size that fits unless several processes train, and without a max_lr what
    `lr_range_test` raises.
    """
    preflight.require_kinds(model, loaders, recipe)
    if resume and not checkpoint:
        raise ValueError("resume needs a checkpoint, the file to go on from")
    dtype = choose_dtype(recipe.precision, device)  # raises for a device that won't do
    device = torch.device(device)
    processes = Processes.current()
    preflight.require_shared(loaders, processes)
    # The first of the processes alone writes and reads it.
    path = place_of(checkpoint) if checkpoint and processes.first else None
    plan = plan_of(model, loaders, recipe)
    if path:
        if not resume:
            require_free(path)
        require_writable(path.parent)
        # Without a name, which would keep a second copy alive once the model moves.
        require_readable(
            {f"the model's {n}": v for n, v in uncompiled(model).state_dict().items()}
            | plan
            | {"the loader's augment_on": getattr(loaders[0], "augment_on", None)}
        )
    told = {**plan, "max_lr": recipe.max_lr, "resume": resume}
    require_same_everywhere(told, processes)
    saved = None
    if path and resume:
        saved = load_checkpoint(path, plan=plan, model=uncompiled(model).state_dict())
    saved = processes.broadcast(saved)
    if resume and not saved:
        processes.print(f"{path} isn't there: training begins with epoch 1")
    to_channels_last(model, device)
    preflight.require_fitting(loaders, recipe)
    preflight.require_model(model, loaders, recipe, device=device, dtype=dtype)
    if saved:
        history = History.from_dict(saved["history"])
    else:
        max_lr = recipe.max_lr
        if max_lr is None:
            max_lr = run_lr_range_test(
                model, loaders[0], recipe, device=device, dtype=dtype
            ).max_lr
            processes.print(f"range test: max_lr {max_lr:.2e}")
        history = History(max_lr)
    training = Training(
        model, loaders, recipe, history, device=device, dtype=dtype, processes=processes
    )
    if saved:
        training.load_state_dict(saved)
        if path:
            tell_where_it_goes_on(path, plan, recipe, history)
        saved = None  # as large as the model
    try:
        for epoch in range(len(history.epochs) + 1, recipe.epochs + 1):
            with keeping_freed_memory(device, dtype):
                row = training.run_epoch()
            if path:  # an epoch that is shown is kept
                save_checkpoint(path, {"plan": plan, **training.state_dict()})
            processes.print(row)
    except BaseException as error:
        left = what_is_left(path, history, error)
        processes.print(f"{type(error).__name__} in epoch {epoch}; {left}")
        raise
    finally:
        training.optimizer.zero_grad()  # the last step's: as much memory as the model again
        model.eval()
    if path:
        drop_previous(path)
    return history


def what_is_left(path: Path | None, history: History, error: BaseException) -> str:
    """What can be gone on from after a training that ended in this error."""
    kept = kept_checkpoints(path) if path else []
    if not history.learning_rates:
        return "no step was taken"
    if not kept:
        return "no checkpoint was kept, and the model is trained in part"
    left = f"go on from {path} with resume=True (--resume)"
    if isinstance(error, NonFiniteLoss):
        left += ", with the same max_lr; for a lower one begin in another file (--out)"
    return left
