"""A training's state in one file that is whole or isn't there, and the one before it.

The file is torch.save's, followed by its SHA-256: torch itself doesn't notice a flipped
bit. It is read with weights_only, so that nothing in it can run.
"""

import contextlib
import hashlib
import io
import os
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

FORMAT = 8
DIGEST_BYTES = hashlib.sha256().digest_size  # at the end of the file


class Damaged(ValueError):
    """The file is not a whole checkpoint."""


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def kept_checkpoints(path: Path) -> list[Path]:
    """The files that a training under this name has left, the latest first.

    Empty also where the folder can't be read, as on a drive that is lost.
    """
    return [file for file in (path, previous(path)) if os.path.exists(file)]


def require_free(path: Path) -> None:
    """Raise FileExistsError where a new training's checkpoint would replace another's."""
    require_file(path)
    if kept := kept_checkpoints(path):
        raise FileExistsError(
            f"{kept[0]} exists; name another file (--out), or go on with resume=True (--resume)"
        )


def require_writable(folder: Path) -> None:
    """Make the folder, and a file in it: before the training, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"the folder {folder} can't be written to ({error.strerror}); name another "
            "one (--out)"
        ) from error


def require_file(path: Path) -> None:
    """Raise IsADirectoryError for a folder."""
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder; name a file in it for the checkpoint"
        )


def require_readable(parts: dict[str, Any]) -> None:
    """Raise ValueError for what a checkpoint wouldn't give back, as a layer's extra state.

    Of what is no tensor, weights_only reads Python's own types alone.
    """
    others = {n: v for n, v in parts.items() if not isinstance(v, torch.Tensor)}
    for name, value in others.items():
        buffer = io.BytesIO()
        try:
            torch.save(value, buffer)
            torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        except (pickle.PickleError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{name}, a {type(value).__name__}, can't be read back from a checkpoint; "
                "make it of tensors, Python's own numbers and strings, and lists and dicts"
            ) from error


def drop_previous(path: Path) -> None:
    """Remove the spare one: the last of a training that is over holds all there is."""
    # A place that no longer lets it costs nothing else.
    with contextlib.suppress(OSError):
        if path.exists():
            previous(path).unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state`; whenever this is interrupted, a whole checkpoint is there.

    Where the file can't be written, warns and leaves what was there: what has been
    computed is worth more than its copy.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    content = buffer.getbuffer()
    new = path.with_name(path.name + ".new")
    try:
        # The folder isn't made anew: on a drive that is lost it would be on another disk.
        with open(new, "wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).digest())
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, previous(path))
        os.replace(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # a read-only place refuses this as well
            new.unlink(missing_ok=True)
        kept = kept_checkpoints(path)
        warnings.warn(
            f"{path} can't be written after epoch {len(state['history']['epochs'])} "
            f"({error.strerror}): training goes on, and "
            + (f"{kept[0]} is kept" if kept else "nothing is kept"),
            stacklevel=3,
        )


def latest_whole(kept: list[Path]) -> tuple[Path, dict[str, Any]]:
    """The first undamaged one of these, and its state; warns of each damaged one before.

    Raises Damaged where all are, and what `read_checkpoint` raises.
    """
    for file in kept[:-1]:
        try:
            return file, read_checkpoint(file)
        except Damaged:
            warnings.warn(f"{file} is damaged; trying the one before it", stacklevel=4)
    return kept[-1], read_checkpoint(kept[-1])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote.

    Raises Damaged where the digest doesn't fit, ValueError for anything else.
    """
    require_file(path)
    content = path.read_bytes()
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise Damaged(
            f"{path} is damaged or no checkpoint of fit's; name another file, or remove "
            "this one if it was a checkpoint"
        )
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is no checkpoint of fit's, or holds more of its model than tensors and "
            f"Python's own types ({type(error).__name__}); name another file"
        ) from error
    if (theirs := state.get("format")) != FORMAT:
        raise ValueError(
            f"{path} is of format {theirs} and this version reads {FORMAT}; use the version "
            "that wrote it, or remove it"
        )
    return state
