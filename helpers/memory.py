"""Where memory runs out, the size of batch that would fit, found by trying."""

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from helpers.processes import Processes

# In a RuntimeError: torch's on a CPU, cuBLAS's and cuDNN's, and CUDA's own.
SIGNS = ("DefaultCPUAllocator", "STATUS_ALLOC_FAILED", "CUDA error: out of memory")


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
        lacking = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not (lacking or any(sign in str(error) for sign in SIGNS)):
            raise
        # The failed step's tensors, which its frames hold, are in the way of the trials.
        traceback.clear_frames(error.__traceback__)
        images, labels = next(iter(loader))
        what = f"a step of {len(labels)} images needs more memory than {device} has"
        if Processes.of(loader).size > 1:
            # A trial would wait for processes that had memory enough.
            raise MemoryError(
                f"{what}, and batch_size is that of all processes together: halve it"
            ) from error
        fits = fitting_batch(model, images, labels, dtype=dtype, device=device)
        raise MemoryError(
            f"{what}; "
            + (f"one of {fits} fits: make batch_size {fits}" if fits else "none fits")
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
        except (RuntimeError, MemoryError) as error:
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
    tried = copy.deepcopy(model).to(device).train()
    optimizer = Adam(tried.parameters())  # its moments take memory too
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = F.cross_entropy(tried(images.to(device)), labels.to(device))
    loss.backward()
    optimizer.step()
