"""Packages that only some functions need, imported where they are used."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def optional(package: str, instead: str = "") -> Iterator[None]:
    """Within, an import that finds nothing says what to install, or what to do instead."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; pip install {package}{instead}"
        ) from error
