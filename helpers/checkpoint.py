"""A training's state in one file, written so that a crash leaves the previous one."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write beside `path`, flush, then rename: the name always holds a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path, *, recipe: dict[str, Any]) -> dict[str, Any]:
    """The state in `path`, which must come from a training by the same recipe.

    Raises ValueError, saying what is wrong, for a damaged file, another format, another
    recipe (field by field).
    """
    try:
        # weights_only refuses everything that could run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({str(error).splitlines()[0]}); remove it to "
            "start anew"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of format {FORMAT}; remove it to start anew"
        )
    differing = [
        f"{name} is {state['recipe'].get(name)!r} there and {value!r} here"
        for name, value in recipe.items()
        if state["recipe"].get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{path} comes from another recipe: {', '.join(differing)}; name another file "
            "or use that recipe"
        )
    return state
