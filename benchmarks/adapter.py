"""python -m benchmarks.adapter FOLDER SCRIPT: run another project's script as it is.

The script finds what it expects: names that NumPy has dropped since, and CIFAR-10, which
it would download, as `load_cifar10` finds it in FOLDER. With a GPU nothing that it
computes is changed. Without one, see `without_cuda`.
"""

import contextlib
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torchvision
from torch import nn

from helpers import dataset, train_test


def given_images(folder: str) -> type:
    """A class with what the scripts use of torchvision.datasets.CIFAR10."""
    splits = dataset.load_cifar10(folder, download=False)

    class GivenCIFAR10:
        def __init__(self, root: str, train: bool = True, download: bool = False):
            # The download would have made the folder, and airbench writes into it.
            Path(root).mkdir(parents=True, exist_ok=True)
            split = splits[0] if train else splits[1]
            self.data = split.images
            self.targets = split.labels.tolist()
            self.classes = list(split.classes)

    return GivenCIFAR10


def without_cuda() -> contextlib.AbstractContextManager:
    """Have a script without a GPU train as `fit` does: what is float16 on one is float32.

    Convolutions compute in the type that suits the CPU, in tests too, channels last; the
    outputs stay float32, as many would be equal in bfloat16. cifar10-fast takes hours so.
    """
    to = nn.Module.to
    linear = nn.Linear.forward
    cpu = torch.device("cpu")
    dtype = train_test.choose_dtype("auto", cpu)

    def linear_float32(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return linear(self, x.float())

    torch.cuda.synchronize = lambda: None
    torch.Tensor.cuda = lambda self: self
    torch.Tensor.half = torch.Tensor.float
    nn.Module.half = nn.Module.float
    nn.Module.to = lambda self, *args: to(
        self, *args, memory_format=torch.channels_last
    )
    nn.Linear.forward = linear_float32
    # The cache would last as long as the script, and keep the weights as they began.
    return torch.autocast(
        "cpu", dtype, enabled=dtype != torch.float32, cache_enabled=False
    )


def prepare(folder: str) -> contextlib.AbstractContextManager:
    """What the script runs in."""
    np.float = float  # removed from NumPy 1.24; cifar10-fast uses it
    # cifar10-fast imports pandas for a method that its script doesn't call.
    sys.modules.setdefault("pandas", ModuleType("pandas"))
    torchvision.datasets.CIFAR10 = given_images(folder)
    return contextlib.nullcontext() if torch.cuda.is_available() else without_cuda()


if __name__ == "__main__":
    _, folder, script, *arguments = sys.argv
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)  # where a script's own modules are
    with prepare(folder):
        runpy.run_path(script, run_name="__main__")
