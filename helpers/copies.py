"""Copies of a model, for what tries it out."""

import copy

from torch import Tensor, nn


def copy_of(model: nn.Module) -> nn.Module:
    """A model of its own, which may be trained without touching the other.

    What a layer has computed and kept, as pruning, weight_norm and a forward pass may,
    torch refuses to copy: of that the copy has the values.
    """
    kept = [value for layer in model.modules() for value in vars(layer).values()]
    computed = [v for v in kept if isinstance(v, Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(v): v.detach() for v in computed})
