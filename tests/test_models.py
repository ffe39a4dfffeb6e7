"""The networks are the ones that are promised, and their receptive fields are true."""

import copy
import operator
import sys

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from helpers import models, utils

NETWORKS = [models.CustomResNet, models.ResNet18]


def test_parameters_are_the_assignments_to_the_unit():
    assert models.count_parameters(models.CustomResNet()) == 6_574_090
    assert models.count_parameters(models.ResNet18()) == 11_173_962


def test_parameters_that_are_frozen_are_not_counted():
    model = models.CustomResNet()
    model.linear.requires_grad_(False)
    assert models.count_parameters(model) == 6_574_090 - 5_130


def test_resnet18_computes_what_torchvisions_does_without_its_first_pool():
    model, theirs = models.ResNet18(), torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    pairs = zip(theirs.state_dict(), model.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(pairs))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), theirs.eval()(images))


def test_residual_block_adds_what_came_in():
    block, x = models.Residual(4).eval(), torch.randn(2, 4, 5, 5)
    norms = [layer for layer in block.branch if isinstance(layer, nn.BatchNorm2d)]
    nn.init.zeros_(norms[-1].weight)  # F(x) is 0
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("classes", "channels", "side"), [(10, 3, 32), (100, 1, 28)])
def test_logits_and_gradients_for_any_classes_channels_and_size(
    network, classes, channels, side
):
    model = network(num_classes=classes, in_channels=channels)
    logits = model(torch.randn(2, channels, side, side))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    without = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.any()
    ]
    # A bias that BatchNorm subtracts again gets rounding errors at most.
    assert [name for name in without if not name.endswith(".bias")] == []


def test_custom_resnet_receptive_fields_are_the_assignments():
    rows = models.receptive_field_table(models.CustomResNet())
    windows = [
        r for r in rows if r.kind in {"Conv2d", "MaxPool2d", "AdaptiveMaxPool2d"}
    ]
    fields = [r.receptive_field for r in windows]
    assert fields == [3, 5, 6, 10, 14, 18, 20, 28, 32, 48, 64, 88]
    assert [r.jump for r in windows] == [1, 1, 2, 2, 2, 2, 4, 4, 8, 8, 8, 32]
    assert rows[-1].output_size == (10,)
    assert rows[-1].receptive_field == 88


@pytest.mark.parametrize("network", NETWORKS)
def test_table_accounts_for_every_parameter(network):
    model = network()
    rows = models.receptive_field_table(model)
    assert sum(row.parameters for row in rows) == models.count_parameters(model)


def test_markdown_table_adds_up():
    text = utils.receptive_field_markdown(
        models.receptive_field_table(models.CustomResNet())
    )
    lines = [line.split(" | ") for line in text.splitlines()]
    parameters = [line[-1].strip(" |*").replace(",", "") for line in lines[2:]]
    *parts, total = [int(p) for p in parameters if p]
    assert sum(parts) == total == 6_574_090
    assert "| **88** | 32 | 4×4 |" in text


def test_parameters_of_other_layers_are_not_called_batchnorms():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU())
    text = utils.receptive_field_markdown(models.receptive_field_table(model))
    assert "| all other layers |" in text and "| 9 |" in text
    alone = models.receptive_field_table(model[:1])
    assert "other layers" not in utils.receptive_field_markdown(alone)


@pytest.mark.parametrize("size", [(3, 8, 12), (3, 12, 8)])
def test_longer_side_of_an_oblong_image_counts(size):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    assert models.receptive_field_table(model, size)[-1].receptive_field == 12


def test_head_with_batchnorm_and_a_difference_of_branches_are_known():
    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.head((self.conv(x) - x).mean((2, 3)))

    rows = models.receptive_field_table(Difference())
    assert [(row.kind, row.receptive_field) for row in rows] == [
        ("Conv2d", 3),
        ("sub", 3),
        ("mean", 34),
        ("BatchNorm1d", 34),
    ]


def positive(model: nn.Module) -> nn.Module:
    """A copy in float64 in which all that is seen shows: no sign or maximum hides it."""
    model = copy.deepcopy(model).double().eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            average = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            model.set_submodule(name, average)
        elif isinstance(module, nn.ReLU):
            model.set_submodule(name, nn.Identity())
    for p in model.parameters():
        p.data = p.data.abs() + 0.01
        p.requires_grad_(False)
    return model


def probe(model: nn.Module, layers: list[str], side: int) -> list[int]:
    """Sides of the squares of input pixels that move a unit in the middle of each layer."""
    image = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    seen = {}
    for name in layers:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )
    model(image)
    sides = []
    for name in layers:
        middle = seen[name].shape[-1] // 2
        unit = seen[name][0, 0, middle, middle]
        (gradient,) = torch.autograd.grad(unit, image, retain_graph=True)
        columns = gradient.abs().sum((0, 1, 2)).nonzero()
        sides.append(int(columns.max() - columns.min() + 1))
    return sides


@pytest.mark.parametrize(
    "model",
    [
        models.CustomResNet(),
        models.ResNet18(),
        torchvision.models.resnet18(num_classes=10),
        nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=2, dilation=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AvgPool2d(3, 1, [1, 1]),  # a list is taken too
            nn.Conv2d(4, 4, 3, padding="same"),
            nn.Conv2d(4, 4, 1, padding="valid"),
        ),
    ],
    ids=["CustomResNet", "ResNet18", "torchvision", "plain"],
)
def test_receptive_fields_agree_with_a_gradient_probe(model):
    size = 512 if isinstance(model, torchvision.models.ResNet) else 160
    rows = models.receptive_field_table(model, (3, size, size))
    positive_model = positive(model)
    # The layers that everything passes through: a branch's own field is part of the sum's.
    layers = [r for r in rows if len(r.output_size) == 3 and r.output_size[1] > 1]
    layers = [
        r for r in layers if "branch" not in r.name and r.kind in {"Conv2d", "ReLU"}
    ]
    layers = [
        r for r in layers if "shortcut" not in r.name and "downsample" not in r.name
    ]
    probed = [*layers[:2], layers[-1]]
    found = probe(positive_model, [row.name for row in probed], size)
    assert found == [row.receptive_field for row in probed]


def test_the_last_pool_of_custom_resnet_sees_88_pixels():
    model = positive(models.CustomResNet())
    # At 32 pixels the adaptive pool is a 4×4 window; on a larger image it would not be.
    model.pool = nn.AvgPool2d(4, padding=0)
    model.linear = nn.Identity()
    assert probe(model, ["pool"], 160) == [88]


def test_flattened_map_is_seen_whole():
    flat = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 5))
    assert models.receptive_field_table(flat, (3, 8, 8))[-1].receptive_field == 8


class Functional(nn.Module):
    """What a student writes: pooling as functions, and one layer twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 8, 5), nn.Conv2d(8, 8, 3, dilation=2)
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = F.avg_pool2d(self.again(x).sigmoid(), kernel_size=3, stride=1)
        x = F.adaptive_avg_pool2d(self.again(x), (1, 1))
        return self.linear(torch.reshape(x, (-1, 8)) / 2)


def test_functions_are_read_as_layers_and_a_layer_that_runs_twice_counts_once():
    model = Functional()
    rows = models.receptive_field_table(model)
    assert [row.name for row in rows] == [
        *("conv", "max_pool2d", "again", "avg_pool2d", "again"),
        *("adaptive_avg_pool2d", "linear"),
    ]
    assert [row.receptive_field for row in rows] == [5, 6, 14, 18, 26, 32, 32]
    assert [row.jump for row in rows] == [1, 2, 2, 2, 2, 8, 8]
    assert [row.kernel for row in rows] == [5, 2, 5, 3, 5, 4, 1]
    assert sum(row.parameters for row in rows) == models.count_parameters(model)


@pytest.mark.parametrize(
    "function",
    [
        *(F.elu, F.celu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus),
        *(F.selu, torch.relu, operator.neg),
        lambda x: torch.clamp(x, 0, 6),
        lambda x: x.relu_(),
        lambda x: x.clamp(min=0).contiguous(),
    ],
)
def test_activation_called_as_a_function_sees_what_the_layer_before_it_does(function):
    class Activated(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return self.two(function(self.one(x)))

    rows = models.receptive_field_table(Activated())
    assert [row.receptive_field for row in rows] == [3, 5]


class Attention(nn.Module):
    """A convolution, then a gate, then another one."""

    def __init__(self, gate):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.gate = gate

    def forward(self, x):
        x = self.first(x)
        return self.last(x * self.gate(x))


def test_gate_that_sees_the_whole_map_leaves_the_distance_of_its_units():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
    row = models.receptive_field_table(Attention(gate), (3, 10, 10))[-1]
    assert (row.receptive_field, row.jump) == (10, 1)  # the image, however far it moves


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.ConvTranspose2d(3, 3, 2), "ConvTranspose2d"),
        (nn.Conv2d(3, 3, (3, 1)), "differs between height and width"),
        (nn.AdaptiveAvgPool2d(5), "do not pool evenly"),
        (nn.Linear(32, 8), "along the width of the map"),
    ],
)
def test_layers_it_cannot_know_are_named(layer, named):
    model = nn.Sequential(nn.Identity(), nn.Sequential(layer))
    with pytest.raises(NotImplementedError, match=rf"layer 1\.0: .*{named}"):
        models.receptive_field_table(model)


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (
            lambda x: x.mean(1, keepdim=True),
            "mean is over other dimensions than height",
        ),
        (lambda x: x.mean(None), "mean is over other dimensions than height"),
        (lambda x: F.avg_pool2d(x, x.size(3)), "its window depends on its input"),
        (lambda x: x.relu() if x.size(0) else x, "take asserts, ifs, loops"),
        (lambda x: sum(x.relu() for _ in range(x.size(0))), "take asserts, ifs, loops"),
        (lambda x: x.relu()[: len(x)], "take asserts, ifs, loops"),
        (
            lambda x: x.flatten(2).softmax(-1),
            "softmax is over other dimensions than ch",
        ),
        (
            lambda x: x.view(-1, 12, 16, 16),
            r"view rearranges the map, to \(12, 16, 16\)",
        ),
        (lambda x: x.flatten(1).view(-1, 3, 32, 32), "view_?1? rearranges the map"),
        (lambda x: x.flatten(2).view(-1, 3, 64, 16), "view_?1? rearranges the map"),
        (lambda x: x.chunk(2, 1)[0], "behind chunk is not known"),
        (lambda x: torch.cat([x, x], 2), "cat rearranges the map"),
        (lambda x: torch.cat([x, x], dim=-1), "cat rearranges the map"),
    ],
)
def test_functions_it_cannot_know_are_named(function, named):
    with pytest.raises(NotImplementedError, match=named):
        models.receptive_field_table(Called(function))


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flatten(2).mean(2),
        lambda x: torch.amax(x.flatten(2), dim=-1),
        lambda x: x.mean((2, 3)),
        lambda x: F.log_softmax(x.mean((-1, -2)), dim=-1),
        lambda x: F.softmax(torch.mean(x.flatten(2), dim=2)),
    ],
)
def test_means_over_the_whole_map_see_all_of_it(function):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Called(function), nn.Linear(4, 2))
    _, whole, last = models.receptive_field_table(model)
    assert whole.kind in ("mean", "amax")
    assert whole.receptive_field == last.receptive_field == 32
    assert f"| {whole.kind} | 4 | **32** |" in utils.receptive_field_markdown([whole])


def test_gate_made_of_a_mean_may_get_its_axes_back_by_unsqueeze():
    gate = Called(lambda x: x * x.mean((2, 3)).unsqueeze(2).unsqueeze(3).sigmoid())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), gate, nn.SELU())
    assert models.receptive_field_table(model)[-1].receptive_field == 32


def test_a_layer_is_known_by_its_kind_and_not_by_its_name():
    model = nn.Sequential()
    model.add_module("mean", nn.Conv2d(3, 4, 3))
    model.add_module("softmax", nn.ReLU())
    assert [row.receptive_field for row in models.receptive_field_table(model)] == [
        3,
        3,
    ]


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.LayerNorm([4, 30, 30]),
        nn.Softmax(1),
    ],
    ids=str,
)
def test_layer_that_normalizes_leaves_the_field_as_it_is(layer):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 4, 3))
    fields = [row.receptive_field for row in models.receptive_field_table(model)]
    assert fields == [3, 3, 5]


def test_concatenated_branches_see_what_the_longest_does():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.short, self.long = (nn.Conv2d(3, 4, k, padding="same") for k in (3, 7))

        def forward(self, x):
            return torch.cat([self.short(x), self.long(x)], 1)

    *_, row = models.receptive_field_table(Branches())
    assert (row.kind, row.receptive_field, row.output_size) == ("cat", 7, (8, 32, 32))


def test_image_size_without_channels_is_refused():
    with pytest.raises(
        ValueError, match=r"image_size must be \(C, H, W\), not \(28, 28"
    ):
        models.receptive_field_table(nn.Conv2d(1, 2, 3), (28, 28))


def only_grey(x):
    torch._assert(x.size(1) == 1, "")  # as torchvision's ViT does of the height
    return x


@pytest.mark.parametrize("read", [models.receptive_field_table, models.summarize])
@pytest.mark.parametrize("first", [nn.Identity(), Called(only_grey)])
def test_images_that_the_model_cannot_take_are_named(first, read, capsys):
    grey = nn.Sequential(first, models.CustomResNet(in_channels=1))
    with pytest.raises(ValueError, match=r"images of \(3, 32, 32\) .* image_size"):
        read(grey)
    assert capsys.readouterr() == ("", "")
    read(grey, (1, 32, 32))


@pytest.mark.parametrize(
    ("package", "function"),
    [
        ("torchsummary", lambda _: models.summarize(nn.Linear(2, 2), (1, 1, 2))),
        (
            "safetensors",
            lambda path: models.save_weights(
                models.CustomResNet(), path, classes=range(10), data="made up"
            ),
        ),
        ("safetensors", models.load_pretrained),
    ],
)
def test_missing_package_is_named_with_how_to_install_it(
    package, function, tmp_path, monkeypatch
):
    for module in (package, f"{package}.torch"):
        monkeypatch.setitem(sys.modules, module, None)
    said = f"is not installed; pip install {package}$"
    with pytest.raises(ModuleNotFoundError, match=said):
        function(tmp_path / "some.safetensors")


def test_model_that_torchsummary_cannot_read_is_said(capsys):
    class Joining(nn.Module):
        def forward(self, maps):
            return torch.cat(maps, 1)

    model = Called(lambda x: joining([x, x]))
    model.joining = joining = Joining()
    with pytest.raises(
        NotImplementedError, match=r"can't read Called .*; print\(model\)"
    ):
        models.summarize(model)
    models.summarize(models.CustomResNet(), [3, 32, 32])
    assert "Total params: 6,574,090" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "field"),
    [
        (lambda x: x.mean((2, 3), keepdim=True) * x, 32),  # a gate that stands first
        (lambda x: x.size(1) * x, 3),
        (lambda x: torch.cat([x, x], axis=1), 3),
        (lambda x: x.flatten(2).relu().view(-1, 3, 32, 32), 3),
        (lambda x: x.view(-1, 1, 3, 32, 32).view(-1, 3, 32, 32), 3),
    ],
)
def test_units_that_stay_where_they_are_keep_their_field(function, field):
    model = nn.Sequential(Called(function), nn.LazyConv2d(4, 3))
    model(torch.zeros(1, 3, 32, 32))
    last = models.receptive_field_table(model)[-1]
    assert (last.receptive_field, last.jump) == (field, 1)


def test_compiled_model_is_summarized_as_what_it_wraps(capsys):
    models.summarize(torch.compile(models.CustomResNet()))
    assert "6,574,090" in capsys.readouterr().out


def test_model_in_another_precision_is_summarized(capsys):
    model = models.CustomResNet().bfloat16()
    models.summarize(model)
    assert "6,574,090" in capsys.readouterr().out
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_misspelt_layer_and_size_are_not_torchsummarys_fault():
    model = Called(lambda x: model.no_such_layer(x))
    with pytest.raises(AttributeError, match="no_such_layer"):
        models.summarize(model)
    with pytest.raises(ValueError, match=r"must be \(C, H, W\), not 32"):
        models.summarize(models.CustomResNet(), 32)


@pytest.mark.parametrize("first", [True, False])
def test_branches_of_one_repeated_unit_are_joined_in_any_order(first):
    def both(x):
        same = F.adaptive_avg_pool2d(F.adaptive_max_pool2d(x, 1), 32)
        return torch.cat([same, x] if first else [x, same], 1)

    model = nn.Sequential(Called(both), nn.Conv2d(6, 4, 9))
    assert models.receptive_field_table(model)[-1].jump == 1


def test_pool_that_repeats_one_unit_sees_what_it_does():
    repeating = nn.AdaptiveAvgPool2d(7)  # as torchvision's VGG on 32×32 images
    model = nn.Sequential(nn.AdaptiveMaxPool2d(1), repeating, nn.Flatten())
    rows = models.receptive_field_table(nn.Sequential(*model, nn.Linear(147, 10)))
    assert [row.receptive_field for row in rows] == [32] * 4


def test_reading_a_model_leaves_no_trace(capsys):
    model = models.CustomResNet()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    models.summarize(model)
    models.receptive_field_table(model)
    assert "Total params: 6,574,090" in capsys.readouterr().out
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert model.training


def pruned():
    model = models.CustomResNet()
    prune.l1_unstructured(model.prep[0], "weight", 0.5)
    return model


def mute():
    model = models.CustomResNet()
    # As in a `train` that doesn't return the model, which torch's `eval` passes on.
    model.train = lambda mode=True: None
    return model


def watched():
    model = models.CustomResNet()
    seen = []
    model.layer3.register_forward_hook(lambda layer, _, out: seen.append(out.detach()))
    return model


def asked():
    def look(layer, _, out):
        assert out.max() < 1e9

    model = models.CustomResNet()
    model.layer3.register_forward_hook(look)
    return model


def test_unknown_network_is_told_the_known_ones():
    with pytest.raises(KeyError, match="'ResNet34'; choose CustomResNet or ResNet18"):
        models.MODELS["ResNet34"]


@pytest.mark.parametrize(
    "make", [lambda: torch.compile(models.CustomResNet()), pruned, mute, watched, asked]
)
def test_what_else_a_network_can_be_does_not_hinder_reading_it(make):
    fields = [row.receptive_field for row in models.receptive_field_table(make())]
    plain = models.receptive_field_table(models.CustomResNet())
    assert fields == [row.receptive_field for row in plain]
