"""CIFAR-10, from the disk (or the network) to augmented batches on the device."""

import errno
import functools
import os
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from helpers.image_set import ImageSet, require_seed, require_whole
from helpers.loaders import (
    LINUX,
    DeviceLoader,
    Loader,
    WorkerLoader,
    transformed,
    usable_cores,
)
from helpers.optional import optional
from helpers.transforms import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    eval_transform,
    geometry,
    import_albumentations,
    require_augmentation,
    require_normalization,
    train_transform,
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


SYNTHETIC = "synthetic images, not CIFAR-10"  # what is drawn says so of itself


class DatasetUnavailable(OSError):
    """Nothing on the disk and nothing from the network; the message says what to do."""


# --------------------------------------------------------------------------------------
# From the disk or the network
# --------------------------------------------------------------------------------------


def load_cifar10(
    root: str | os.PathLike, *, download: bool = True
) -> tuple[ImageSet, ImageSet]:
    """The 50,000 training and 10,000 test images (Krizhevsky, 2009), in official order.

    Images are uint8 (N, 32, 32, 3), labels int64 (N,).

    Looks in `root` for the official batches (each file's MD5 is checked), then for an
    image folder train/<class>/*, test/<class>/* of 32×32 PNG or JPEG files named so that
    sorting them by name gives the order, then for the archive. Where there is none of
    these, the archive is downloaded, or with download=False DatasetUnavailable is raised.
    Where several processes find nothing, one downloads, and the others wait. How many
    images an image folder has isn't checked.

    Nothing is written where the batches or the image folder are there. Batches that fail
    their MD5 are passed over, and kept beside those that the archive then gives.

    Raises DatasetUnavailable where nothing is there and nothing can be downloaded or
    written, ValueError, naming it, for a root that is a file or the batches' own folder and
    for an image folder that is not as described, and, where no image folder is read,
    ModuleNotFoundError without torchvision.
    """
    root = Path(root).expanduser()
    if root.exists() and not root.is_dir():
        raise ValueError(
            f"{root} is a file; name the folder the dataset is in or goes to"
        )
    if (official := read_batches(root)) is not None:
        return official
    if (root / "data_batch_1").is_file():
        raise ValueError(
            f"{root} holds the batches themselves; name the folder that has "
            "cifar-10-batches-py in it"
        )
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
    with optional("torchvision"):  # takes seconds, which an image folder doesn't need
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
    with optional("torchvision"):  # which is to read it: missed before a download
        import torchvision  # noqa: F401
    try:
        with net.locked(archive):
            # Another process may have made them since; what else is there is said already.
            with warnings.catch_warnings(action="ignore"):
                made = read_batches(root)
            if made is None:
                asked = {"md5": net.ARCHIVE_MD5, "size": net.ARCHIVE_BYTES}
                net.download(net.ARCHIVE_URLS, archive, **asked)
                net.extract(archive, root, "cifar-10-batches-py")
    except OSError as error:  # the network, or a disk that is full or can't be written
        reason = error.strerror or str(error)
        # A dataset's folder, as on Kaggle? Then it is another one's.
        refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if refused and not archive.exists():
            reason += f"; nothing of CIFAR-10 was found in {root}"
        raise DatasetUnavailable(reason) from error
    return made or read_batches(root)


def synthetic_cifar10(
    *, train: int = 50_000, test: int = 10_000, seed: int = 0
) -> tuple[ImageSet, ImageSet]:
    """Drawn images in the shape of CIFAR-10, from no file and no network.

    train, test: how many.

    Ten classes of shape, colour and texture, learnable but not at a glance; the same seed
    draws the same images. Raises ValueError, naming it, for a number that won't do.
    """
    from helpers.synthetic import CLASSES, draw

    require_whole(train=train, test=test)
    if min(train, test) < 0:
        raise ValueError(f"train and test must be 0 or more, not {train} and {test}")
    require_seed(seed)
    # Two streams, so that the number of training images does not alter the test set.
    streams = np.random.default_rng(seed).spawn(2)
    sets = []
    for size, rng in zip((train, test), streams, strict=True):
        labels = np.arange(size) % len(CLASSES)
        rng.shuffle(labels)
        images = draw(labels, rng)
        sets.append(ImageSet(images, labels, CLASSES, SYNTHETIC))
    return sets[0], sets[1]


def load_or_draw(
    root: str | os.PathLike | None, *, train_images: int | None, test_images: int | None
) -> tuple[ImageSet, ImageSet, str | None]:
    """(train, test, None) of CIFAR-10, or (train, test, reason) of synthetic images.

    train_images, test_images: how many, None for as many as CIFAR-10 has. Images are drawn
    where `root` is None or the word synthetic, or `load_cifar10` raises
    DatasetUnavailable; what else it or `ImageSet.subset` raises is raised here too.
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
# To batches
# --------------------------------------------------------------------------------------


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
            "share must be (rank, processes), rank from 0 to processes - 1 and at most "
            f"{smallest} processes, so that each has an image of each batch and of the "
            f"test set, not {share}"
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
            f"transform is a {type(transform).__name__} that isn't Albumentations'; pass an "
            "albumentations.Compose, or use torchvision's in a DataLoader of your own"
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

    A batch is normalized images, float32 (B, C, H, W), and labels, int64 (B,).
    The last partial batch is kept. Order and augmentation of a batch are functions of
    (seed, epoch, batch); `loaders.train.set_epoch(e)` on what is returned makes the next
    pass that of epoch e (from 0), and without it each pass is the next epoch.

    augment_on: "cpu" is Albumentations, image by image, for training in `num_workers`
        processes (by default up to 8 for a model on CUDA under Linux, otherwise none);
        "device" keeps the images on the device and augments whole batches in this process,
        several times as fast on a CPU too; "auto" is "device" on CUDA, else "cpu".
    padding, flip, cutout, mean, std: see `train_transform`.
    transform: an albumentations.Compose of your own, uint8 (H, W, C) to the same, instead
        of padding, flip and cutout, whatever the recipe says of these; "auto" is "cpu"
        then, and its seed is set for each batch. A checkpoint doesn't tell two of them
        apart: give each a file of its own.
    share: (rank, processes) gives this process its part of each batch and of the test
        images, where several train together.

    Where workers augment, a loader serves one pass at a time: one that was broken into by
    another raises RuntimeError.

    Raises TypeError for sets and transforms of other kinds, ModuleNotFoundError where
    albumentations is needed and missing, MemoryError where the images don't fit on a GPU
    that is to augment them, and ValueError, naming it, for a number out of range, an
    augment_on that isn't one of the three or that the transform excludes, an empty test
    set, a batch larger than the training set or smaller than the processes that share it,
    a transform that gives something else, and images or classes that differ from one set
    to the other.
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
    if num_workers is not None:
        require_whole(num_workers=num_workers)
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
        padding, flip, cutout = int(padding), float(flip), int(cutout)
        made_with |= {"padding": padding, "flip": flip, "cutout": cutout}
    elif augment_on == "device":
        raise ValueError(
            'a transform works image by image; leave out augment_on="device"'
        )
    else:
        require_transform(transform, train.images[0])
        padding = flip = cutout = 0  # which it stands in for
    for_training = {"seed": int(seed), "cutout": cutout, "made_with": made_with}
    if augment_on == "device":
        kind = DeviceLoader
        for_training |= {"padding": padding, "flip": flip}
    else:
        kind = WorkerLoader
        if num_workers is None:
            # Without a fork each would get a copy of all images.
            wanted = device.type == "cuda" and LINUX
            num_workers = min(8, usable_cores()) if wanted else 0
        if padding or flip:
            steps = geometry(padding=padding, flip=flip, size=size)
            transform = import_albumentations().Compose(steps)
        for_training |= {"num_workers": num_workers, "transform": transform}

    def build(data: ImageSet, **options) -> Loader:
        return kind(
            images=data.images,
            labels=data.labels,
            fingerprint=data.fingerprint(),
            num_classes=len(data.classes),
            batch_size=int(batch_size),
            device=device,
            share=share,
            mean=mean,
            std=std,
            **options,
        )

    return Loaders(build(train, **for_training), build(test))
