"""Whose checkpoint this is, and whether a training may go on from it."""

import contextlib
import os
import warnings
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from helpers.checkpoint import kept_checkpoints, latest_whole
from helpers.copies import uncompiled
from helpers.files import place_of
from helpers.history import History
from helpers.preflight import require_scale
from helpers.processes import Processes
from helpers.recipe import Recipe


def plan_of_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe's part of the plan.

    Of max_lr it keeps only who chose it: a range test that is repeated may find a slightly
    different rate, and training goes on with the one in the history.
    """
    fields = asdict(recipe)
    chosen_by = "the recipe" if fields.pop("max_lr") else "the range test"
    return {**fields, "max_lr_from": chosen_by}


def plan_of(model: nn.Module, loaders, recipe: Recipe) -> dict[str, Any]:
    """What must be the same when training goes on."""
    train = loaders[0]
    made_with = getattr(train, "made_with", {})
    seed = getattr(train, "seed", None)
    return {
        **plan_of_recipe(recipe),
        "steps_per_epoch": len(train),
        "images": [getattr(loader, "fingerprint", None) for loader in loaders],
        "seed": seed if seed is None else int(seed),  # NumPy's isn't read back
        **{f"the loader's {name}": value for name, value in made_with.items()},
        **plan_of_layers(uncompiled(model)),
    }


def plan_of_layers(model: nn.Module) -> dict[str, str]:
    """Each layer's kind, and whether it is frozen, neither of which shapes tell.

    Options are left out: torch's versions print them differently, and some change in
    training.
    """
    plan = {}
    for name, layer in model.named_modules():
        own = [parameter.requires_grad for parameter in layer.parameters(recurse=False)]
        kind = type(layer).__name__ + ", frozen" * (bool(own) and not all(own))
        plan[f"the model's {name or 'class'}"] = kind
    return plan


def require_same_everywhere(plan: dict[str, Any], processes: Processes) -> None:
    """Raise ValueError, in each process, where their plans differ."""
    first, *others = processes.all_gather_object(plan)
    for rank, other in enumerate(others, start=1):
        if differing := differences(first, other, "in process 0", f"in process {rank}"):
            raise ValueError(
                f"the processes train different things: {differing}; start all of them "
                "with the same options, data and model"
            )


def load_checkpoint(
    path: Path, *, plan: dict[str, Any], model: dict[str, Any]
) -> dict[str, Any] | None:
    """The state in `path`, or in the one before it where `path` is damaged, with a warning.

    That one then takes the damaged one's place. None where there is neither.

    It must have been written under the same `plan`, for a model whose state dict has the
    names and shapes of `model`, a state dict too. Raises ValueError, saying what differs,
    where it wasn't, and where all that is there is damaged.
    """
    if not (kept := kept_checkpoints(path)):
        return None
    file, state = latest_whole(kept)
    require_same_shapes(file, state, model)
    require_same_plan(file, state["plan"], plan)
    if list(state["model"]) != list(model):
        raise ValueError(
            f"{file} comes from a model with its layers in another order, by which the "
            "optimizer's state goes; define them in that order, or name another file"
        )
    if file != kept[0]:  # the next save would put the damaged one in its place
        with contextlib.suppress(OSError):
            os.replace(file, kept[0])
    return state


def require_resumable(path: Path, recipe: Recipe, images: list[str]) -> None:
    """Raise what `fit` would for a checkpoint that is damaged, of another recipe or images.

    Also for one of another max_lr than is given, with which `fit` would go on.

    images: the fingerprints of those that are trained and evaluated on.
    """
    if kept := kept_checkpoints(path):
        file, state = latest_whole(kept)
        here = {**plan_of_recipe(recipe), "images": images}
        there = {name: state["plan"].get(name) for name in here}
        if recipe.max_lr:
            here["max_lr"], there["max_lr"] = recipe.max_lr, state["history"]["max_lr"]
        require_same_plan(file, there, here)


def require_same_plan(file: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    if differing := differences(there, here):
        raise ValueError(
            f"{file} comes from another training: {differing}; name another file (--out), or "
            "make recipe, loaders and model as they were there"
        )


def require_same_shapes(
    file: Path, state: dict[str, Any], model: dict[str, Any]
) -> None:
    """model: a state dict; what isn't a tensor in it, a module's extra state, has ()."""
    shapes = (
        {name: tuple(getattr(value, "shape", ())) for name, value in tensors.items()}
        for tensors in (state["model"], model)
    )
    if differing := differences(*shapes):
        raise ValueError(
            f"{file} comes from another model: {differing}; name another file or use that "
            "model"
        )


def differences(
    there: dict[str, Any],
    here: dict[str, Any],
    at: str = "there",
    other: str = "here",
) -> str:
    """What differs, in words; nothing where they are the same."""
    found = [
        f"{name} is {there.get(name)!r} {at} and {here.get(name)!r} {other}"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    return ", ".join(found[:3]) + " and so on" * (len(found) > 3)


def tell_where_it_goes_on(
    path: Path, plan: dict[str, Any], recipe: Recipe, history: History
) -> None:
    """Print it; warn of what may be another training than the one that is meant."""
    done = len(history.epochs)
    print(
        f"{path}: going on after epoch {done} of {recipe.epochs}, "
        + "with nothing left to train, " * (done == recipe.epochs)
        + f"with max_lr {history.max_lr:.2e} as it began",
        flush=True,
    )
    if recipe.max_lr not in (None, history.max_lr):
        warnings.warn(
            f"the recipe's max_lr {recipe.max_lr:.2e} is ignored, as {path} began with "
            f"{history.max_lr:.2e}; to train with it, name another file",
            stacklevel=3,
        )
    if done == recipe.epochs and None in plan["images"]:
        warnings.warn(
            f"nothing is trained, and whether {path} comes from the same images isn't known, "
            "as these loaders have no fingerprint; give each training a file of its own",
            stacklevel=3,
        )


def read_history(checkpoint: str | PathLike, model: nn.Module | None = None) -> History:
    """The epochs that the training behind a checkpoint has completed.

    model: is given the weights that the last of them was evaluated with, and left in
        evaluation mode.

    Raises FileNotFoundError where there is none, IsADirectoryError for a folder,
    ValueError for a file that is damaged or no checkpoint, and for weights or a logit_scale
    that don't fit the model.
    """
    # Perhaps only the one before it, where a stop came between the renames.
    kept = kept_checkpoints(place_of(checkpoint))
    if not kept:
        raise FileNotFoundError(
            f"{checkpoint} is not there; name a checkpoint of fit's"
        )
    path, state = latest_whole(kept)
    if model is not None:
        own = uncompiled(model)
        require_same_shapes(path, state, own.state_dict())
        require_scale(model, state["plan"]["logit_scale"])
        own.load_state_dict(state["model"])
        model.eval()
    return History.from_dict(state["history"])
