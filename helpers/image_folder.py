"""An image folder train/<class>/*, test/<class>/* as arrays, remembered in one file."""

import hashlib
import os
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
CACHE = "image-folder-cache.npz"

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read_image_folder(
    root: Path, classes: tuple[str, ...], *, size: tuple[int, int]
) -> tuple[list[Arrays], str]:
    """([(images, labels) of train, of test], source), in the order of the files' names.

    Raises ValueError, naming it, for a split or class that is missing, and for an image
    that can't be read or isn't `size` (height, width).
    """
    files = {split: list_images(root / split, classes) for split in ("train", "test")}
    signature = sign(root, files)
    arrays = read_cache(root / CACHE, signature)
    if arrays is None:
        arrays = [decode(files[split], size) for split in files]
        write_cache(root / CACHE, signature, arrays)
    formats = {
        SUFFIXES[path.suffix.lower()] for split in files.values() for path, _ in split
    }
    return arrays, f"CIFAR-10, {' and '.join(sorted(formats))} copy"


def list_images(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """(file, label) of a split, by name: the name's number is the official index."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing; an image folder has train/<class>/* and test/<class>/*"
        )
    files = []
    for label, name in enumerate(classes):
        found = []
        if (folder / name).is_dir():
            with os.scandir(folder / name) as entries:
                found = [Path(e.path) for e in entries if not e.name.startswith(".")]
        if not found:
            raise ValueError(
                f"{folder / name} is missing or empty; each of the classes "
                f"{', '.join(classes)} needs its folder of images"
            )
        for path in found:
            if path.suffix.lower() not in SUFFIXES:
                raise ValueError(f"{path} is neither PNG nor JPEG; move it elsewhere")
        files += [(path, label) for path in found]
    return sorted(files, key=lambda file: (file[0].stem, file[1]))


def decode(files: list[tuple[Path, int]], size: tuple[int, int]) -> Arrays:
    images = np.empty((len(files), *size, 3), dtype=np.uint8)
    labels = np.array([label for _, label in files], dtype=np.int64)
    split = files[0][0].parent.parent
    bar = tqdm(files, f"reading {split}", unit="image", leave=False, disable=None)
    for slot, (path, _) in zip(images, bar, strict=True):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(
                f"{path} can't be read as an image ({error}); replace or remove it"
            ) from error
        if pixels.shape[:2] != size:
            raise ValueError(
                f"{path} is {pixels.shape[0]}×{pixels.shape[1]} pixels and must be "
                f"{size[0]}×{size[1]}; resize or remove it"
            )
        slot[:] = pixels
    return images, labels


def sign(root: Path, files: dict[str, list[tuple[Path, int]]]) -> str:
    """Changes whenever a file is added, removed, renamed, resized or written to."""
    digest = hashlib.sha256()
    for split in files.values():
        for path, label in split:
            stat = path.stat()
            name = path.relative_to(root).as_posix()
            digest.update(
                f"{name}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode()
            )
    return digest.hexdigest()


def read_cache(path: Path, signature: str) -> list[Arrays] | None:
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file) as cache:
            if str(cache["signature"]) != signature:
                return None
            return [
                (cache[f"{s}_images"], cache[f"{s}_labels"]) for s in ("train", "test")
            ]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} is damaged ({error}); it is made anew", stacklevel=4)
        return None


def write_cache(path: Path, signature: str, arrays: list[Arrays]) -> None:
    (train_images, train_labels), (test_images, test_labels) = arrays
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=path.name, delete=False
        ) as file:
            temporary = file.name
            np.savez(
                file,
                signature=np.array(signature),
                train_images=train_images,
                train_labels=train_labels,
                test_images=test_images,
                test_labels=test_labels,
            )
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        warnings.warn(
            f"{path} can't be written ({error.strerror}): the images are in memory, and the "
            "next start will decode them again",
            stacklevel=4,
        )
