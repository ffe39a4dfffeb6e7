"""What loaders, batches, models and their answers must be, and what to change if not.

Checked before training, where it would fail hours later or be wrong in silence; some of it
at each batch too, where that costs nothing.
"""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from helpers.copies import copy_of, uncompiled
from helpers.memory import NO_ENGINE, is_lack_of_memory
from helpers.optimizer import autocast, require_rise
from helpers.processes import Processes
from helpers.recipe import Recipe

# Parts of torch's messages for a model that was made for other images.
OF_ANOTHER_SIZE = (
    "channels, but got",
    "cannot be multiplied",
    "too small",
    "Kernel size",
)
# And where the images are not what fails.
OF_THE_DEVICE = (NO_ENGINE, "CUDA error")


def require_kinds(model: object, loaders: object, recipe: object) -> None:
    """Raise TypeError for arguments of a training that are of other kinds."""
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"recipe must be a Recipe, not a {type(recipe).__name__}; "
            'replace(Recipe(), **RECIPES["page"]) makes one, for example'
        )
    if not isinstance(loaders, tuple | list) or len(loaders) != 2:
        kind, many = type(loaders).__name__, isinstance(loaders, tuple | list)
        given = f"{kind} of {len(loaders)}" if many else kind
        raise TypeError(f"loaders must be two, (train, test), not a {given}")
    for loader in loaders:
        number_of_batches(loader)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not a {type(model).__name__}")
    if any(map(is_lazy, model.parameters())):
        raise ValueError(
            "the model has layers that take their size from the first images, LazyLinear "
            "say; call it on a batch first"
        )


def number_of_batches(loader) -> int:
    """Its length; raises TypeError where it has none or gives no batches at all."""
    try:
        if not hasattr(loader, "__iter__"):
            raise TypeError("it gives none")
        return len(loader)
    except TypeError as error:
        raise TypeError(
            f"{type(loader).__name__} is no loader, which has batches and their number "
            f"({error}); make_loaders makes one of an ImageSet, and a dataset or a "
            "sampler without a length needs a __len__"
        ) from error


def require_fitting(loaders, recipe: Recipe) -> None:
    """Raise ValueError for loaders that don't fit the recipe.

    Warns of another augmentation, more images, and training images in one order.
    """
    train, test = loaders
    if not len(train) or not len(test):
        raise ValueError(
            f"the loaders have {len(train)} training and {len(test)} test batches; both "
            "need at least one"
        )
    # A DataLoader whose batches a sampler makes has None.
    batch_size = getattr(train, "batch_size", None) or recipe.batch_size
    if batch_size != recipe.batch_size:
        raise ValueError(
            f"the training loader's batch_size is {batch_size} and the recipe's "
            f"{recipe.batch_size}; make them the same"
        )
    require_rise(recipe, len(train))
    warn_of_a_part(test)
    if shuffles(train) is False and len(train) > 1:
        warnings.warn(
            "the training loader gives its images in the same order in each epoch, which "
            "costs accuracy, most where they are sorted by class; let it or its sampler "
            "shuffle, or give (train, test) if the two are swapped",
            stacklevel=3,
        )
    wanted, there = recipe.train_images, getattr(train, "count", None)
    # A list's `count` is a method.
    if wanted and isinstance(there, int) and wanted < there:
        warnings.warn(
            f"the recipe's train_images is {wanted:,} and the training loader has {there:,}, "
            "which are trained on; train.subset(recipe.train_images) takes as many",
            stacklevel=3,
        )
    made_with = getattr(train, "made_with", {})
    for name, value in recipe.augmentation.items():
        if (made := made_with.get(name, value)) != value:
            warnings.warn(
                f"the recipe's {name} is {value} and the training loader's {made}, which is "
                "what is done; make_loaders(..., **recipe.augmentation) makes it the same",
                stacklevel=3,
            )


def warn_of_a_part(loader) -> None:
    """Warn of a test loader that leaves images out, or gives some more than once."""
    if not isinstance(loader, DataLoader):
        return
    why = None
    if loader.drop_last and number_of_images(loader) % loader.batch_size:
        why = "drop_last leaves some out"
    if getattr(loader.sampler, "replacement", False):
        kind = type(loader.sampler).__name__
        why = f"{kind} draws some more than once, and others never"
    if why:
        warnings.warn(
            f"the test loader doesn't give each image once: {why}; make it without",
            stacklevel=4,
        )


def require_scale(model: nn.Module, logit_scale: float) -> None:
    """Raise ValueError where the model, or what is wrapped in it, has another."""
    layers = [layer for layer in model.modules() if hasattr(layer, "logit_scale")]
    scales = [layer.logit_scale for layer in layers] or [1]
    # What is no number, a parameter say, is the model's own affair.
    numbers = all(isinstance(scale, int | float) for scale in scales)
    if numbers and logit_scale not in scales:
        raise ValueError(
            f"the recipe's logit_scale is {logit_scale} and the model's {scales[0]}; "
            "make the model with logit_scale=recipe.logit_scale (one of your own holds it "
            "as .logit_scale and multiplies its outputs by it), or the recipe with "
            f"{scales[0]}"
        )


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """The model's answer; an error that says what to change where it has none."""
    try:
        logits = model(images)
    except RuntimeError as error:
        said = str(error)
        if is_lack_of_memory(error) or any(sign in said for sign in OF_THE_DEVICE):
            raise
        there = {parameter.device.type for parameter in model.parameters()}
        if "view size" in said:
            remedy = "they are channels-last here: use .flatten(1) instead of .view"
        elif there and images.device.type not in there:
            remedy = (
                f"they are on {images.device} and it isn't; model.to(device) moves it"
            )
        elif images.shape[3] in (1, 3) and min(images.shape[1:3]) > 3:
            remedy = (
                "they look like (B, H, W, C): .permute(0, 3, 1, 2) turns a batch, ToTensorV2 "
                "each image"
            )
        elif any(words in said for words in OF_ANOTHER_SIZE):
            remedy = (
                "make one for images of this size, with as many in_channels, or mend the "
                "layer that this is about"
            )
        elif images.dtype != torch.float32:
            whole = not images.is_floating_point()
            remedy = ".float() / 255 converts" if whole else ".float() converts"
        elif (found := float_type(model)) != torch.float32:
            remedy = f"its parameters are {found}, and .float() converts them"
        else:
            raise
        raise ValueError(
            f"the model can't take the images, {images.dtype} {tuple(images.shape)} "
            f"({said}); {remedy}"
        ) from error
    require_logits(logits, len(images), of="the model")
    return logits


def require_model(
    model: nn.Module,
    loaders,
    recipe: Recipe,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Raise ValueError or TypeError for a model that doesn't fit recipe or batches.

    Warns of one that gives probabilities or tells more classes apart than there are, and of
    images with values above 20.
    """
    require_no_autocast(device)
    require_scale(model, recipe.logit_scale)
    # A wrapper's copy would be compiled, for these few images alone.
    tried = copy_of(uncompiled(model)).to(device)
    tried.eval()
    train, test = loaders
    with torch.random.fork_rng([]), torch.no_grad():
        images, labels = as_pair(next(iter(test)))
        few = images[:2].to(device, memory_format=torch.channels_last)
        logits = logits_of(tried, few)  # there is memory for two
    names, made = (
        dict(one.named_parameters()).keys() for one in (uncompiled(model), tried)
    )
    if made - names:
        raise ValueError(
            f"the model makes {min(made - names)} when it is first called, and what it makes "
            "then is not trained; make it in __init__, or call the model on a batch first"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "the model has no parameter to train; give one requires_grad_(True)"
        )
    # Normalized images reach 3 or so. A model that takes integers scales them itself.
    if images.is_floating_point() and (largest := float(images.abs().max())) > 20:
        warnings.warn(
            f"the images that are tested on reach {largest:g}; divide those from 0 to 255 "
            "by 255, in training too, and normalize them",
            stacklevel=3,
        )
    warn_of_probabilities(logits)
    require_trainable(tried, few, train, device=device, dtype=dtype)
    found = labels.tolist()
    for loader in loaders:
        found += getattr(loader, "label_range", ())
    require_outputs(torch.tensor(found, device="cpu"), logits)
    outputs, classes = logits.shape[1], getattr(train, "num_classes", None)
    if isinstance(classes, int) and outputs > classes:
        warnings.warn(
            f"the model tells {outputs} classes apart and there are {classes}; make it with "
            f"num_classes={classes}, or its answers may be none of them",
            stacklevel=3,
        )


def float_type(model: nn.Module) -> torch.dtype:
    """That of the first parameter which is no whole number."""
    types = (parameter.dtype for parameter in model.parameters())
    return next((kind for kind in types if kind.is_floating_point), torch.float32)


def require_outputs(labels: Tensor, logits: Tensor) -> None:
    """Raise ValueError for a label that the model has no output for."""
    (low, high), classes = map(int, labels.long().aminmax()), logits.shape[1]
    if low < 0 or high >= classes:
        raise ValueError(
            f"the labels run from {low} to {high} and the model tells {classes} classes "
            "apart, from 0; give it as many outputs as there are classes, and number "
            "the labels from 0, by np.unique(labels, return_inverse=True)[1] say"
        )


def require_optimizing(
    optimizer: Optimizer, model: nn.Module, scheduler: object
) -> None:
    """Raise an error for an optimizer or a scheduler that can't do its work.

    Warns of a model with a layer that was replaced since the optimizer was made.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trains = {id(p): p.requires_grad for p in model.parameters()}
    if held.isdisjoint(trains):
        raise ValueError(
            "the optimizer holds no parameter of the model, as after a model was made anew; "
            "make the optimizer anew too"
        )
    # Either alone may be meant: one optimizer for two models, or for a part of one.
    missing = [p for p in trains if trains[p] and p not in held]
    if missing and held - trains.keys():
        warnings.warn(
            f"{len(missing)} of the model's parameters are not trained: the optimizer doesn't "
            "hold them, and holds others; if a layer was replaced since, make it anew",
            stacklevel=3,
        )
    steered = getattr(scheduler, "optimizer", optimizer).param_groups
    # A wrapper around the scheduler's optimizer may have its groups.
    if not any(group is own for group in steered for own in optimizer.param_groups):
        raise ValueError(
            "the scheduler is another optimizer's, as after an optimizer was made anew; make "
            "the scheduler anew too"
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            "scheduler is stepped after each batch and ReduceLROnPlateau goes by an epoch's "
            "metric; leave it out and step it yourself after evaluate"
        )


def require_no_autocast(device: torch.device) -> None:
    """Raise ValueError where somebody's autocast is on, which would reach the gradients."""
    if torch.is_autocast_enabled(device.type):
        raise ValueError(
            "torch.autocast is on, and training chooses its own precision, by the recipe's "
            "precision or dtype; call it outside of that block"
        )


def require_gradients(loss: Tensor) -> None:
    """Raise ValueError for a loss that no parameter has a part in."""
    if not loss.requires_grad:
        raise ValueError(
            "the loss has no gradient: gradients are switched off (by torch.no_grad, "
            "inference_mode or set_grad_enabled), the model's forward detaches, or all layers "
            "that it uses are frozen; undo that"
        )


def sampler_of(loader) -> object:
    """What chooses a DataLoader's images, also behind a sampler of batches."""
    batches = getattr(loader, "batch_sampler", None)
    return getattr(batches, "sampler", getattr(loader, "sampler", None))


def shuffles(loader) -> bool | None:
    """Whether each pass has an order of its own; None where that can't be told."""
    own = getattr(loader, "shuffles", None)
    if isinstance(own, bool):
        return own
    sampler = sampler_of(loader)
    told = getattr(sampler, "shuffle", None)  # by a DistributedSampler
    random = RandomSampler | SubsetRandomSampler | WeightedRandomSampler
    if told is True or isinstance(sampler, random):
        return True
    # Other samplers of batches may draw, as may a dataset whose items are batches.
    in_order = told is False or isinstance(sampler, SequentialSampler)
    plain = type(getattr(loader, "batch_sampler", None)) is BatchSampler
    return False if in_order and plain else None


def warn_of_order(loader) -> None:
    if shuffles(loader):
        warnings.warn(
            "the loader shuffles, so these answers are in no order that leads back to its "
            "images; make_loaders(data, data, ...).test keeps it, as does a DataLoader without "
            "shuffle and sampler (of a Subset, for some of the images)",
            stacklevel=3,
        )


def require_trainable(
    model: nn.Module, few: Tensor, loader, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise an error for a model that in training gives something else, or can't work.

    model: a copy, which is left in training mode. few: one or two images (B, C, H, W).
    dtype: what training computes in.
    """
    cuda = device.type == "cuda"
    # On GPUs BatchNorm sees the whole batch, and not only this process's share.
    processes = 1 if cuda else Processes.of(loader).size
    alone = last_batch(loader) // processes == 1
    few = few[:1] if alone else few[[0, -1]]  # where there is one image, that one twice
    generators = [device] if cuda else []
    model.train()
    try:
        with (
            torch.random.fork_rng(generators),
            torch.no_grad(),
            autocast(device, dtype),
        ):
            logits = model(few)
    except ValueError as error:  # BatchNorm's, which needs two values to compare
        if not alone:  # as of a model that splits its batch, for several GPUs say
            return
        share = "a process's share of " if processes > 1 else ""
        raise ValueError(
            f"{share}the last batch of an epoch has one image and the model can't train on "
            f"one ({error}); choose a batch_size whose last batch is larger"
        ) from error
    except RuntimeError as error:
        # In float32 it may be that it takes no batch of two, say: training will tell.
        if dtype == torch.float32 or is_lack_of_memory(error):
            return
        with torch.random.fork_rng(generators), torch.no_grad():
            try:
                model(few)
            except (RuntimeError, ValueError):
                return
        raise ValueError(
            f"the model can't compute in {dtype} ({error}); give the recipe "
            'precision="float32", or mend the layer that this is about'
        ) from error
    require_logits(logits, len(few), of="in training the model")


def as_pair(batch: object) -> tuple[Tensor, Tensor]:
    """The batch, if it is what training can take, its labels as int64."""
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not is_pair or not all(isinstance(part, Tensor) for part in batch):
        raise ValueError(
            f"a batch of the loader, a {type(batch).__name__}, is not a pair of tensors, "
            "images and labels; make it one in the Dataset or in collate_fn; if "
            "these are two loaders, pass one of them"
        )
    images, labels = batch
    if images.ndim != 4:
        raise ValueError(
            f"images are {tuple(images.shape)} and must be (B, C, H, W); .unsqueeze(1) adds "
            "one channel to (B, H, W), and vectors (B, N) go as [:, :, None, None], with "
            "nn.Flatten() first in the model"
        )
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)} and must be class numbers, "
            "integers (B,); .long() converts, .squeeze(1) takes a dimension away, "
            ".argmax(1) undoes one-hot; mixed ones, as of CutMix, need a loop of your own"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"a batch has {len(images)} images and {len(labels)} labels; it needs one each"
        )
    return images, labels.long()  # cross-entropy takes few others


def require_logits(logits: object, count: int, *, of: str) -> None:
    """Raise an error for what is no classifier's answer."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{of} gives a {type(logits).__name__}; a classifier gives one tensor, "
            "(images, classes): wrap it in a module that returns that"
        )
    if logits.ndim != 2 or len(logits) != count:
        raise ValueError(
            f"{of} gives {tuple(logits.shape)} for {count} images; a classifier gives "
            "(images, classes)"
        )


def warn_of_probabilities(logits: Tensor) -> None:
    sums = logits.float().sum(1)
    if (logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        warnings.warn(
            "the model's outputs are probabilities, and cross-entropy takes logits; leave "
            "the softmax at its end out, or it learns slowly",
            stacklevel=4,
        )


def last_batch(loader) -> int:
    """How many images the last batch of an epoch has, in all processes; 0 if unknown."""
    if sizes := getattr(loader, "batch_sizes", None):
        return sizes[-1]
    if isinstance(loader, DataLoader) and loader.batch_size and not loader.drop_last:
        return number_of_images(loader) % loader.batch_size or loader.batch_size
    return 0


def number_of_images(loader: DataLoader) -> int:
    """In an epoch of a loader that has a length."""
    # An iterable dataset that has one has a sampler without.
    iterable = isinstance(loader.dataset, IterableDataset)
    return len(loader.dataset if iterable else loader.sampler)


def require_shared(loaders, processes: Processes) -> None:
    """Raise ValueError where a loader doesn't give this process its share."""
    for loader in loaders:
        if (share := Processes.of(loader)) != processes:
            raise ValueError(
                f"{processes.size} processes train and this loader is for process "
                f"{share.rank} of {share.size}; give make_loaders share=({processes.rank}, "
                f"{processes.size})"
            )
