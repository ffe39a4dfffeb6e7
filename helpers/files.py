"""Where a file is, and how it is written: whole, or not at all."""

import os
from pathlib import Path


def place_of(path: str | os.PathLike) -> Path:
    """The path with ~ expanded and a link followed, as writing would replace the link."""
    path = Path(path).expanduser()
    return path.resolve() if path.is_symlink() else path


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Write the file, and its folder if that is missing.

    Raises OSError, and leaves what was there.
    """
    path = place_of(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    try:
        new.write_bytes(content)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)  # there only after a failure
