"""Labelled images in memory: checked, then taken, divided and measured."""

import hashlib
import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


def require_whole(**numbers: int) -> None:
    for name, number in numbers.items():
        try:
            operator.index(number)
        except TypeError as error:
            text = f"{name} must be a whole number, not {number!r}"
            raise ValueError(text) from error


def require_seed(seed: int) -> None:
    require_whole(seed=seed)
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")


def how_to_convert(images: np.ndarray) -> str:
    """How a NumPy array becomes one that an ImageSet takes."""
    if images.dtype.kind in "biuf" and images.dtype != np.uint8:
        low, high = (images.min(), images.max()) if images.size else (0, 255)
        if not np.isfinite([low, high]).all():
            return "they hold NaN or infinity; look for where these come from"
        if low < 0:
            return (
                f"they go down to {low:g}; give them as they were before normalization"
            )
        if high <= 1 or (high < 2 and images.dtype.kind == "f"):  # resizing overshoots
            return "(255 * images).round().clip(0, 255).astype(np.uint8) converts those from 0 to 1"
        if high <= 255:
            return "images.astype(np.uint8) converts those from 0 to 255"
        return "(images / 65535 * 255).round().astype(np.uint8) converts 16 bits, / 4095 12 bits"
    if images.ndim == 3 and images.shape[2] in (1, 3):
        return "images[None] makes a set of one picture"
    if images.ndim == 3:
        return "images[..., None] adds one channel"
    if images.ndim == 2:
        return "images.reshape(-1, H, W, C) gives rows of pixels their shape"
    return "np.stack makes it of pictures of one size"


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class ImageSet:
    """Labelled images in memory, and where they came from.

    images: uint8 (N, H, W, C), an array or a tensor on the CPU.
    labels: integers (N,), each in [0, len(classes)); a list will do. Kept as int64.
    classes: the name of each class, all different, in the order of the labels.
    source: the label that every figure about these images carries.

    Raises TypeError for what is no array or no sequence of names, ValueError for arrays of
    other shapes or types, a name given twice and labels outside the classes.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if not hasattr(self.images, "__array__"):
            raise TypeError(
                f"images must be a NumPy array, not a {type(self.images).__name__}; "
                "np.stack makes one of pictures of one size"
            )
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 (N, H, W, C), not {images.dtype} {images.shape}; of a "
                f"NumPy array, {how_to_convert(images)}"
            )
        if images.shape[1] in (1, 3) and min(images.shape[2:]) > 4:
            raise ValueError(
                f"images must be (N, H, W, C), and {images.shape} looks like (N, C, H, W); "
                "np.asarray(images).transpose(0, 2, 3, 1) turns them"
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels must be integers ({len(images)},), one per image, not "
                f"{labels.dtype} {labels.shape}; np.asarray(labels).astype(np.int64) "
                "converts, .ravel() takes an axis away, .argmax(1) undoes one-hot, and "
                "np.unique(labels, return_inverse=True)[1] numbers names"
            )
        if isinstance(self.classes, str) or not isinstance(
            self.classes, Sequence | np.ndarray
        ):
            raise TypeError(
                f"classes must be a tuple of names, in the order of the labels, not "
                f"{self.classes!r}"
            )
        names = tuple(map(str, self.classes))  # a record holds no NumPy ones
        if len(set(names)) < len(names):
            raise ValueError(f"classes must have different names, not {names}")
        outside = (labels < 0) | (labels >= len(names))
        if outside.any():
            first = int(outside.argmax())
            raise ValueError(
                f"label {labels[first]} of image {first} is outside the {len(names)} "
                "classes; labels count from 0"
            )
        # All of a memory map would be read from the disk.
        few = images[:: max(1, len(images) // 100)]
        if few.size and few.max() == 1:
            warnings.warn(
                f"no pixel of {len(few)} images is above 1, and white is 255; convert "
                "floats from 0 to 1 by (255 * images).round().clip(0, 255).astype(np.uint8)",
                stacklevel=3,
            )
        kept = {
            # A transposed or reversed view, like torchvision's CIFAR-10 or
            # images[..., ::-1], torch refuses, or copies whole for each batch.
            "images": np.ascontiguousarray(images),
            "labels": np.ascontiguousarray(labels, np.int64),
            "classes": names,
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)  # it is frozen from here on

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "×".join(map(str, self.images.shape[1:]))
        return (
            f"ImageSet({len(self):,} images of {size}, {len(self.classes)} classes, "
            f"{self.source})"
        )

    def take(self, indices: NDArray[np.int64]) -> "ImageSet":
        """An ImageSet with copies of the images at `indices` (M,), in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def subset(self, size: int | None) -> "ImageSet":
        """The first `size` images, of each class its share; None means all.

        Raises ValueError for a size that isn't a whole number from 1 to len(self).
        """
        if size is None:
            return self
        require_whole(size=size)
        if not 0 < size <= len(self):
            raise ValueError(
                f"{size:,} images were asked for and the set ({self.source}) holds "
                f"{len(self):,}; ask for 1 to {len(self):,}, or None for all"
            )
        return self.take(np.sort(by_turns(self.labels)[:size]))

    def split(self, holdout: int) -> tuple["ImageSet", "ImageSet"]:
        """All but `holdout` images, and those: a set to choose hyperparameters on.

        The held-out images are the last of each class, in proportion to the class's size.
        Raises ValueError for a holdout that isn't a whole number from 1 to len(self) - 1.
        """
        require_whole(holdout=holdout)
        if not 0 < holdout < len(self):
            raise ValueError(
                f"holdout must be 1 to {len(self) - 1:,} of {len(self):,} images, "
                f"not {holdout}"
            )
        order = len(self) - 1 - by_turns(self.labels[::-1])  # turns from the end
        held, rest = np.sort(order[:holdout]), np.sort(order[holdout:])
        return self.take(rest), self.take(held)

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Each channel's mean and standard deviation over all pixels, on the [0, 1] scale.

        What `make_loaders` and the transforms take (but for the std of a channel that is
        the same everywhere, 0); of the training images, not the test's.
        Raises ValueError where there are none.
        """
        if not len(self):
            raise ValueError(f"{self.source}: there are no images to take a mean of")
        means, deviations = [], []
        # By counts: as floats the images would take four to eight times the memory.
        for channel in range(self.images.shape[3]):
            pixels = self.images[..., channel]
            # About a million at a time: bincount makes 8 bytes of each.
            parts = np.array_split(pixels, 1 + pixels.size // 2**20)
            counts = sum(np.bincount(part.ravel(), minlength=256) for part in parts)
            counts = counts.tolist()  # whole: rounding would let a blank channel vary
            count = pixels.size
            total = sum(n * value for value, n in enumerate(counts))
            squares = sum(n * value**2 for value, n in enumerate(counts))
            means.append(total / count / 255)
            variance = count * squares - total**2  # times the count squared
            deviations.append(math.sqrt(variance) / count / 255)
        return tuple(means), tuple(deviations)

    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of images and labels."""
        digest = hashlib.sha256(self.images)
        digest.update(self.labels)
        return digest.hexdigest()[:16]


def by_turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices in an order in which classes take turns, each in proportion to its size.

    With equal turns `split` would hold out the whole of a small class.
    """
    turn = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = labels == label
        count = of_class.sum()
        turn[of_class] = (np.arange(count) + 0.5) / count
    return np.argsort(turn, kind="stable")
