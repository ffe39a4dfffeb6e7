"""What several test files share: the smallest training, ways to run and ways to fail."""

import dataclasses
import errno
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import dataset, train_test
from helpers.train_test import Recipe

PROJECT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
FIELDS = [field.name for field in dataclasses.fields(Recipe)]
# 40 to train on, two batches of 16 and one of 8; 23 to test on, which 2 and 3 processes
# share unevenly.
IMAGES = dataset.synthetic_cifar10(train=40, test=23)


# --- the smallest training -------------------------------------------------------------


def network(*, seed=0, dropout=0.0, norm=True):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8 * 4 * 4, 10),
    )


class Around(nn.Module):
    """network(), and what becomes of its answer."""

    def __init__(self, then):
        super().__init__()
        self.inner, self.then = network(), then

    def forward(self, x):
        return self.then(self.inner(x))


# Tiny networks learn at any rate that is tried, so that their range tests warn.
undiverged = pytest.mark.filterwarnings("ignore:the range test saw no divergence")


# In each field another value than those below.
OTHER = {
    "epochs": 2,
    "batch_size": 32,
    "train_images": 96,
    "test_images": 30,
    "padding": 1,
    "flip": 0.25,
    "cutout": 3,
    "optimizer": "sgd",
    "weight_decay": 0.001,
    "label_smoothing": 0.1,
    "logit_scale": 0.5,
    "max_lr": 0.02,
    "peak_epoch": 0.75,
    "anneal": "linear",
    "div_factor": 5.5,
    "final_div_factor": 100,
    "lr_test_steps": 10,
    "lr_test_seeds": 1,
    "precision": "bfloat16",
}


def recipe(**changes):
    tiny = {
        "epochs": 3,
        "batch_size": 16,
        "peak_epoch": 1,
        "max_lr": 0.01,
        "lr_test_steps": 30,
        "lr_test_seeds": 2,
        "precision": "float32",
    }
    return Recipe(**{**tiny, **changes})


def bytes_in_memory():
    import resource  # Windows has none

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def steep(seed=0):
    """Whose gradients overflow float16 at 65,536: the first steps halve its scale."""
    model = Around(lambda logits: 100 * logits)
    model.inner = network(seed=seed)
    return model


def generators():
    """The states of Python's, NumPy's and torch's."""
    numpy = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        (numpy[0], numpy[1].tolist(), *numpy[2:]),
        random.getstate(),
    )


def within(record, part, **changes):
    """The record with other values in its recipe, say."""
    return {**record, part: {**record[part], **changes}}


def noise(count=40):
    """Images (N, 3, 8, 8) and labels (N,) that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (count,), generator=generator)
    return torch.randn(count, 3, 8, 8, generator=generator), labels


def batches(*sizes):
    """A loader that is a list."""
    images, labels = noise(sum(sizes))
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def loaders(*, on="device", seed=0, workers=0, device=CPU, **options):
    """IMAGES, augmented."""
    return dataset.make_loaders(
        *IMAGES,
        batch_size=16,
        device=device,
        augment_on=on,
        seed=seed,
        num_workers=workers,
        **options,
    )


def fit(model, pair, recipe, **options):
    return train_test.fit(model, pair, recipe, device=CPU, **options)


class Tiny(nn.Sequential):
    """One that models.MODELS can hold."""

    def __init__(self, *, num_classes=10, in_channels=3, logit_scale=1):
        super().__init__(
            nn.Conv2d(in_channels, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(8 * 4 * 4, num_classes),
        )
        self.logit_scale = logit_scale


# --- what a second run can repeat ------------------------------------------------------


def untimed(epochs):
    """The numbers of each epoch, of a history or of a record's, but for its times."""
    rows = [row if isinstance(row, dict) else row._asdict() for row in epochs]
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def repeatable(history):
    return history.max_lr, history.learning_rates, untimed(history.epochs)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# --- failures --------------------------------------------------------------------------


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def raising(error):
    """A function of any arguments, which raises this."""

    def refuse(*_, **__):
        raise error

    return refuse


class Failing:
    """A loader like `inner` that does `failure` instead of a batch, in one epoch.

    Epochs and batches count from 0.
    """

    def __init__(self, inner, failure, *, epoch, batch=1):
        self.inner, self.failure, self.at, self.batch = inner, failure, epoch, batch
        self.epoch = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __len__(self):
        return len(self.inner)

    def set_epoch(self, epoch):
        self.epoch = epoch
        if hasattr(self.inner, "set_epoch"):
            self.inner.set_epoch(epoch)

    def __iter__(self):
        now, self.epoch = self.epoch, self.epoch + 1
        for number, (images, labels) in enumerate(self.inner):
            if (now, number) == (self.at, self.batch):
                images = self.failure(images)
            yield images, labels


class Interrupted(Exception):
    pass


interrupt = raising(Interrupted)


def break_off(path, plan=None, *, epoch=1, dropout=0.0, **how):
    """Interrupt a training in this epoch, counted from 0; return its checkpoint."""
    train, test = loaders(**how)
    pair = Failing(train, interrupt, epoch=epoch), test
    with pytest.raises(Interrupted):
        fit(network(dropout=dropout), pair, plan or recipe(), checkpoint=path)
    return path


# --- programs --------------------------------------------------------------------------


def python(*arguments, check=False, cwd=PROJECT, **options):
    """Run it as one would by hand; what it prints is kept."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=check, **options
    )
