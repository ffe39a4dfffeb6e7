"""Memory kept from step to step on a CPU; where it runs out, the batch that would fit."""

import ctypes
import platform
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from helpers.copies import copy_of
from helpers.optimizer import autocast
from helpers.processes import Processes

# In a RuntimeError: torch's on a CPU, cuBLAS's, cuDNN 9's, CUDA's own.
SIGNS = (
    "DefaultCPUAllocator",
    "STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "CUDA error: out of memory",
)
# cuDNN says so where a convolution has memory for its output and none to work in, but also
# where cuDNN doesn't work at all.
NO_ENGINE = "unable to find an engine"
# glibc's malloc.h: numbers of three settings; see mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
KEEPING = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}
# Left alone, glibc raises its thresholds to these as large blocks are freed. It stops doing
# so once one of them was set, so they are set here.
RAISED = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}
# Blocks of 32 MB (of 2²⁰ bytes) and more are given back, unless they fit in what smaller
# ones have left. Older glibc takes no higher threshold.
KEEPING_SMALL = {**RAISED, TRIM_THRESHOLD: -1}


@contextmanager
def keeping_freed_memory(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """On a CPU, let each step use the memory that the last one freed.

    glibc asks the kernel anew for each tensor of some MB, and the kernel clears its pages
    anew: 350,000 page faults per step of 512 images, a quarter of the time where bfloat16
    is fast. In 16 bits all of it is kept. In float32, whose tensors are twice as large,
    that made the peak a quarter larger; there only blocks below 32 MB are. Afterwards
    glibc's thresholds are those that it reaches by itself in a process with tensors, and
    free memory goes back to the kernel. Other C libraries are left alone.
    """
    # Elsewhere than on Linux libc_ver reads Python's own file.
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    if device.type != "cpu" or not glibc:
        yield
        return
    libc = ctypes.CDLL(None)

    def set_all(settings: dict[int, int]) -> None:
        for name, value in settings.items():
            libc.mallopt(name, value)

    set_all(KEEPING_SMALL if dtype == torch.float32 else KEEPING)
    try:
        yield
    finally:
        set_all(RAISED)
        libc.malloc_trim(0)


def is_lack_of_memory(error: Exception) -> bool:
    lacking = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return lacking or any(sign in str(error) for sign in SIGNS)


@contextmanager
def explaining_evaluation_memory(device: torch.device) -> Iterator[None]:
    """Where memory runs out while a model only answers, say so by MemoryError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        # The caller may keep the error, and with it what the layers made of the batch.
        traceback.clear_frames(error.__traceback__)
        raise MemoryError(
            f"answering a batch needs more memory than {device} has; give the loader that "
            "is evaluated a smaller batch_size"
        ) from error


@contextmanager
def explaining_memory(
    model: nn.Module, loader, dtype: torch.dtype, device: torch.device
) -> Iterator[None]:
    """Where memory runs out, raise MemoryError with a batch size that was seen to fit.

    Where several processes share the batches, nothing is tried.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        no_engine = NO_ENGINE in str(error)
        if not (no_engine or is_lack_of_memory(error)):
            raise
        # The failed step's tensors, which its frames hold, are in the way of the trials.
        traceback.clear_frames(error.__traceback__)
        images, labels = next(iter(loader))
        alone, fits = Processes.of(loader).size == 1, 0
        if alone:  # else a trial would wait for processes that had memory enough
            fits = fitting_batch(model, images, labels, dtype=dtype, device=device)
        if no_engine and not fits:
            raise
        advice = "; no smaller batch fits: free memory, or take a smaller model"
        if fits:
            advice = f"; one of {fits} fits: make batch_size {fits}"
        elif not alone:
            advice = ", and batch_size is that of all processes together: halve it"
        raise MemoryError(
            f"a step of {len(labels)} images needs more memory than {device} has{advice}"
        ) from error


def fitting_batch(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """The largest half, quarter and so on of the batch that a step has memory for, or 0."""
    size = len(labels) // 2
    while size:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            step(model, images[:size], labels[:size], dtype=dtype, device=device)
        # ValueError: BatchNorm's, which can't normalize one image.
        # TypeError: copy_of's.
        except (RuntimeError, MemoryError, ValueError, TypeError) as error:
            traceback.clear_frames(error.__traceback__)
            size //= 2
        else:
            return size
    return 0


def step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """A training step of a copy; in a frame of its own, which can be cleared."""
    tried = copy_of(model).to(device)
    tried.train()
    optimizer = Adam(tried.parameters())  # its moments take memory too
    with autocast(device, dtype):
        logits = tried(images.to(device)).float()
        loss = F.cross_entropy(logits, labels.to(device).long())
    loss.backward()
    optimizer.step()
