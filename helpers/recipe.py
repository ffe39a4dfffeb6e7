"""What is to be done: every hyperparameter of the experiment, checked."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal


def is_whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least  # True is an int, and not meant


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


COUNT = (lambda v: is_whole(v, 1), "a whole number from 1")
COUNT_OR_ALL = (lambda v: v is None or is_whole(v, 1), "a whole number from 1, or None")
PIXELS = (lambda v: is_whole(v, 0), "a whole number of pixels from 0")
FACTOR = (lambda v: is_number(v) and v >= 1, "a number from 1")


def one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda v: v in names, f"one of {', '.join(names)}")


ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": COUNT,
    "batch_size": COUNT,
    "train_images": COUNT_OR_ALL,
    "test_images": COUNT_OR_ALL,
    "padding": PIXELS,
    "flip": (lambda v: is_number(v) and 0 <= v <= 1, "a probability from 0 to 1"),
    "cutout": PIXELS,
    "optimizer": one_of("adam", "sgd"),
    "weight_decay": (lambda v: is_number(v) and v >= 0, "a number from 0"),
    "label_smoothing": (lambda v: is_number(v) and 0 <= v < 1, "0 to below 1"),
    "logit_scale": (lambda v: is_number(v) and v > 0, "a number above 0"),
    "max_lr": (
        lambda v: v is None or (is_number(v) and v > 0),
        "a number above 0, or None for the range test",
    ),
    "peak_epoch": (lambda v: is_number(v) and v > 0, "a number above 0, below epochs"),
    "anneal": one_of("cos", "linear"),
    "div_factor": FACTOR,
    "final_div_factor": FACTOR,
    "lr_test_steps": (lambda v: is_whole(v, 10), "a whole number from 10"),
    "lr_test_seeds": COUNT,
    "precision": one_of("auto", "float32", "bfloat16", "float16"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every hyperparameter of the experiment; the defaults are the assignment's.

    It can't be changed: `dataclasses.replace(recipe, epochs=12)` makes another.

    epochs: passes over the training images.
    batch_size: images per step.
    train_images, test_images: how many of the images are used, each class's share; None for
        all. (`fit` leaves that to whoever makes its loaders: `ImageSet.subset` takes as
        many.)
    padding: pixels by which a random crop moves an image, either way.
    flip: probability of a horizontal flip.
    cutout: side of the square hole, in pixels; 0 for none.
    optimizer: adam, or sgd for stochastic gradient descent with Nesterov momentum 0.9.
    weight_decay: adam shrinks each weight, but nothing of one dimension, as biases and all
        of BatchNorm are, by this times the learning rate at each step; sgd adds this times
        each parameter to its gradient.
    label_smoothing: the share of each label that is spread evenly over all classes.
    logit_scale: what the network multiplies its outputs by.
    max_lr: the learning rate at the peak of the cycle; None for the range test's.
    peak_epoch: the epoch at whose end the learning rate peaks; fractions are allowed.
    anneal: the shape of the cycle's two flanks, cos or linear.
    div_factor: max_lr over the learning rate of the first step.
    final_div_factor: learning rate of the first step over that of the last.
    lr_test_steps: steps of each range test.
    lr_test_seeds: number of range tests, each beginning with other batches.
    precision: what convolutions and matrix products compute in; auto for the fastest
        that the device has in hardware; float16 is for GPUs, as CPUs are many times slower
        in it. In float32, newer GPUs convolve in TF32, with 10 bits of mantissa, unless
        torch is told otherwise.

    Raises ValueError, naming field, value and what is allowed.
    """

    epochs: int = 24
    batch_size: int = 512
    train_images: int | None = None
    test_images: int | None = None
    padding: int = 4
    flip: float = 0.5
    cutout: int = 8
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0
    label_smoothing: float = 0
    logit_scale: float = 1
    max_lr: float | None = None
    peak_epoch: float = 5
    anneal: Literal["cos", "linear"] = "cos"
    div_factor: float = 25
    final_div_factor: float = 10_000
    lr_test_steps: int = 100
    lr_test_seeds: int = 3
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        for name, (allows, allowed) in ALLOWED.items():
            value = getattr(self, name)
            if not allows(value):
                # A checkpoint holds the recipe, and reads back no NumPy numbers.
                remedy = "; try its .item()" if hasattr(value, "item") else ""
                raise ValueError(f"{name} must be {allowed}, not {value!r}{remedy}")
        if self.peak_epoch >= self.epochs:
            raise ValueError(
                f"peak_epoch is {self.peak_epoch} and must be below epochs, which is "
                f"{self.epochs}; lower peak_epoch, to {self.epochs / 4:g} say"
            )

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Recipe":
        """The Recipe in a run's record.

        Raises ValueError for that of a version whose recipes had other fields.
        """
        had, has = record["recipe"].keys(), {field.name for field in fields(cls)}
        if differing := sorted(had ^ has):
            raise ValueError(
                f"the record is of another version, as not both its recipe and this one's "
                f"have {', '.join(differing)}; use the version that wrote it"
            )
        return cls(**record["recipe"])

    @property
    def augmentation(self) -> dict[str, float]:
        """The fields that make_loaders and train_transform take by keyword."""
        return {"padding": self.padding, "flip": self.flip, "cutout": self.cutout}


PROFILES = {
    # The assignment, for a GPU; two CPU cores take hours.
    "full": Recipe(),
    # The same story for two CPU cores: within ten minutes on newer ones.
    "quick": Recipe(
        epochs=8,
        batch_size=128,
        train_images=5_000,
        test_images=2_000,
        peak_epoch=2,
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

# How it is trained, whatever the profile: the fields that differ from Recipe's defaults.
RECIPES: dict[str, dict[str, Any]] = {
    # Random crop, flip, one square hole, Adam, one cycle.
    "assignment": {},
    # What the assignment's report describes: no hole.
    "reported": {"cutout": 0},
    # David Page's "How to Train Your ResNet", as in dawn.py of his cifar10-fast. There the
    # loss is summed over the batch, the learning rate divided by the batch size and the
    # decay multiplied by it: with a mean, both are the same numbers for any batch size.
    # His rate starts from 0 and has risen by one step's worth at the first: div_factor is
    # the number of steps of 5 epochs of 98. (His have 97, without the partial batch.)
    "page": {
        "optimizer": "sgd",
        "weight_decay": 5e-4,
        "logit_scale": 0.125,
        "max_lr": 0.4,
        "anneal": "linear",
        "div_factor": 490,
    },
    # The assignment's, and what has gained on images held out: see results/LOG.md.
    "ours": {"weight_decay": 0.2, "label_smoothing": 0.1, "logit_scale": 0.125},
}
