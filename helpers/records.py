"""The JSON records that runs leave: written, read and checked.

`python -m helpers` writes them. What one holds can be read in any: they are plain JSON.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from helpers.files import place_of, write_whole

FORMAT = 2


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """Return a run's record, as `python -m helpers` wrote it.

    Raises FileNotFoundError where there is none, IsADirectoryError for a folder,
    ValueError for a file that is no record and for one of another format.
    """
    path, remedy = place_of(path), "name a record that python -m helpers wrote"
    if path.is_dir():  # to read it is another error on each system
        raise IsADirectoryError(f"{path} is a folder; {remedy}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        form = record["format"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there; {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no record of a run ({type(error).__name__}: {error}); {remedy}"
        ) from error
    if form != FORMAT:
        raise ValueError(
            f"{path} is of format {form} and this version reads {FORMAT}; use the version "
            "that wrote it"
        )
    return record


def write_record(path: str | os.PathLike, record: dict[str, Any]) -> None:
    """Write a run's record, and the number of its format: whole, or not at all.

    record: of JSON's own types, arrays and tensors, which are written as lists. JSON has no
        NaN and infinity: None is written in their place. `results_markdown` and
        `describe_record` need the fields of those in results.

    Raises OSError where the file can't be written, TypeError for what JSON can't hold.
    """
    content = json.dumps({**finite(record), "format": FORMAT}, indent=1) + "\n"
    write_whole(path, content.encode())


def finite(value: Any) -> Any:
    """The same in JSON's own types, with None for each number that is NaN or infinite."""
    if hasattr(value, "tolist"):  # NumPy's and torch's
        value = value.tolist()
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_records(
    folder: str | os.PathLike, pattern: str = "*.json"
) -> list[dict[str, Any]]:
    """Return all records of `folder` whose names match, by name; see `read_record`.

    pattern: a glob; run-*.json for this project's results, as those of its benchmarks
        there are of another format, at which this raises ValueError.

    Raises FileNotFoundError also where there is no such folder.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; name one that holds records"
        )
    return [read_record(path) for path in sorted(folder.glob(pattern))]


def describe_record(record: dict[str, Any]) -> str:
    """Return one line for a figure's `data`, about one run or several like it."""
    data, recipe = record["data"], record["recipe"]
    return (
        f"{data['source']}, {data['train_images']:,} training images, "
        f"{recipe['epochs']} epochs, evaluated on {data['evaluated_on']}"
    )
