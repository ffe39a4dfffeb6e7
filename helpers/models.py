"""The assignment's two networks, trained ones as files, and what can be read off any."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from helpers.copies import copy_of, uncompiled
from helpers.files import place_of, write_whole
from helpers.optional import optional
from helpers.receptive_field import (
    Row,
    explaining_image_size,
    receptive_field_table,
    require_image_size,
)

__all__ = [
    "MODELS",
    "CustomResNet",
    "ResNet18",
    "Row",
    "count_parameters",
    "load_pretrained",
    "receptive_field_table",
    "save_weights",
    "summarize",
]


def conv3x3(
    in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False
) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)


class Residual(nn.Module):
    """x + F(x) of x's shape, F two 3×3 convolutions, each with BatchNorm and ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(
            conv3x3(channels, channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv3x3(channels, channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def halve(in_channels: int, out_channels: int) -> list[nn.Module]:
    """A convolution to `out_channels`, then half the height and width."""
    # The bias is the assignment's. BatchNorm subtracts it again, so it is counted but
    # learns nothing.
    return [
        conv3x3(in_channels, out_channels, bias=True),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class CustomResNet(nn.Module):
    """The assignment's network: 8 convolutions.

    6,574,090 parameters for 10 classes and 3 channels. Takes images (B, in_channels, H,
    W), H and W at least 8, and gives logits (B, num_classes), multiplied by logit_scale. A
    relative of ResNet-9 from David Page's "How to Train Your ResNet" (2018).
    """

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 3, logit_scale: float = 1
    ):
        super().__init__()
        self.logit_scale = logit_scale  # see Recipe
        # Shapes on the right are those of a 32×32 image.
        self.prep = nn.Sequential(
            conv3x3(in_channels, 64, bias=True), nn.BatchNorm2d(64), nn.ReLU()
        )  # 64×32×32
        self.layer1 = nn.Sequential(*halve(64, 128), Residual(128))  # 128×16×16
        self.layer2 = nn.Sequential(*halve(128, 256))  # 256×8×8
        self.layer3 = nn.Sequential(*halve(256, 512), Residual(512))  # 512×4×4
        self.pool = nn.AdaptiveMaxPool2d(1)  # 512×1×1: each channel's maximum
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return self.logit_scale * self.linear(self.pool(x).flatten(1))


class BasicBlock(nn.Module):
    """ReLU(F(x) + shortcut(x)) of He et al. (2015).

    The shortcut is a 1×1 convolution where shapes differ.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            conv3x3(in_channels, out_channels, stride=stride),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            conv3x3(out_channels, out_channels),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride),
        BasicBlock(out_channels, out_channels, 1),
    )


class ResNet18(nn.Module):
    """ResNet-18 of "Deep Residual Learning" (He et al., 2015), adapted to small images.

    Its first convolution is 3×3 with stride 1 and no max-pooling follows, as 32×32
    images need. Takes images (B, in_channels, H, W) and gives logits (B, num_classes),
    multiplied by logit_scale; 11,173,962 parameters for 10 classes and 3 channels.
    """

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 3, logit_scale: float = 1
    ):
        super().__init__()
        self.logit_scale = logit_scale  # see Recipe
        self.prep = nn.Sequential(
            conv3x3(in_channels, 64), nn.BatchNorm2d(64), nn.ReLU()
        )  # 64×32×32
        self.layer1 = stage(64, 64, 1)  # 64×32×32
        self.layer2 = stage(64, 128, 2)  # 128×16×16
        self.layer3 = stage(128, 256, 2)  # 256×8×8
        self.layer4 = stage(256, 512, 2)  # 512×4×4
        self.pool = nn.AdaptiveAvgPool2d(1)  # 512×1×1
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.prep(x)))))
        return self.logit_scale * self.linear(self.pool(x).flatten(1))


class Networks(dict[str, type[nn.Module]]):
    """By the name a person types; another one is a KeyError that tells them."""

    def __missing__(self, name: str) -> NoReturn:
        raise KeyError(f"no network is named {name!r}; choose {' or '.join(self)}")


MODELS = Networks(CustomResNet=CustomResNet, ResNet18=ResNet18)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters, each shared one counted once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def summarize(model: nn.Module, image_size: tuple[int, int, int] = (3, 32, 32)) -> None:
    """Print torchsummary's table of layers for images of `image_size` (C, H, W).

    torchsummary runs the model in its current mode on random numbers, which would move
    BatchNorm's statistics and the random number generator: it gets a copy, in float32, and
    the generator is put back. It counts a layer's `weight` and `bias`, again each time the
    layer runs, and no other parameters; `count_parameters` counts all that are trained,
    each once.

    Raises ValueError for images that the model can't take, NotImplementedError for a model
    that torchsummary can't read, TypeError for one that can't be copied,
    ModuleNotFoundError without torchsummary.
    """
    with optional("torchsummary"):
        from torchsummary import summary

    require_image_size(image_size)
    tried, size = copy_of(uncompiled(model)).cpu().float(), tuple(image_size)
    images = torch.zeros(2, *size, device="cpu")  # of one, BatchNorm has no deviation
    with torch.random.fork_rng(devices=[]), explaining_image_size(size):
        tried(images)
    try:
        with torch.random.fork_rng(devices=[]):
            summary(tried, size, device="cpu")
    except (AttributeError, IndexError, TypeError) as error:
        raise NotImplementedError(
            f"torchsummary can't read {type(model).__name__} ({error}), as of layers that "
            "take or give something else than one tensor; print(model) shows the layers, "
            "and count_parameters counts them"
        ) from error


# --------------------------------------------------------------------------------------
# A trained network as a file
# --------------------------------------------------------------------------------------

WEIGHTS_FORMAT = 1
# One entry holds all that isn't a tensor: safetensors writes several in an order that
# differs from one time to the next, and the same weights would have another digest.
WEIGHTS_ENTRY = "helpers"
WEIGHTS_FACTS = (
    "model", "num_classes", "in_channels", "logit_scale", "classes", "data"
)  # fmt: skip


def save_weights(
    model: nn.Module, path: str | os.PathLike, *, classes: Sequence[str], data: str
) -> str:
    """Write a trained network as a safetensors file; return its SHA-256, in hexadecimal.

    model: one of MODELS, on any device; it is not changed. classes: the names of its
    outputs, in order. data: what it was trained on, as `ImageSet.source` says it. The
    file is 13 MB for CustomResNet and holds all that `load_pretrained` needs, not the mean
    and std that its images were normalized with; the same weights give the same bytes.

    Parameters are rounded to float16: by 1 in 2,048 at most, or by 3e-8 where they are
    smaller than 6e-5. What BatchNorm has counted stays as it is: a variance is not
    bounded, one rounded to 0 or infinity would ruin its channel, and CustomResNet's are 18
    kB in all.

    Raises ValueError for any other model, classes that don't match its outputs and values
    that float16 can't hold; TypeError for classes that are no sequence, as a set; OSError
    where the file can't be written, and then the one that was there before stays;
    ModuleNotFoundError without safetensors.
    """
    with optional("safetensors"):
        from safetensors.torch import save

    model = uncompiled(model)
    facts = {"format": WEIGHTS_FORMAT, **facts_of(model)}
    if not hasattr(classes, "__getitem__") or isinstance(classes, dict):
        raise TypeError(
            f"classes is {classes!r}; pass the names in the outputs' order, as a list"
        )
    if len(classes) != facts["num_classes"]:
        raise ValueError(
            f"classes has {len(classes)} names and the model {facts['num_classes']} "
            "outputs; name each of them"
        )
    facts |= {"classes": [str(name) for name in classes], "data": str(data)}
    content = save(as_stored(model), {WEIGHTS_ENTRY: json.dumps(facts)})
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def load_pretrained(
    path: str | os.PathLike, *, sha256: str | None = None
) -> CustomResNet | ResNet18:
    """The network that `save_weights` wrote, in float32, on the CPU, in evaluation mode.

    It takes images (B, C, H, W), normalized with the mean and std that it was trained
    with, and gives logits (B, classes). Its attribute `classes` holds their names,
    `trained_on` the data. Nothing in the file can run, and random numbers are not touched.

    sha256: what the file's digest must be, 64 hexadecimal digits.

    Raises FileNotFoundError where there is no file, ValueError for one with another
    digest, of another kind or of a newer format, for a network that isn't in MODELS, and
    for weights that don't fit it, ModuleNotFoundError without safetensors.
    """
    facts, tensors = read_weights(place_of(path), sha256)
    if facts["model"] not in MODELS:
        raise ValueError(
            f"{path} holds a {facts['model']}, and MODELS has {', '.join(MODELS)}; use the "
            "version that wrote it"
        )
    options = {k: facts[k] for k in ("num_classes", "in_channels", "logit_scale")}
    with torch.device("meta"):  # no memory and no random numbers for what is replaced
        model = MODELS[facts["model"]](**options)
    state = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()  # the first line is but a heading
        raise ValueError(
            f"{path} doesn't fit {facts['model']}: {reason} Use the version that wrote it"
        ) from error
    model.classes, model.trained_on = tuple(facts["classes"]), facts["data"]
    return model.eval()


def facts_of(model: nn.Module) -> dict[str, Any]:
    """What a network of MODELS has to be built with to be like `model`."""
    names = [name for name, network in MODELS.items() if type(model) is network]
    if not names:
        raise ValueError(
            f"model is a {type(model).__name__}, which a file of weights can't name; pass "
            f"one of {', '.join(MODELS)}, or keep yours with torch.save(model.state_dict(), "
            "path)"
        )
    try:
        options = {
            # Of NumPy, JSON holds no numbers.
            "num_classes": int(model.linear.out_features),
            "in_channels": int(model.prep[0].in_channels),
            "logit_scale": float(model.logit_scale),
        }
        with torch.device("meta"):
            plain = layers_of(MODELS[names[0]](**options))
    except (AttributeError, TypeError):  # of a layer that was put in another's place
        plain = None
    if layers_of(model) != plain:
        raise ValueError(
            f"model is a {names[0]} with other layers or buffers than its own, which "
            "load_pretrained could not build; keep it with torch.save(model.state_dict(), path)"
        )
    return {"model": names[0], **options}


def layers_of(model: nn.Module) -> tuple[str, list[str]]:
    """All layers, less what only training uses, and the names of what they hold."""
    shown = repr(model).replace("SyncBatchNorm(", "BatchNorm2d(")
    return re.sub(r"momentum=[^,]+, |inplace=True", "", shown), [*model.state_dict()]


def as_stored(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with its parameters in float16, each tensor finite, on the CPU."""
    parameters, stored = dict(model.named_parameters()), {}
    for name, exact in model.state_dict().items():
        tensor = exact.half() if name in parameters else exact
        if not tensor.isfinite().all():
            value = float(exact[~tensor.isfinite()][0])
            raise ValueError(
                f"{name} holds {value:.4g}, which is not finite in {tensor.dtype}; the "
                "training has diverged, train with a lower max_lr"
            )
        stored[name] = tensor.cpu().contiguous()  # after fit it is channels-last
    return stored


def read_weights(
    path: Path, sha256: str | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What isn't a tensor in the file, and the tensors as they are stored."""
    with optional("safetensors"):
        from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; name one that save_weights wrote")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(
            f"{path} has the SHA-256 {digest} instead of {sha256}; it is damaged or another "
            "file, fetch it again"
        )
    try:
        with safe_open(path, framework="pt") as stored:
            facts = json.loads((stored.metadata() or {})[WEIGHTS_ENTRY])
            names = stored.keys()
            # Copies, as these are the file itself, which may be written anew.
            tensors = {name: stored.get_tensor(name).clone() for name in names}
        if facts["format"] <= WEIGHTS_FORMAT:
            return {name: facts[name] for name in WEIGHTS_FACTS}, tensors
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or no file of save_weights ({type(error).__name__}: "
            f"{error}); fetch it again, or name one that save_weights wrote"
        ) from error
    raise ValueError(
        f"{path} is of format {facts['format']} and this version reads up to "
        f"{WEIGHTS_FORMAT}; use a newer one"
    )
