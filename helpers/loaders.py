"""Batches, made in one of two places; dataset.make_loaders chooses which."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

LINUX = sys.platform == "linux"  # elsewhere a fork isn't safe, or there is none
# Of a batch: the seed of its draws, and which images.
Key = tuple[int, NDArray[np.int64]]


@dataclass(kw_only=True, eq=False, repr=False)
class Loader:
    """One pass is one epoch of (images float32 (B, C, H, W), labels int64 (B,)).

    With a seed, order and augmentation are functions of (seed, epoch, batch): a pass can
    be repeated by its number, in any process. Without one, the images come as they are.

    Training needs an iterable with a length, and reads of these what a loader has:

    share: this process's number and how many share each batch; batch_sizes: images of each
        batch in all shares together.
    epoch: that of the next pass; set_epoch(epoch) changes it.
    seed, fingerprint (of the images), made_with (what is done to them, by make_loaders'
        names): must be the same where a training goes on; a change of augment_on
        is warned of.
    batch_size, count (of images), made_with: are compared with the recipe.
    num_classes: is compared with the model's outputs, of which it should have no more.
    label_range: lowest and highest of all, as an order by class hides some from the first
        batch.
    shuffles (a bool): whether each pass has an order of its own; `predict` warns if it has,
        `fit` if that of the training images hasn't.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    batch_size: int
    device: torch.device
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    num_classes: int
    seed: int | None = None
    share: tuple[int, int] = (0, 1)
    cutout: int = 0
    epoch: int = 0
    made_with: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.count = len(self.labels)
        self.label_range = int(self.labels.min()), int(self.labels.max())
        # A CPU subtracts and divides long rows of one type 10 times as fast as triples.
        width = self.images.shape[2]
        self.mean_row, self.std_row = (
            255
            * torch.as_tensor(value, dtype=torch.float32, device=self.device).repeat(
                width
            )
            for value in (self.mean, self.std)
        )

    @property
    def shuffles(self) -> bool:
        """Whether each pass has an order of its own."""
        return self.seed is not None

    @property
    def batch_sizes(self) -> list[int]:
        """Images of each batch, in all processes' shares together."""
        whole, rest = divmod(self.count, self.batch_size)
        sizes = [self.batch_size] * whole
        return [*sizes, rest] if rest else sizes

    def parts(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """This process's share of each batch of the images in `order`.

        In evaluation its batches are a stretch of the images, so that all processes'
        answers, one after the other, are in order.
        """
        rank, processes = self.share
        if self.seed is None:
            order, rank, processes = np.array_split(order, processes)[rank], 0, 1
        batches = np.split(order, range(self.batch_size, len(order), self.batch_size))
        return [np.array_split(batch, processes)[rank] for batch in batches]

    def __len__(self) -> int:
        """Batches in an epoch, each counted once for all processes."""
        return len(self.batch_sizes)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of `epoch`, counted from 0."""
        self.epoch = epoch

    def start_epoch(self) -> np.random.Generator | None:
        """The random stream of the epoch that begins, which the next pass won't repeat."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        return None if self.seed is None else np.random.default_rng((self.seed, epoch))

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, C) to float32 (B, C, H, W), which thereby is channels-last."""
        batch, height, width, channels = images.shape
        rows = images.reshape(batch, height, -1).float()
        rows = rows.sub_(self.mean_row).div_(self.std_row)
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def cut_out(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Normalized images, each with its hole at top and left (B,) of the mean colour."""
        if self.cutout:
            side = torch.arange(self.cutout, device=self.device)
            rows, columns = (edge[:, None] + side for edge in (top, left))
            every = torch.arange(len(images), device=self.device)[:, None, None]
            # A plain 0 would be copied to the device, and the host would wait for it.
            nothing = images.new_zeros(())
            images[every, :, rows[:, :, None], columns[:, None, :]] = nothing
        return images


@dataclass(kw_only=True, eq=False, repr=False)
class DeviceLoader(Loader):
    """Keeps the uint8 images on the device and augments whole batches there."""

    augment_on: ClassVar = "device"
    padding: int = 0
    flip: float = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        # torch would warn of read-only arrays, a memory map say: np.require copies those.
        try:
            self.images, self.labels = (
                torch.from_numpy(np.require(array, requirements="W")).to(self.device)
                for array in (self.images, self.labels)
            )
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"{self.images.nbytes / 1e9:.1f} GB of images don't fit into the memory of "
                f'{self.device}; augment_on="cpu" keeps them in main memory'
            ) from error

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = self.start_epoch()
        # An epoch's order, draws and places are some 30 MB: made at once, so that no batch
        # waits for a copy, and a GPU doesn't start a dozen tiny kernels for each.
        parts = self.parts(np.arange(self.count))
        sizes, mine = [len(part) for part in parts], np.concatenate(parts)
        if rng is None:
            for i in torch.from_numpy(mine).to(self.device).split(sizes):
                yield self.normalized(self.images[i]), self.labels[i]
            return
        order = torch.from_numpy(rng.permutation(self.count)[mine]).to(self.device)
        draws = torch.from_numpy(self.draw(rng)[:, mine]).to(self.device)
        down, right, flip, top, left = draws
        epoch = (order, *self.places(order, down, right, flip), top, left)
        for i, *drawn in zip(*(part.split(sizes) for part in epoch), strict=True):
            yield self.augmented(*drawn), self.labels[i]

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """For each image: moves down and right, flipped or not, hole's top and left."""
        height, width = self.images.shape[1:3]
        move = rng.integers(-self.padding, self.padding + 1, (2, self.count))
        flip = rng.random((1, self.count)) < self.flip
        holes = draw_holes(rng, self.count, self.cutout, (height, width))
        return np.concatenate([move, flip, holes])

    def places(
        self, order: Tensor, down: Tensor, right: Tensor, flip: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where the images of `order` (N,), moved and flipped, take their pixels from.

        Of each, the rows' first pixels (N, H), counted through all images, and the columns
        (N, W): padding, cropping and flipping are a choice of pixels.
        """
        height, width = self.images.shape[1:3]
        y = torch.arange(height, device=self.device)
        x = torch.arange(width, device=self.device)
        rows = reflected(y + down[:, None], height)
        columns = reflected(x + right[:, None], width)
        columns = torch.where(flip[:, None] > 0, columns.flip(1), columns)
        return (order[:, None] * height + rows) * width, columns

    def augmented(
        self, rows: Tensor, columns: Tensor, top: Tensor, left: Tensor
    ) -> Tensor:
        """The images of a batch's places (B, H), (B, W), with their holes at (B,), (B,)."""
        pixels = rows[:, :, None] + columns[:, None, :]
        images = self.images.flatten(0, 2).index_select(0, pixels.flatten())
        images = self.normalized(images.view(*pixels.shape, -1))
        return self.cut_out(images, top, left)


def usable_cores() -> int:
    """How many CPU cores this process may use: a job's share of a machine, say.

    Where torchrun started several processes on this machine, they divide them.
    """
    allowed = getattr(os, "sched_getaffinity", None)  # Linux has it
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def reflected(index: Tensor, size: int) -> Tensor:
    """Indices beyond 0..size-1, mirrored at the first and the last one."""
    return size - 1 - (size - 1 - index.abs()).abs()


def draw_holes(
    rng: np.random.Generator, count: int, cutout: int, size: tuple[int, int]
) -> NDArray[np.int64]:
    """Tops and lefts (2, count) of holes that lie wholly inside."""
    edges = [rng.integers(0, side - cutout + 1, count) for side in size]
    return np.stack(edges)


def transformed(transform: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What an albumentations transform makes of an image, if that is another like it."""
    given = transform(image=image)["image"]
    if not isinstance(given, np.ndarray | Tensor):
        raise TypeError(
            f"transform makes a {type(given).__name__} of an image; return the image"
        )
    if given.dtype != np.uint8:
        remedy = "leave Normalize and ToTensorV2 out, as whole batches are normalized"
    elif given.shape != image.shape:
        remedy = "crop or resize to that size"
    else:
        return given
    raise ValueError(
        f"transform makes {given.dtype} {tuple(given.shape)} of an image, which is "
        f"uint8 {image.shape}, and must keep that; {remedy}"
    )


@dataclass
class Batches(Dataset):
    """A dataset whose items are whole batches, asked for by a Key.

    An item is (images uint8 (B, H, W, C), labels (B,), tops and lefts of holes (2, B)).
    One seed per batch makes it independent of the worker that computes it; a seed per image
    would cost as much as augmenting it.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    transform: Any
    cutout: int

    def __getitem__(self, item: Key) -> tuple[Tensor, Tensor, Tensor]:
        seed, indices = item
        images, size = self.images[indices], self.images.shape[1:3]
        if self.transform:
            self.transform.set_random_seed(seed)
            images = np.stack([transformed(self.transform, one) for one in images])
        holes = draw_holes(np.random.default_rng(seed), len(indices), self.cutout, size)
        return tuple(map(torch.from_numpy, (images, self.labels[indices], holes)))


@dataclass(kw_only=True, eq=False, repr=False)
class WorkerLoader(Loader):
    """Applies an albumentations transform to each image, in `num_workers` processes.

    transform: uint8 to uint8; None leaves the images as they are. Whole batches are
    normalized and get their holes on the device: image by image that takes longer than
    all the rest.
    """

    augment_on: ClassVar = "cpu"
    transform: Any = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.passes = 0
        # Not this loader itself: in a circle, the workers would outlive it.
        self.key_sampler = KeySampler()
        self.loader = DataLoader(
            Batches(self.images, self.labels, self.transform, self.cutout),
            batch_size=None,  # an item is a batch already
            sampler=self.key_sampler,
            num_workers=self.num_workers,
            # Otherwise Python 3.14 would send each of them a copy of all images.
            multiprocessing_context="fork" if self.num_workers and LINUX else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_interrupts,
            # Otherwise torch's global one, at moments that an interruption changes.
            generator=torch.Generator().manual_seed((self.seed or 0) % 2**64),
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.key_sampler.keys = list(self.keys())
        self.passes += 1
        current = self.passes
        # A default device of torch's would be asked for random numbers, of our generator.
        with torch.device("cpu"):
            batches = iter(self.loader)
        for number, batch in enumerate(batches, start=1):
            images, labels, holes = (
                part.to(self.device, non_blocking=self.device.type == "cuda")
                for part in batch  # elsewhere its memory may be reused before the copy ends
            )
            yield self.cut_out(self.normalized(images), *holes), labels
            over = not self.num_workers or number == len(self.key_sampler.keys)
            if self.passes != current and not over:
                raise RuntimeError(
                    "another pass over this loader has begun, and its workers serve one at "
                    "a time; end one before the next, or make a loader for each"
                )

    def keys(self) -> Iterator[Key]:
        """What the workers are asked for in the epoch that begins."""
        rng = self.start_epoch()
        order = np.arange(self.count) if rng is None else rng.permutation(self.count)
        for part in self.parts(order):
            # The shares of a batch are augmented each in its own way.
            seed = 0 if rng is None else int(rng.integers(2**32)) + self.share[0]
            yield seed % 2**32, part


def ignore_interrupts(worker: int) -> None:
    """A stop button's SIGINT reaches the workers too, which later passes still need."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class KeySampler:
    """The keys of the pass that begins, for a DataLoader that lasts for many."""

    keys: Sequence[Key] = ()

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)
