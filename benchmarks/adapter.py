"""python -m benchmarks.adapter IMAGES.npz SCRIPT: run another project's script as it is.

The script finds what it expects: names that NumPy has dropped since, and CIFAR-10, which
it would download, from the arrays in IMAGES. Nothing that it computes is changed.
"""

import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torchvision

from helpers.dataset import CIFAR10_CLASSES


def given_images(path: str) -> type:
    """A class with what the scripts use of torchvision.datasets.CIFAR10."""
    with np.load(path) as stored:
        arrays = dict(stored)

    class GivenCIFAR10:
        def __init__(self, root: str, train: bool = True, download: bool = False):
            # The download would have made the folder, and airbench writes into it.
            Path(root).mkdir(parents=True, exist_ok=True)
            split = "train" if train else "test"
            self.data = arrays[f"{split}_images"]
            self.targets = arrays[f"{split}_labels"].tolist()
            self.classes = list(CIFAR10_CLASSES)

    return GivenCIFAR10


def prepare(images: str) -> None:
    np.float = float  # removed from NumPy 1.24; cifar10-fast uses it
    # cifar10-fast imports pandas for a method that its script doesn't call.
    sys.modules.setdefault("pandas", ModuleType("pandas"))
    torchvision.datasets.CIFAR10 = given_images(images)


if __name__ == "__main__":
    _, images, script, *arguments = sys.argv
    prepare(images)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)  # where a script's own modules are
    runpy.run_path(script, run_name="__main__")
