"""The augmentation, image by image, with Albumentations.

Reflect-pad by `padding` pixels, crop back to the image's size, flip, put one square hole of
the mean colour wholly inside, normalize. Each image draws for itself. loaders.py does the
same to whole batches.
"""

import os
from functools import partial
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from helpers.image_set import require_seed, require_whole
from helpers.optional import optional

# Over all pixels of the 50,000 training images, on the [0, 1] scale. The often copied
# std (0.2023, 0.1994, 0.2010) is the mean of each image's own std, which is smaller.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


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
    if not isinstance(flip, Real) or not 0 <= flip <= 1:
        raise ValueError(f"flip must be a probability from 0 to 1, not {flip!r}")
    if not 0 <= cutout < side:  # nothing would be left of the image
        raise ValueError(
            f"cutout must be 0 to {side - 1} pixels, not {cutout}, for images of "
            f"{size[0]}×{size[1]} pixels"
        )


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
    """The augmentation as an albumentations.Compose, called as transform(image=image).

    It takes uint8 (H, W, C) and gives {"image": a float32 torch tensor (C, H, W)}: padded
    by reflection and cropped, flipped, with a hole of the mean colour (cutout: DeVries and
    Taylor, 2017, whose holes may reach over the edge, these don't), normalized, in this
    order.

    padding: pixels by which a crop can move the image, either way.
    flip: probability of a horizontal flip.
    cutout: side of the hole in pixels, 0 for none.
    size: (H, W), of the images, `images.shape[1:3]`.
    mean, std: a value per channel, on the [0, 1] scale.
    seed: of its draws, as global seeds don't reach albumentations; None for a new one each
        time. In a DataLoader all workers draw alike, and alike in each epoch, unless its
        worker_init_fn calls the transform's
        `set_random_seed(torch.initial_seed() % 2**32)`. `make_loaders` needs no such care.

    Raises ModuleNotFoundError without albumentations, ValueError, naming it, for a number
    out of range, and when it is called with what isn't uint8 or has another size or number
    of channels, TypeError then for what is no NumPy array (np.asarray(picture) makes one).
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
    """Normalization alone as an albumentations.Compose, called as transform(image=image).

    It takes uint8 (H, W, C) and gives {"image": a float32 torch tensor (C, H, W)}.

    mean, std: a value per channel, on the [0, 1] scale.

    Raises ModuleNotFoundError without albumentations, ValueError, naming it, for a number
    out of range, and when it is called with what isn't uint8 or has another number of
    channels, TypeError then for what is no NumPy array (np.asarray(picture) makes one).
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
            "(255 * image).round().clip(0, 255).astype(np.uint8) converts one from 0 to 1"
        )
    expected = (*(size or image.shape[:2]), channels)
    if image.ndim == 3 and image.shape[0] == channels != image.shape[2]:
        raise ValueError(
            f"the image is {image.shape} and must be (H, W, C); image.transpose(1, 2, 0) "
            "turns it"
        )
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
    instead = ', or give make_loaders augment_on="device" (--augment-on device)'
    with optional("albumentations", instead):
        import albumentations

    return albumentations
