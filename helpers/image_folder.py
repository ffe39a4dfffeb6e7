"""An image folder train/<class>/*, test/<class>/* as arrays, remembered in one file."""

import hashlib
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
CACHE = "image-folder-cache.npz"
WINDOWS_HIDES = {"thumbs.db", "desktop.ini"}  # by an attribute, and makes them again

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read_image_folder(
    root: Path, classes: tuple[str, ...], *, size: tuple[int, int]
) -> tuple[list[Arrays], str]:
    """([(images, labels) of train, of test], source), in the order of the files' names.

    Greyscale, palette and transparent images become RGB (alpha is dropped), with one
    warning when they are decoded. Raises ValueError, naming it, for a split or class that
    is missing, for a file that has no place there, and for an image that can't be read,
    isn't `size` (height, width) or is greyscale of 16 bits. RGB of 16 bits
    loses the lower 8.
    """
    files = {split: list_images(root / split, classes) for split in ("train", "test")}
    signature = sign(root, files)
    arrays = read_cache(root / CACHE, signature)
    if arrays is None:
        splits = [decode(files[split], size) for split in files]
        arrays = [(images, labels) for images, labels, _ in splits]
        # Said when it happens: a later start reads RGB from the cache and converts nothing.
        converted = [path for *_, paths in splits for path in paths]
        if converted:
            warnings.warn(
                f"{len(converted):,} of {sum(map(len, files.values())):,} images are not "
                f"RGB and were converted to it, without alpha; the first is {converted[0]}",
                stacklevel=3,
            )
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
    for entry in visible(folder):
        if entry.name not in classes:
            raise ValueError(
                f"{entry.path} is none of the classes {', '.join(classes)}; rename it or "
                "move it elsewhere"
            )
    files = []
    for label, name in enumerate(classes):
        found = visible(folder / name) if (folder / name).is_dir() else []
        if not found:
            raise ValueError(
                f"{folder / name} is missing or empty; each of the classes "
                f"{', '.join(classes)} needs its folder of images"
            )
        for entry in found:
            path = Path(entry.path)
            if path.suffix.lower() not in SUFFIXES or not entry.is_file():
                raise ValueError(
                    f"{path} is neither PNG nor JPEG file; move it elsewhere"
                )
            files.append((path, label))
    # The whole name decides between 1.jpg and 1.png, which the disk gives in any order.
    return sorted(files, key=lambda file: (file[0].stem, file[1], file[0].name))


def visible(folder: Path) -> list[os.DirEntry]:
    """What is in the folder, but for what file managers and notebooks hide there."""
    with os.scandir(folder) as entries:
        return [
            entry
            for entry in entries
            if not entry.name.startswith(".")
            and entry.name.lower() not in WINDOWS_HIDES
        ]


def decode(
    files: list[tuple[Path, int]], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[Path]]:
    """(images, labels, which of the files were not RGB)."""
    images = np.empty((len(files), *size, 3), dtype=np.uint8)
    labels = np.array([label for _, label in files], dtype=np.int64)
    converted = []
    split = files[0][0].parent.parent
    bar = tqdm(files, f"reading {split}", unit="image", leave=False, disable=None)
    for slot, (path, _) in zip(images, bar, strict=True):
        pixels, mode = read_image(path)
        if mode.startswith("I"):
            raise ValueError(f"{path} has 16 bits a channel; make it 8 or remove it")
        if pixels.shape[:2] != size:
            raise ValueError(
                f"{path} is {pixels.shape[0]}×{pixels.shape[1]} pixels and must be "
                f"{size[0]}×{size[1]}; resize or remove it"
            )
        if mode != "RGB":
            converted.append(path)
        slot[:] = pixels
    return images, labels, converted


def read_image(path: Path) -> tuple[NDArray[np.uint8], str]:
    """Pixels (H, W, 3), and Pillow's word for what they were in the file."""
    try:
        with Image.open(path, formats=sorted(set(SUFFIXES.values()))) as image:
            # By way of RGBA, for Pillow warns of each palette that goes straight to RGB.
            rgb = image if image.mode == "RGB" else image.convert("RGBA").convert("RGB")
            return np.asarray(rgb), image.mode
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        known = isinstance(error, UnidentifiedImageError)  # its text is the path again
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) can't be read as PNG or JPEG"
            f"{'' if known else f' ({error})'}; replace or remove it"
        ) from error


def sign(root: Path, files: dict[str, list[tuple[Path, int]]]) -> str:
    """Changes whenever a file is added, removed, renamed, resized or written to."""
    digest = hashlib.sha256()
    for split in files.values():
        for path, label in split:
            stat = path.stat()
            name = path.relative_to(root).as_posix()
            line = f"{name}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            # A name that is no Unicode, from an old archive say, is a name too.
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_cache(path: Path, signature: str) -> list[Arrays] | None:
    try:
        with open(path, "rb") as file, np.load(file) as cache:
            if str(cache["signature"]) != signature:
                return None
            return [
                (cache[f"{s}_images"], cache[f"{s}_labels"]) for s in ("train", "test")
            ]
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever damage leads np.load to
        warnings.warn(
            f"{path} can't be read ({error}); the images are decoded again",
            stacklevel=4,
        )
        return None


def write_cache(path: Path, signature: str, arrays: list[Arrays]) -> None:
    (train_images, train_labels), (test_images, test_labels) = arrays
    try:
        # Beside it and then renamed, so that it is whole for whoever reads it, at any time.
        with tempfile.TemporaryDirectory(prefix=".cache-", dir=path.parent) as scratch:
            np.savez(
                Path(scratch, path.name),
                signature=np.array(signature),
                train_images=train_images,
                train_labels=train_labels,
                test_images=test_images,
                test_labels=test_labels,
            )
            os.replace(Path(scratch, path.name), path)
    except OSError as error:
        warnings.warn(
            f"{path} can't be written ({error.strerror}): the images are in memory, and the "
            "next start will decode them again",
            stacklevel=4,
        )
