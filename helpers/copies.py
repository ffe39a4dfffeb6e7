"""A model without its wrapping, on its device, and copied for what tries it out."""

import copy
import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that torch.compile has wrapped, or the model itself.

    The wrapper has the same tensors, by names with a prefix.
    """
    return getattr(model, "_orig_mod", model)


def to_channels_last(model: nn.Module, device: torch.device) -> None:
    """Move the model to the device, and what has four dimensions to channels-last memory.

    `Module.to` refuses to where something has five, as weights of a Conv3d do.
    """
    model.to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def copy_of(model: nn.Module, *, sharing: Iterable[Tensor] = ()) -> nn.Module:
    """A model of its own, which may be trained without touching the other.

    sharing: tensors that the copy has in common with the model all the same.

    A layer may keep a tensor that was computed, by itself or in a dict or list, as pruning,
    weight_norm and a forward pass do. torch refuses to copy those; the copy has the values.
    """
    kept = [value for layer in model.modules() for value in vars(layer).values()]
    within = [value.values() for value in kept if isinstance(value, dict)]
    within += [value for value in kept if isinstance(value, list | tuple)]
    kept += itertools.chain.from_iterable(within)
    computed = [v for v in kept if isinstance(v, Tensor) and not v.is_leaf]
    memo = {id(v): v.detach().clone() for v in computed} | {id(t): t for t in sharing}
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        if not any(word in str(error) for word in ("pickle", "deepcopy")):
            raise
        raise TypeError(
            f"the model can't be copied, to be tried out untouched ({error}); keep what is "
            "no layer or tensor, a writer or a lock say, outside of it, and remove hooks "
            "that hold on to tensors"
        ) from error
