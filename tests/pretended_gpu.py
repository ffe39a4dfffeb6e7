"""A GPU for machines without one: tensors of the CPU that obey CUDA's rules.

What is put on it is marked, by its storage, and computed on the CPU. Like CUDA it refuses
an operation on marked and unmarked tensors together, but for unmarked scalars and indices;
and it notes where Python reads from it, for which a program would wait for all that a GPU
has been given to do, and where it copies to it and waits for that. It knows nothing of
kernels, memory and speed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
COPYING, INDEXING = "aten.copy_", ("aten.index.", "aten.index_put", "aten._index_put")
READING = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero")


def tensors(values) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def is_in(tensor: Tensor, others: list[Tensor]) -> bool:
    return any(tensor is other for other in others)


def is_marked(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "marked", False)


def put(values, marked: bool) -> None:
    for tensor in tensors(values):
        tensor.untyped_storage().marked = marked


class Operations(TorchDispatchMode):
    """What CUDA would say of each operation, those of backward passes too."""

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, given = str(operation), tensors((args, kwargs))
        if not any(map(is_marked, given)):
            return operation(*args, **(kwargs or {}))
        formal = operation._schema.arguments
        written = [t for f, a in zip(formal, args) if f.is_write for t in tensors(a)]
        strange = [
            t for t in given if not is_marked(t) and (t.ndim or is_in(t, written))
        ]
        copies, indexes = name.startswith(COPYING), name.startswith(INDEXING)
        if strange and not (copies or indexes and is_marked(given[0])):
            raise RuntimeError(f"{name} of tensors on cuda and on the CPU")
        by_mask = indexes and any(t.dtype == torch.bool for t in given[1:])
        if strange or by_mask or name.startswith(READING):
            self.waits.append(name)
        result = operation(*args, **(kwargs or {}))
        if not copies:
            put(result, True)
        return result


class Calls(TorchFunctionMode):
    """Where tensors come from and go to, and what they say of themselves."""

    def __init__(self, operations: Operations):
        super().__init__()
        self.waits = operations.waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "__get__" and function.__self__ in (Tensor.device, Tensor.is_cuda):
            if is_marked(args[0]):
                return GPU if function.__self__ is Tensor.device else True
        elif name in ("to", "cpu"):
            return self.moved(name, *args, **kwargs)
        elif name == "numpy" and is_marked(args[0]):
            raise TypeError("can't convert what is on cuda to numpy; use .cpu() first")
        elif name == "tolist" and is_marked(args[0]):
            self.waits.append(name)
        elif (
            "device" in kwargs and torch.device(kwargs["device"] or CPU).type == "cuda"
        ):
            made = function(*args, **{**kwargs, "device": CPU})
            put(made, True)
            return made
        return function(*args, **kwargs)

    def moved(self, name: str, tensor: Tensor, *args, **kwargs) -> Tensor:
        copy, there = kwargs.pop("copy", False), is_marked(tensor)
        if name == "cpu":
            device, dtype, non_blocking, layout = CPU, None, False, None
        else:
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(
                *args, **kwargs
            )
        here = there if device is None else device.type == "cuda"
        if (there and not here) or (here and not there and not non_blocking):
            self.waits.append(name)
        options = {"dtype": dtype or tensor.dtype}
        if layout:
            options["memory_format"] = layout
        result = tensor.to(CPU, copy=copy or there != here, **options)
        put(result, here)
        return result


class Autocast(torch.autocast):
    """That of a GPU, by the CPU's types."""

    def __init__(self, device_type: str, *args, **kwargs):
        super().__init__("cpu", *args, **kwargs)


group = torch.optim.Optimizer._group_tensors_by_device_and_dtype


def grouped(lists, with_indices=False):
    """An optimizer's tensors by what they say of their place, as torch's own sees it."""
    groups = group(lists, with_indices)
    return {(found[0][0][0].device, kind): found for (_, kind), found in groups.items()}


@contextmanager
def pretended_gpu() -> Iterator[list[str]]:
    """torch has one GPU; gives the operations that wait for it, as they come."""
    state = torch.zeros(16, dtype=torch.uint8)
    instead = {
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "get_device_capability": lambda device=None: (8, 0),
        "get_device_name": lambda device=None: "a pretended GPU",
        "get_rng_state": lambda device=None: state.clone(),
        "set_rng_state": lambda new_state, device=None: None,
    }
    patches = [(torch.cuda, name, function) for name, function in instead.items()]
    patches += [(module, "autocast", Autocast) for module in (torch, torch.amp)]
    grouping = "_group_tensors_by_device_and_dtype"
    patches += [(torch.optim.Optimizer, grouping, staticmethod(grouped))]
    # No streams, no pinned memory.
    patches += [(torch.accelerator, "is_available", lambda: False)]
    operations = Operations()
    with ExitStack() as stack:
        for where, name, new in patches:
            stack.enter_context(patch.object(where, name, new))
        stack.enter_context(operations)
        stack.enter_context(Calls(operations))
        yield operations.waits
