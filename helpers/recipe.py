"""What is to be done: every hyperparameter of the experiment, checked."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


def is_whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least  # True is an int, and not meant


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


COUNT = (lambda v: is_whole(v, 1), "a whole number from 1")
COUNT_OR_ALL = (lambda v: v is None or is_whole(v, 1), "a whole number from 1, or None")
PIXELS = (lambda v: is_whole(v, 0), "a whole number of pixels from 0")
FACTOR = (lambda v: is_number(v) and v >= 1, "a number from 1")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": COUNT,
    "batch_size": COUNT,
    "train_images": COUNT_OR_ALL,
    "test_images": COUNT_OR_ALL,
    "padding": PIXELS,
    "flip": (lambda v: is_number(v) and 0 <= v <= 1, "a probability from 0 to 1"),
    "cutout": PIXELS,
    "max_lr": (
        lambda v: v is None or (is_number(v) and v > 0),
        "a number above 0, or None for the range test",
    ),
    "peak_epoch": (lambda v: is_number(v) and v > 0, "a number above 0, below epochs"),
    "div_factor": FACTOR,
    "final_div_factor": FACTOR,
    "lr_test_steps": (lambda v: is_whole(v, 10), "a whole number from 10"),
    "lr_test_seeds": COUNT,
    "precision": (lambda v: v in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every hyperparameter of the experiment; the defaults are the assignment's.

    epochs: passes over the training images.
    batch_size: images a step.
    train_images, test_images: how many of the images are used; None for all.
    padding: pixels by which a random crop moves an image, either way.
    flip: probability of a horizontal flip.
    cutout: side of the square hole, in pixels; 0 for none.
    max_lr: Adam's learning rate at the peak of the cycle; None for the range test's.
    peak_epoch: the epoch at whose end the learning rate peaks; fractions are allowed.
    div_factor: max_lr over the learning rate of the first step.
    final_div_factor: learning rate of the first step over that of the last.
    lr_test_steps: steps of each range test.
    lr_test_seeds: number of range tests, each on other batches.
    precision: what convolutions and matrix products compute in; auto for the fastest
        that the device has in hardware.

    Raises ValueError, naming field, value and what is allowed.
    """

    epochs: int = 24
    batch_size: int = 512
    train_images: int | None = None
    test_images: int | None = None
    padding: int = 4
    flip: float = 0.5
    cutout: int = 8
    max_lr: float | None = None
    peak_epoch: float = 5
    div_factor: float = 25
    final_div_factor: float = 10_000
    lr_test_steps: int = 100
    lr_test_seeds: int = 3
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        for name, (allows, allowed) in ALLOWED.items():
            value = getattr(self, name)
            if not allows(value):
                raise ValueError(f"{name} must be {allowed}, not {value!r}")
        if self.peak_epoch >= self.epochs:
            raise ValueError(
                f"peak_epoch must be below epochs, which is {self.epochs}, "
                f"not {self.peak_epoch}"
            )

    @property
    def augmentation(self) -> dict[str, float]:
        """The fields that make_loaders and train_transform take by keyword."""
        return {"padding": self.padding, "flip": self.flip, "cutout": self.cutout}


PROFILES = {
    # The assignment, for a GPU; on two CPU cores it takes hours.
    "full": Recipe(),
    # The same story for two CPU cores: 7 minutes where they have bfloat16 instructions.
    "quick": Recipe(
        epochs=16,
        batch_size=128,
        train_images=5_000,
        test_images=2_000,
        peak_epoch=4,
        lr_test_steps=60,
        lr_test_seeds=2,
    ),
    # Does everything run? On synthetic images, in seconds.
    "smoke": Recipe(
        epochs=3,
        batch_size=32,
        train_images=320,
        test_images=100,
        peak_epoch=1,
        lr_test_steps=12,
        lr_test_seeds=2,
    ),
}
