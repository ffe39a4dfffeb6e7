"""CIFAR-10, from the disk (or the network) to augmented batches on the device."""

import functools
import hashlib
import importlib.util
import math
import operator
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from helpers.loaders import (
    LINUX,
    DeviceLoader,
    Loader,
    WorkerLoader,
    transformed,
    usable_cores,
)

__all__ = [
    "CIFAR10_CLASSES",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "DatasetUnavailable",
    "ImageSet",
    "Loaders",
    "eval_transform",
    "load_cifar10",
    "load_or_draw",
    "make_loaders",
    "synthetic_cifar10",
    "train_transform",
]

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# Over all pixels of the 50,000 training images, on the [0, 1] scale. The often copied
# std (0.2023, 0.1994, 0.2010) is the mean of each image's own std, which is smaller.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class DatasetUnavailable(OSError):
    """Nothing on the disk and nothing from the network; the message says what to do."""


def how_to_convert(images: np.ndarray) -> str:
    """How a NumPy array becomes one that an ImageSet takes."""
    if images.dtype.kind in "biuf" and images.dtype != np.uint8:
        low, high = (images.min(), images.max()) if images.size else (0, 255)
        if not np.isfinite([low, high]).all():
            return "they hold NaN or infinity"
        if low < 0:
            return (
                f"they go down to {low:g}; give them as they were before normalization"
            )
        if high <= 1 or (high < 2 and images.dtype.kind == "f"):  # resizing overshoots
            return "(255 * images).clip(0, 255).astype(np.uint8) converts those from 0 to 1"
        if high <= 255:
            return "images.astype(np.uint8) converts those from 0 to 255"
        return (
            "(images / 65535 * 255).astype(np.uint8) converts 16 bits, / 4095 12 bits"
        )
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
    source: the label that every figure about these images carries.

    Raises TypeError for what is no array or no sequence of names, ValueError for arrays of
    other shapes or types, names that come twice and labels outside the classes.
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
        for name in ("images", "labels"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 (N, H, W, C), not {self.images.dtype} "
                f"{self.images.shape}; of a NumPy array, {how_to_convert(self.images)}"
            )
        if self.images.shape[1] in (1, 3) and min(self.images.shape[2:]) > 4:
            raise ValueError(
                f"images must be (N, H, W, C), and {self.images.shape} looks like "
                "(N, C, H, W); np.asarray(images).transpose(0, 2, 3, 1) turns them"
            )
        kind = self.labels.dtype.kind
        if self.labels.shape != self.images.shape[:1] or kind not in "iu":
            raise ValueError(
                f"labels must be integers ({len(self.images)},), one an image, not "
                f"{self.labels.dtype} {self.labels.shape}; np.asarray(labels).astype(np.int64) "
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
            raise ValueError(f"classes must have a name each, not {names}")
        object.__setattr__(self, "classes", names)
        outside = (self.labels < 0) | (self.labels >= len(self.classes))
        if outside.any():
            first = int(outside.argmax())
            raise ValueError(
                f"label {self.labels[first]} of image {first} is outside the "
                f"{len(self.classes)} classes; labels count from 0"
            )
        # All of a memory map would be read from the disk.
        few = self.images[:: max(1, len(self) // 100)]
        if few.size and few.max() == 1:
            warnings.warn(
                f"in {len(few)} images no pixel is above 1, of 255: all but black; convert "
                "floats from 0 to 1 by (255 * images).clip(0, 255).astype(np.uint8)",
                stacklevel=3,
            )
        # What is a view turned round, like torchvision's CIFAR-10 or images[..., ::-1],
        # torch refuses, or copies whole for each batch.
        for name, dtype in (("images", np.uint8), ("labels", np.int64)):
            array = np.ascontiguousarray(getattr(self, name), dtype)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "×".join(map(str, self.images.shape[1:]))
        return (
            f"ImageSet({len(self):,} images of {size}, {len(self.classes)} classes, "
            f"{self.source})"
        )

    def take(self, indices: NDArray[np.int64]) -> "ImageSet":
        """Copies of the images at `indices` (M,), in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def subset(self, size: int | None) -> "ImageSet":
        """The first `size` images, of each class its share; None means all.

        Raises ValueError where there are fewer.
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

        The held-out images are the last ones of each class, as many as is its share of
        all. Raises ValueError where nothing would remain.
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

        What `make_loaders` and the transforms take; of the training images, not the test's.
        """
        means, deviations = [], []
        # By counts: as floats the images would take four to eight times the memory.
        for channel in range(self.images.shape[3]):
            parts = np.array_split(self.images[..., channel], max(1, len(self) // 1000))
            counts = sum(np.bincount(part.ravel(), minlength=256) for part in parts)
            counts = counts.tolist()  # whole: rounding would let a blank channel vary
            pixels = sum(counts)
            total = sum(count * value for value, count in enumerate(counts))
            squares = sum(count * value**2 for value, count in enumerate(counts))
            means.append(total / pixels / 255)
            variance = pixels * squares - total**2  # times the pixels squared
            deviations.append(math.sqrt(variance) / pixels / 255)
        return tuple(means), tuple(deviations)

    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of images and labels."""
        digest = hashlib.sha256(self.images)
        digest.update(self.labels)
        return digest.hexdigest()[:16]


def by_turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices in an order in which classes take turns, the larger the more often.

    If all had equally many, `split` would hold out a small class whole.
    """
    turn = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = labels == label
        count = of_class.sum()
        turn[of_class] = (np.arange(count) + 0.5) / count
    return np.argsort(turn, kind="stable")


# --------------------------------------------------------------------------------------
# From the disk or the network
# --------------------------------------------------------------------------------------


def load_cifar10(
    root: str | os.PathLike, *, download: bool = True
) -> tuple[ImageSet, ImageSet]:
    """The 50,000 training and 10,000 test images (Krizhevsky, 2009), in official order.

    Looks in `root` for the official batches (each file's MD5 is checked), then for an
    image folder train/<class>/*, test/<class>/* of 32×32 PNG or JPEG files named so that
    sorting them by name gives the order, then for the archive; then downloads it.
    Where several processes find nothing, one does, and the others wait. How many images
    an image folder has isn't checked.

    Nothing is written where the batches or the image folder are there. Batches that fail
    their MD5 are passed over, and kept beside those that the archive then gives.

    Raises DatasetUnavailable where nothing is there and nothing can be downloaded or
    written, ValueError, naming the file, for an image folder that is not as described, and
    ModuleNotFoundError without torchvision, but for an image folder.
    """
    root = Path(root).expanduser()
    if root.exists() and not root.is_dir():
        raise ValueError(
            f"{root} is a file; name the folder the dataset is in or goes to"
        )
    if (official := read_batches(root)) is not None:
        return official
    if (root / "train").exists() or (root / "test").exists():
        from helpers.image_folder import read_image_folder

        splits, source = read_image_folder(root, CIFAR10_CLASSES, size=(32, 32))
        train, test = (ImageSet(*split, CIFAR10_CLASSES, source) for split in splits)
        return train, test
    return fetch_archive(root, download=download)


def read_batches(root: Path) -> tuple[ImageSet, ImageSet] | None:
    """torchvision's reading of the official batches; None where they are not all there."""
    folder = root / "cifar-10-batches-py"
    if not folder.is_dir():
        return None
    require_torchvision()
    # Takes seconds, which an image folder doesn't need.
    from torchvision.datasets import CIFAR10

    try:
        splits = [CIFAR10(root, train=train) for train in (True, False)]
    except RuntimeError as error:  # torchvision's word for a missing or altered file
        warnings.warn(
            f"{folder} is not the official dataset ({error}); it is passed over",
            stacklevel=3,
        )
        return None
    train, test = (
        ImageSet(s.data, np.array(s.targets), CIFAR10_CLASSES, "CIFAR-10")
        for s in splits
    )
    return train, test


def require_torchvision() -> None:
    """Say that it is missing: before a download, which it is to read."""
    if not importlib.util.find_spec("torchvision"):
        raise ModuleNotFoundError(
            "torchvision, which reads CIFAR-10, is not installed; pip install torchvision"
        )


def fetch_archive(root: Path, *, download: bool) -> tuple[ImageSet, ImageSet]:
    """The official batches, which are left in `root`, extracted from the archive."""
    from helpers import download as net

    archive = root / net.ARCHIVE_NAME
    # A download looks at the archive itself, and says what is wrong with it.
    if not (download or archive.is_file() and net.has_md5(archive, net.ARCHIVE_MD5)):
        raise DatasetUnavailable(
            f"no CIFAR-10 in {root}: neither cifar-10-batches-py, nor the folders train "
            f"and test, nor {net.ARCHIVE_NAME} with the MD5 {net.ARCHIVE_MD5}; put one "
            "there or allow the download"
        )
    require_torchvision()
    try:
        with net.alone(archive):
            # Another process may have made them since; what else is there is said already.
            with warnings.catch_warnings(action="ignore"):
                made = read_batches(root)
            if made is None:
                asked = {"md5": net.ARCHIVE_MD5, "size": net.ARCHIVE_BYTES}
                net.download(net.ARCHIVE_URLS, archive, **asked)
                net.extract(archive, root, "cifar-10-batches-py")
    except OSError as error:  # the network, or a disk that is full or can't be written
        raise DatasetUnavailable(error.strerror or str(error)) from error
    return made or read_batches(root)


def synthetic_cifar10(
    *, train: int = 50_000, test: int = 10_000, seed: int = 0
) -> tuple[ImageSet, ImageSet]:
    """Drawn images in the shape of CIFAR-10, from no file and no network.

    Ten classes of shape, colour and texture, learnable but not at a glance; the same
    seed draws the same images. Raises ValueError, naming it, for a number that won't do.
    """
    from helpers.synthetic import CLASSES, draw

    require_whole(train=train, test=test)
    if min(train, test) < 0:
        raise ValueError(f"train and test must be 0 or more, not {train} and {test}")
    require_seed(seed)
    # Two streams, so that the number of training images does not alter the test set.
    streams = np.random.SeedSequence(seed).spawn(2)
    sets = []
    for size, stream in zip((train, test), streams, strict=True):
        labels = np.arange(size) % len(CLASSES)
        rng = np.random.default_rng(stream)
        rng.shuffle(labels)
        images = draw(labels, rng)
        sets.append(ImageSet(images, labels, CLASSES, "synthetic images, not CIFAR-10"))
    return sets[0], sets[1]


def load_or_draw(
    root: str | os.PathLike | None, *, train_images: int | None, test_images: int | None
) -> tuple[ImageSet, ImageSet, str | None]:
    """Subsets of CIFAR-10, or of synthetic images and the reason why.

    The third is None with CIFAR-10 itself. Images are drawn where `root` is None or the
    word synthetic, or `load_cifar10` raises DatasetUnavailable; what else it raises is
    raised here too.
    """
    reason = "asked for"
    try:
        if root not in (None, "synthetic"):
            train, test = load_cifar10(root)
            return train.subset(train_images), test.subset(test_images), None
    except DatasetUnavailable as error:
        reason = str(error)
    sizes = {"train": train_images, "test": test_images}
    sizes = {split: size for split, size in sizes.items() if size is not None}
    return *synthetic_cifar10(**sizes), reason


def images_of(
    root: str, *, train_images: int | None, test_images: int | None, holdout: int
) -> tuple[ImageSet, ImageSet]:
    """The images that a run trains on, and those that it is evaluated on.

    root: the folder of the dataset, or the word synthetic.
    holdout: this many training images, if any, take the place of the test set.
    """
    if root == "synthetic":
        # Those held out are drawn besides; None, for all, stays None.
        size = train_images and train_images + holdout
        train, test, _ = load_or_draw(root, train_images=size, test_images=test_images)
    else:
        train, test = load_once(root)
    if holdout:
        train, test = train.split(holdout)
    else:
        test = test.subset(test_images)
    return train.subset(train_images), test


@functools.cache
def load_once(root: str) -> tuple[ImageSet, ImageSet]:
    """The dataset, which all seeds and runs of a process share: reading takes seconds."""
    return load_cifar10(root)


# --------------------------------------------------------------------------------------
# Augmentation: one contract, run in two places
# --------------------------------------------------------------------------------------
#
# Reflect-pad by `padding` pixels, crop back to the image's size, flip, put one square
# hole of the mean colour wholly inside, normalize. Each image draws for itself.


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


def require_augmentation(
    padding: int, flip: float, cutout: int, size: tuple[int, int]
) -> None:
    if np.shape(size) != (2,):
        raise ValueError(f"size must be (H, W), as of images.shape[1:3], not {size}")
    side = min(size)
    require_whole(padding=padding, cutout=cutout)
    if not 0 <= padding < side:  # reflection has no more pixels to offer
        raise ValueError(
            f"padding must be 0 to {side - 1} pixels, not {padding}, for images of "
            f"{size[0]}×{size[1]} pixels"
        )
    if not 0 <= flip <= 1:
        raise ValueError(f"flip must be a probability from 0 to 1, not {flip}")
    if not 0 <= cutout < side:  # nothing would be left of the image
        raise ValueError(f"cutout must be 0 to {side - 1} pixels, not {cutout}")


def require_normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    fits = np.ndim(mean) == 1 and np.shape(mean) == np.shape(std)
    if not (fits and all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)):
        raise ValueError(
            f"mean {mean} and std {std} must have a value each for every channel, on the "
            "[0, 1] scale, std more than 0; divide by 255 what is of pixels up to 255, "
            "leave out a channel that is the same everywhere"
        )


def train_transform(
    *,
    padding: int = 4,
    flip: float = 0.5,
    cutout: int = 8,
    size: tuple[int, int] = (32, 32),
    mean: tuple[float, ...] = CIFAR10_MEAN,
    std: tuple[float, ...] = CIFAR10_STD,
    seed: int | None = None,
):
    """The augmentation as an albumentations.Compose: uint8 (H, W, C) to float (C, H, W).

    padding: pixels by which a crop can move the image, either way.
    flip: probability of a horizontal flip.
    cutout: side of the hole in pixels, 0 for none.
    size: (H, W), of the images, `images.shape[1:3]`.
    mean, std: a value a channel, on the [0, 1] scale.
    seed: global seeds don't reach albumentations, this one does. The workers of a
        DataLoader repeat one another, and each epoch, unless its worker_init_fn calls the
        transform's `set_random_seed(torch.initial_seed() % 2**32)`; those of
        `make_loaders` don't.

    Raises ModuleNotFoundError without albumentations, ValueError, naming it, for a number
    out of range, and when it is called with an image of another size or number of channels.
    """
    require_augmentation(padding, flip, cutout, size)
    require_normalization(mean, std)
    if seed is not None:
        require_seed(seed)
    A = import_albumentations()
    steps = geometry(padding=padding, flip=flip, size=size)
    if cutout:
        hole = {
            "num_holes_range": (1, 1),
            "hole_height_range": (cutout, cutout),
            "hole_width_range": (cutout, cutout),
        }
        colour = tuple(round(255 * m) for m in mean)
        steps.append(A.CoarseDropout(**hole, fill=colour, p=1))
    return normalizing(steps, mean, std, size=size, seed=seed)


def geometry(*, padding: int, flip: float, size: tuple[int, int]) -> list:
    """The first steps of `train_transform`: uint8 (H, W, C) to the same."""
    A = import_albumentations()
    (height, width), steps = size, []
    if padding:
        grown = (height + 2 * padding, width + 2 * padding)
        # 4 is OpenCV's BORDER_REFLECT_101, which doesn't repeat the edge itself.
        steps.append(A.PadIfNeeded(*grown, border_mode=4, p=1))
        steps.append(A.RandomCrop(height, width, p=1))
    if flip:
        steps.append(A.HorizontalFlip(p=flip))
    return steps


def eval_transform(
    *, mean: tuple[float, ...] = CIFAR10_MEAN, std: tuple[float, ...] = CIFAR10_STD
):
    """Normalization alone as an albumentations.Compose: uint8 (H, W, C) to float (C, H, W).

    mean, std: a value a channel, on the [0, 1] scale.

    Raises ModuleNotFoundError without albumentations, ValueError, naming it, for a number
    out of range, and when it is called with an image of another number of channels.
    """
    require_normalization(mean, std)
    return normalizing([], mean, std)


def normalizing(
    steps: list,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    size: tuple[int, int] | None = None,
    seed: int | None = None,
):
    A = import_albumentations()
    from albumentations.pytorch import ToTensorV2

    require = partial(require_shape, size=size, channels=len(mean))
    normalize = A.Normalize(mean=mean, std=std, max_pixel_value=255, p=1)
    check = A.Lambda(image=require, name="require_shape", p=1)  # unnamed, no repr
    steps = [check, *steps, normalize, ToTensorV2(p=1)]
    return A.Compose(steps, seed=seed)


def require_shape(
    image: NDArray[np.uint8], *, size: tuple[int, int] | None, channels: int, **_
) -> NDArray[np.uint8]:
    """The image, if it is (H, W, C) as expected; any H and W where `size` is None."""
    if image.dtype != np.uint8:
        raise ValueError(
            f"the image is {image.dtype} and must be uint8, from 0 to 255; "
            "(255 * image).round().astype(np.uint8) converts one from 0 to 1"
        )
    expected = (*(size or image.shape[:2]), channels)
    if image.shape != expected:
        raise ValueError(
            f"the image is {image.shape} and this transform is for {expected}; "
            "image[..., None] adds one channel, else give the transform a mean and std for "
            "each channel, and train_transform the images' size, (H, W)"
        )
    return image


def import_albumentations():
    """The package, imported where it is used: that takes seconds."""
    # It asks the network for a newer version of itself unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        import albumentations
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; pip install albumentations, or give "
            'make_loaders augment_on="device" (--augment-on device)'
        ) from error

    return albumentations


class Loaders(NamedTuple):
    """Iterables of (images float32 (B, C, H, W), labels int64 (B,)), on the device."""

    train: Loader
    test: Loader


def require_batches(
    train: ImageSet,
    test: ImageSet,
    *,
    batch_size: int,
    seed: int,
    share: tuple[int, int],
) -> None:
    require_whole(batch_size=batch_size)
    require_seed(seed)
    if not 1 <= batch_size <= len(train):
        raise ValueError(
            f"batch_size must be 1 to {len(train):,}, the images in the training set, "
            f"not {batch_size:,}"
        )
    if not len(test):
        raise ValueError("the test set is empty; give it at least one image")
    smallest = min(len(train) % batch_size or batch_size, len(test))
    if not 0 <= share[0] < share[1] <= smallest:
        raise ValueError(
            f"share must be (rank, processes), a rank from 0 and at most {smallest} "
            "processes, as many as the images in the smallest batch and the test set, "
            f"not {share}"
        )


def require_shapes(
    train: ImageSet, test: ImageSet, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    shape = train.images.shape[1:]
    if test.images.shape[1:] != shape:
        raise ValueError(
            f"training images are {shape} and test images {test.images.shape[1:]}; "
            "make them one size"
        )
    if test.classes != train.classes:
        raise ValueError(
            "the training and test sets name different classes, and a label means another "
            "in each; give both the same classes in the same order"
        )
    require_normalization(mean, std)
    if len(mean) != shape[2]:
        raise ValueError(
            f"mean {mean} and std {std} must have a value for each of {shape[2]} "
            "channels; train.mean_std() gives both"
        )


def require_transform(transform, image: NDArray[np.uint8]) -> None:
    if not hasattr(transform, "set_random_seed"):
        raise TypeError(
            f"transform is a {type(transform).__name__}; pass an albumentations.Compose"
        )
    transformed(transform, image.copy())


def make_loaders(
    train: ImageSet,
    test: ImageSet,
    *,
    batch_size: int = 512,
    device: torch.device | str,
    augment_on: Literal["auto", "cpu", "device"] = "auto",
    seed: int = 0,
    padding: int = 4,
    flip: float = 0.5,
    cutout: int = 8,
    mean: tuple[float, ...] = CIFAR10_MEAN,
    std: tuple[float, ...] = CIFAR10_STD,
    transform=None,
    num_workers: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Loaders:
    """Batches for training, shuffled and augmented anew each epoch, and for evaluation.

    The last partial batch is kept. Order and augmentation of a batch are functions of
    (seed, epoch, batch); `train.set_epoch(e)` makes the next pass that of epoch e (from 0),
    and without it each pass is the next epoch.

    augment_on: "cpu" is Albumentations in `num_workers` processes, for training (by
        default up to 8 for a model on CUDA under Linux, otherwise none); "device"
        is whole batches at once where the images then already are, several times as fast
        on a CPU too; "auto" is the device if that is CUDA.
    padding, flip, cutout, mean, std: see `train_transform`.
    transform: an albumentations.Compose of your own, uint8 (H, W, C) to the same, instead
        of padding, flip and cutout, whatever the recipe says of these; "auto" is "cpu"
        then, and its seed is set for each batch. A checkpoint doesn't tell two of them
        apart: give each a file of its own.
    share: (rank, processes) gives this process its part of each batch and of the test
        images, where several train together.

    Raises TypeError for sets and transforms of other kinds, ModuleNotFoundError where
    albumentations is needed and missing, MemoryError where the images don't fit on a GPU
    that is to augment them, and ValueError, naming it, for a number out of
    range, a batch larger than the training set or smaller than the processes that share
    it, a transform that gives something else, and images or classes that differ from one
    set to the other.
    """
    for data in (train, test):
        if not isinstance(data, ImageSet):
            raise TypeError(
                f"make_loaders takes ImageSets, not a {type(data).__name__}; make one of "
                "its arrays, or give fit a DataLoader of your own"
            )
    device = torch.device(device)
    size = train.images.shape[1:3]
    require_batches(train, test, batch_size=batch_size, seed=seed, share=share)
    require_shapes(train, test, mean=mean, std=std)
    if augment_on not in ("auto", "cpu", "device"):
        raise ValueError(f"augment_on must be auto, cpu or device, not {augment_on!r}")
    if augment_on == "auto":
        on_device = device.type == "cuda" and transform is None
        augment_on = "device" if on_device else "cpu"
    # Python's own numbers: a checkpoint holds them, and reads back no NumPy ones. The last
    # digits of a mean depend on the CPU that computed it.
    made_with = {
        name: tuple(round(float(value), 6) for value in values)
        for name, values in (("mean", mean), ("std", std))
    }
    if transform is None:
        require_augmentation(padding, flip, cutout, size)
        numbers = {"padding": int(padding), "flip": float(flip), "cutout": int(cutout)}
        made_with |= numbers
    elif augment_on == "device":
        raise ValueError(
            'a transform works image by image; leave out augment_on="device"'
        )
    else:
        require_transform(transform, train.images[0])
        padding = flip = cutout = 0  # which it stands in for
    augmentation = {"seed": int(seed), "cutout": cutout, "made_with": made_with}
    if augment_on == "device":
        kind = DeviceLoader
        augmentation |= {"padding": padding, "flip": flip}
    else:
        kind = WorkerLoader
        if num_workers is None:
            # Without a fork each would get a copy of all images.
            wanted = device.type == "cuda" and LINUX
            num_workers = min(8, usable_cores()) if wanted else 0
        require_whole(num_workers=num_workers)
        if padding or flip:
            steps = geometry(padding=padding, flip=flip, size=size)
            transform = import_albumentations().Compose(steps)
        augmentation |= {"num_workers": num_workers, "transform": transform}

    def build(data: ImageSet, **options) -> Loader:
        return kind(
            images=data.images,
            labels=data.labels,
            fingerprint=data.fingerprint(),
            batch_size=int(batch_size),
            device=device,
            share=share,
            mean=mean,
            std=std,
            **options,
        )

    return Loaders(build(train, **augmentation), build(test))
