"""What would fail in hours, or be wrong, said before."""

import copy

import torch
from torch import nn

from helpers.processes import Processes
from helpers.recipe import Recipe


def require_fitting(
    model: nn.Module, loaders, recipe: Recipe, *, device: torch.device
) -> None:
    """Raise ValueError for what would otherwise fail, or be wrong, after hours."""
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
    if recipe.peak_epoch * len(train) <= 1:
        raise ValueError(
            f"peak_epoch {recipe.peak_epoch} leaves the learning rate no step to rise in, "
            f"as an epoch has {len(train)}; make either larger"
        )
    tried = copy.deepcopy(model)
    with torch.random.fork_rng([]), torch.no_grad():
        images, labels = next(iter(test))
        logits = tried.eval()(images.to(device))
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"the model gives {tuple(logits.shape)} for {len(labels)} images; a classifier "
            "gives (images, classes)"
        )
    last, share = (
        getattr(train, "batch_sizes", [0])[-1],
        getattr(train, "share", (0, 1)),
    )
    if last // share[1] == 1:
        try:
            with torch.random.fork_rng([]), torch.no_grad():
                tried.train()(images[:1].to(device))
        except ValueError as error:  # BatchNorm's, which needs two values to compare
            raise ValueError(
                f"the last batch of an epoch has one image and the model can't train on "
                f"one ({error}); choose a batch_size that leaves none or more"
            ) from error
    low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise ValueError(
            f"the labels run from {low} to {high} and the model tells {classes} classes "
            "apart, from 0; give it as many outputs as there are classes"
        )


def require_shared(loaders, processes: Processes) -> None:
    """Raise ValueError where a loader doesn't give this process its share."""
    for loader in loaders:
        share = tuple(getattr(loader, "share", (0, 1)))
        if share != processes:
            raise ValueError(
                f"{processes.size} processes train and this loader is for process "
                f"{share[0]} of {share[1]}; give make_loaders share=({processes.rank}, "
                f"{processes.size})"
            )
