"""An image folder train/<class>/*, test/<class>/* as arrays."""

import os
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
WINDOWS_HIDES = {"thumbs.db", "desktop.ini"}  # by an attribute, and makes them again

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read_image_folder(
    root: Path, classes: tuple[str, ...], *, size: tuple[int, int]
) -> tuple[list[Arrays], str]:
    """([(images, labels) of train, of test], source), in the order of the files' names.

    Greyscale, palette and transparent images become RGB (alpha is dropped), with one
    warning. RGB of 16 bits loses the lower 8. Raises ValueError, naming it, for a split or
    class that is missing, for a file that has no place there, and for an image that can't
    be read, isn't `size` (height, width) or is greyscale of 16 bits.
    """
    files = [list_images(root / split, classes) for split in ("train", "test")]
    splits = [decode(split, size) for split in files]
    converted = [path for *_, paths in splits for path in paths]
    if converted:
        warnings.warn(
            f"{len(converted):,} of {sum(map(len, files)):,} images are not RGB "
            f"and were converted to it, without alpha; the first is {converted[0]}",
            stacklevel=3,
        )
    formats = {SUFFIXES[path.suffix.lower()] for split in files for path, _ in split}
    arrays = [(images, labels) for images, labels, _ in splits]
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
                "move it elsewhere (for other classes make an ImageSet)"
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
            raise ValueError(f"{path} has 16 bits per channel; make it 8 or remove it")
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
        # The disk's or the drive's errors have one, and name the file.
        if getattr(error, "errno", None):
            raise
        known = isinstance(error, UnidentifiedImageError)  # its text is the path again
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) can't be read as PNG or JPEG"
            f"{'' if known else f' ({error})'}; replace or remove it"
        ) from error
