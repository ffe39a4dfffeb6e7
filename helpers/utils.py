"""Seeds, device, accuracy by class, calibration, mistakes, records, every figure.

The `plot_*` return a Matplotlib Figure that pyplot knows nothing of: a notebook shows it as
a cell's last line or by `display(figure)`, and `figure.savefig(path)` makes a file of it.
"""

import contextlib
import importlib.metadata
import operator
import os
import platform
import random
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers import __version__
from helpers.figures import (
    plot_augmentations,
    plot_calibration,
    plot_class_accuracy,
    plot_confusion_matrix,
    plot_history,
    plot_learning_rate,
    plot_lr_range_test,
    plot_max_lr,
    plot_misclassified,
    plot_samples,
)
from helpers.measures import (
    CalibrationBin,
    ClassAccuracy,
    Confusion,
    Mistake,
    calibration,
    class_accuracy,
    confusion_matrix,
    denormalize,
    expected_calibration_error,
    misclassified,
    most_confused,
)
from helpers.records import (
    describe_record,
    read_record,
    read_records,
    write_record,
)
from helpers.tables import (
    class_results_markdown,
    receptive_field_markdown,
    results_markdown,
)

__all__ = [
    "CalibrationBin",
    "ClassAccuracy",
    "Confusion",
    "Mistake",
    "banner",
    "calibration",
    "class_accuracy",
    "class_results_markdown",
    "confusion_matrix",
    "denormalize",
    "describe_record",
    "describe_run",
    "device_name",
    "expected_calibration_error",
    "get_device",
    "misclassified",
    "most_confused",
    "plot_augmentations",
    "plot_calibration",
    "plot_class_accuracy",
    "plot_confusion_matrix",
    "plot_history",
    "plot_learning_rate",
    "plot_lr_range_test",
    "plot_max_lr",
    "plot_misclassified",
    "plot_samples",
    "read_record",
    "read_records",
    "receptive_field_markdown",
    "results_markdown",
    "set_seed",
    "versions",
    "write_record",
]


def set_seed(seed: int) -> None:
    """Seed Python, NumPy's global generator and PyTorch on every device.

    Generators made elsewhere take their seed there: that of `dataset.make_loaders`, and
    Albumentations'. Raises ValueError for a seed outside [0, 2**32 - 1], TypeError for
    what is no whole number.
    """
    try:
        seed = operator.index(seed)  # NumPy's whole numbers too
    except TypeError as error:
        raise TypeError(f"seed must be a whole number, not {seed!r}") from error
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; choose one from 0 to 4294967295")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_device() -> torch.device:
    """Return the CUDA device where there is one, otherwise the CPU.

    Raises OSError for a GPU that computes nothing: one that this torch was not built
    for, or has no memory left.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        torch.ones(1, device="cuda")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise OSError(
            f"{torch.cuda.get_device_name()} can't compute ({reason}); choose another GPU, "
            "in Colab and Kaggle a T4, or hide it with CUDA_VISIBLE_DEVICES="
        ) from error
    return torch.device("cuda")


def device_name(device: torch.device | str) -> str:
    """Return the GPU's or the processor's own name."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():  # Linux only
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions behind a result, of the packages that are installed."""
    found = {"helpers": __version__, "python": platform.python_version()}
    found["torch"] = torch.__version__  # where PyPI's tells no CUDA, this does
    for name in ("torchvision", "albumentations", "torch-lr-finder", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def hardware(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a record says of the machine; dtype is what was computed in."""
    return {
        "type": device.type,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": str(dtype).removeprefix("torch."),
    }


def commit() -> str:
    """The commit of this code: git's, with -dirty for changed files, else S10_COMMIT's."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not around it: of it
        # A tag's name would hide the commit.
        return git("describe", "--always", "--exclude=*", "--abbrev=40", "--dirty")
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return os.environ.get("S10_COMMIT") or "unknown"


def describe_run(profile: str, data: str, device: torch.device | str) -> str:
    """Return one line with the profile, data, processor and versions behind a result."""
    device = torch.device(device)
    hardware = device_name(device)
    if device.type == "cpu":
        hardware += f", threads: {torch.get_num_threads()}"
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"profile {profile} | data {data} | device {device} ({hardware}) | {packages}"
    )


def banner(text: str) -> str:
    """Return `text` in a frame that nobody overlooks."""
    lines = textwrap.wrap(text, 76)
    edge = "#" * 80
    return "\n".join([edge, *(f"# {line:76} #" for line in lines), edge])
