"""How many input pixels a unit sees, layer by layer, computed from the live network.

The arithmetic is that of Araujo, Norris and Sim, "Computing Receptive Fields of
Convolutional Neural Networks" (Distill, 2019), along every path of the network that
torch.fx finds: for the first unit of each feature map, the first and the last input
pixel that it sees, and how far apart neighbouring units look.
"""

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from helpers.copies import copy_of, uncompiled


class Row(NamedTuple):
    """One layer: where it is, what it puts out, and what one unit of that output sees.

    name: as in model.named_modules(); a function's has its module's in front.
    kind: the layer's class, or the function: add, sub, cat, mean or amax.
    output_size: (C, H, W), or (features,) after flattening.
    receptive_field: side of the square that a unit sees, in pixels of the input. It can
        exceed the image: padding is seen too.
    jump: distance between the squares of neighbouring units, in pixels of the input.
    parameters: how many; 0 where a layer runs again.
    kernel: side of the square that a unit sees of the layer's input, in that input's units.
    """

    name: str
    kind: str
    output_size: tuple[int, ...]
    receptive_field: int
    jump: int
    parameters: int
    kernel: int


class Field(NamedTuple):
    """What the first unit of a feature map sees along one axis, in pixels of the input.

    side: units along the axis, those included that flattening folded into features.
    kernel: of the layer just passed. gate: pixels of a field that is the same for all
    units.
    """

    first: int
    last: int
    jump: int
    side: int
    kernel: int = 1
    gate: int = 0

    @property
    def span(self) -> int:
        return max(self.last - self.first + 1, self.gate)

    def through(self, *, kernel: int, stride: int, padding: int = 0, dilation: int = 1):
        """The field of a unit that looks at `kernel` units of this map."""
        reach = dilation * (kernel - 1)
        first = self.first - padding * self.jump
        last = self.last + (reach - padding) * self.jump
        jump = self.jump * stride
        return self._replace(first=first, last=last, jump=jump, kernel=reach + 1)

    def whole(self):
        """The field of a unit that looks at all units of this map."""
        return self.through(kernel=self.side, stride=self.side)._replace(side=1)

    def merged(self, other: "Field"):
        """The field of a unit that looks at one unit of each map, as in a residual sum."""
        smaller, larger = sorted((self, other), key=lambda field: field.side)
        # A map of one unit gates all the others, and doesn't move with them.
        if smaller.side == 1 < larger.side:
            return larger._replace(gate=max(larger.gate, smaller.span))
        first, last = min(self.first, other.first), max(self.last, other.last)
        jump, gate = max(self.jump, other.jump), max(self.gate, other.gate)
        return larger._replace(first=first, last=last, jump=jump, gate=gate)


SOFTMAX = (
    nn.Softmax, nn.LogSoftmax, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax",
)  # fmt: skip
VIEWS = (
    torch.flatten,
    torch.reshape,
    "flatten",
    "view",
    "reshape",
    "squeeze",
    "unsqueeze",
)
SAME_FIELD = (
    *SOFTMAX, *VIEWS,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity, nn.PReLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU,
    nn.ELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.SELU,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh,
    F.softplus, F.selu, F.dropout, F.dropout2d,
    torch.relu, torch.sigmoid, torch.tanh, torch.clamp,
    operator.mul, operator.truediv, operator.neg, torch.mul,
    "mul", "relu", "relu_", "sigmoid", "tanh", "clamp", "contiguous",
)  # fmt: skip
# Their arguments after the first are those of the layer of that name.
FUNCTIONS = {
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}
AVERAGES = {"mean": "mean", torch.mean: "mean", "amax": "amax", torch.amax: "amax"}
MERGES = {
    operator.add: "add",
    operator.iadd: "add",
    operator.sub: "sub",
    torch.sub: "sub",
    "sub": "sub",
    torch.add: "add",
    "add": "add",
    "add_": "add",
    torch.cat: "cat",
}


def square(value: int | tuple[int, ...], name: str) -> int:
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) > 1:
        raise NotImplementedError(
            f"layer {name}: {value} differs between height and width; only squares are known"
        )
    return sides.pop()


def sliding(
    layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, name: str
) -> dict[str, int]:
    """The window that a convolution or pooling slides, in units of its input."""
    kernel, stride = square(layer.kernel_size, name), square(layer.stride, name)
    dilation = square(getattr(layer, "dilation", 1), name)
    padding = layer.padding
    if isinstance(padding, str):
        padding = dilation * (kernel - 1) // 2 if padding == "same" else 0
    return {
        "kernel": kernel,
        "stride": stride,
        "padding": square(padding, name),
        "dilation": dilation,
    }


def layer_of(node: fx.Node, traced: fx.GraphModule) -> nn.Module | None:
    """The layer that a node runs, or the one that does what its function does."""
    if node.op == "call_module":
        return traced.get_submodule(node.target)
    if node.target not in FUNCTIONS:
        return None
    options = {name: value for name, value in node.kwargs.items() if name != "input"}
    if len(node.all_input_nodes) > 1:  # others than the map itself
        raise NotImplementedError(
            f"layer {node.name}: its window depends on its input; name it in numbers, or "
            "take AdaptiveAvgPool2d(1) for one over the whole map"
        )
    return FUNCTIONS[node.target](*node.args[1:], **options)


def step(what: object, field: Field, name: str) -> Field:
    """The field behind one layer or one function call."""
    if isinstance(what, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return field.through(**sliding(what, name))
    if isinstance(what, nn.AdaptiveMaxPool2d | nn.AdaptiveAvgPool2d):
        kernel, rest = divmod(field.side, square(what.output_size, name))
        if rest and field.side == 1:  # as many times the same unit
            return field.through(kernel=1, stride=0)
        if rest:
            raise NotImplementedError(
                f"layer {name}: {field.side} units do not pool evenly "
                f"to {what.output_size}; choose an image size for which they do"
            )
        return field.through(kernel=kernel, stride=kernel)
    if isinstance(what, nn.Linear) or what in AVERAGES:
        return field.whole()
    if what in MERGES or what in SAME_FIELD or type(what) in SAME_FIELD:
        return field._replace(kernel=1)
    module = isinstance(what, nn.Module)
    label = type(what).__name__ if module else getattr(what, "__name__", what)
    raise NotImplementedError(
        f"layer {name}: the receptive field behind {label} is not known; known are the "
        "layers Conv2d, Linear, BatchNorm, GroupNorm, InstanceNorm2d, LayerNorm, average "
        "and max pooling, the usual activations, Dropout, Dropout2d, Flatten, and sums, "
        "differences or concatenations of these"
    )


def rearranged(node: fx.Node, what: object, shape: tuple[int, ...], side: int) -> bool:
    """Whether a view or a concatenation puts units of a map elsewhere.

    shape: of what comes out, without the batch. side: of the map, before it was unrolled.
    """
    if what is not torch.cat and what not in VIEWS:
        return False
    given = tuple(node.all_input_nodes[0].meta["tensor_meta"].shape[1:])
    if what is torch.cat:
        dim = node.args[1] if len(node.args) > 1 else 0
        dim = node.kwargs.get("dim", node.kwargs.get("axis", dim))
        return dim % (1 + len(given)) != 1  # of other dimensions than the channels
    if len(shape) != 3 or shape[1:] == (1, 1):
        return False
    # (C, H, W) from (C, H·W), its units in the same order, or from (…, H, W).
    unrolled = given == (shape[0], shape[1] * shape[2]) and max(shape[1:]) == side
    return not unrolled and given[-2:] != shape[1:]


def dimensions(node: fx.Node, what: object) -> set[int]:
    """The dimensions of its input over which a mean, maximum or softmax is taken."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    dims = getattr(what, "dim", dims)  # of a layer
    count = len(node.all_input_nodes[0].meta["tensor_meta"].shape)
    if what not in AVERAGES and dims in (None, ()):
        return {0 if count == 3 else 1}  # torch's own choice for a softmax
    dims = (dims,) if isinstance(dims, int) else dims or ()
    found = {dim % count for dim in dims}
    # Flattened, height and width are one dimension.
    return {2, 3} if what in AVERAGES and count == 3 and found == {2} else found


def require_image_size(image_size: tuple[int, int, int]) -> None:
    if np.shape(image_size) != (3,):
        raise ValueError(f"image_size must be (C, H, W), not {image_size}")


@contextmanager
def explaining_image_size(image_size: tuple[int, int, int]) -> Iterator[None]:
    """Say in a sentence that a model can't take images of this size."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ValueError(
            f"the model can't take images of {image_size} ({reason}); name another "
            "image_size, (C, H, W), or mend the layer"
        ) from error


def trace(model: nn.Module) -> fx.GraphModule:
    """A copy of the model, in evaluation mode, as the graph of what the output needs."""
    tried = copy_of(uncompiled(model))
    tried.eval()
    for module in tried.modules():
        module._forward_hooks.clear()  # Grad-CAM's say, which ask for values
    try:
        traced = fx.symbolic_trace(tried)
    # By all three torch.fx says that it can't.
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise NotImplementedError(
            f"torch.fx can't follow the model ({reason}); take asserts, ifs, loops, int() "
            "and len() over sizes or values out of forward"
        ) from error
    traced.graph.eliminate_dead_code()
    return traced


@torch.no_grad()
def receptive_field_table(
    model: nn.Module, image_size: tuple[int, int, int] = (3, 32, 32)
) -> list[Row]:
    """A row for each layer and sum of branches that the output depends on, as they run.

    Where branches meet, the longest path counts; of images that aren't square, the longer
    side does. GroupNorm, InstanceNorm2d and LayerNorm take mean and deviation from all of
    the map; these aren't counted, as is usual. Parameters that the model holds outside
    its layers are in no row. Forward hooks are left out, also one that replaces an output.

    model: any network for images of `image_size` (C, H, W) that torch.fx can trace; it is
        copied, not touched.

    Raises ValueError for images that the model can't take, NotImplementedError, naming the
    layer, for one whose receptive field is not known here, and for a network that torch.fx
    can't trace, as its path depends on sizes or values of its input, TypeError for one that
    can't be copied.
    """
    require_image_size(image_size)
    traced = trace(model)
    parameter = next(model.parameters(), torch.empty(0))
    image = parameter.new_zeros(1, *image_size)
    with explaining_image_size(image_size):
        traced(image)  # ShapeProp would print what fails, besides raising it
    ShapeProp(traced).propagate(image)

    rows: list[Row] = []
    counted: set[nn.Parameter] = set()
    fields: dict[fx.Node, Field] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            fields[node] = Field(first=0, last=0, jump=1, side=max(image_size[1:]))
        sources = [
            fields[source] for source in node.all_input_nodes if source in fields
        ]
        if node.op == "output" or not sources or "tensor_meta" not in node.meta:
            continue  # sizes and other numbers that the network computes on its way
        layer = layer_of(node, traced)
        what = layer or node.target
        kind = type(layer).__name__ if layer else (MERGES | AVERAGES).get(node.target)
        # A function is called inside the innermost module that is being run.
        inside = list(node.meta.get("nn_module_stack", {}))[-1:]
        called = MERGES.get(node.target, node.name)
        name = node.target if node.op == "call_module" else ".".join([*inside, called])

        wanted = None
        if what in AVERAGES:
            wanted, over = {2, 3}, "height and width"
        if what in SOFTMAX or type(what) in SOFTMAX:
            wanted, over = {1}, "channels"
        if wanted and dimensions(node, what) != wanted:
            raise NotImplementedError(
                f"{name} is over other dimensions than {over}; the receptive field behind "
                "it is not known"
            )
        field = step(what, functools.reduce(Field.merged, sources), name)
        shape = tuple(node.meta["tensor_meta"].shape[1:])
        if rearranged(node, what, shape, field.side):
            raise NotImplementedError(
                f"{name} rearranges the map, to {shape}; the receptive field behind it is "
                "not known"
            )
        if len(shape) == 3 and isinstance(what, nn.Linear):
            raise NotImplementedError(
                f"layer {name}: it runs along the width of the map, to {shape}; flatten that "
                "first"
            )
        if len(shape) == 3:
            field = field._replace(side=max(shape[1:]))
        fields[node] = field
        if kind:
            new = set(layer.parameters()) - counted if layer else set()
            counted |= new
            parameters = sum(p.numel() for p in new)
            rows.append(
                Row(name, kind, shape, field.span, field.jump, parameters, field.kernel)
            )
    return rows
