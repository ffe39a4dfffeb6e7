"""The two networks of the assignment, and what can be read off any network."""

import copy

import torch
from torch import Tensor, nn

from helpers.receptive_field import Row, receptive_field_table

__all__ = [
    "MODELS",
    "CustomResNet",
    "ResNet18",
    "Row",
    "count_parameters",
    "receptive_field_table",
    "summarize",
]


def conv3x3(
    in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False
) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)


class Residual(nn.Module):
    """x + F(x), where F is two 3×3 convolutions, each with BatchNorm and ReLU; shape unchanged."""

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
    # The bias is the assignment's. BatchNorm subtracts it again, so it is counted but learns nothing.
    return [
        conv3x3(in_channels, out_channels, bias=True),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class CustomResNet(nn.Module):
    """The assignment's network: 8 convolutions, 6,574,090 parameters for 10 classes and 3 channels.

    Takes images (B, in_channels, H, W), H and W at least 8, and gives logits (B, num_classes).
    A relative of ResNet-9 from David Page's "How to Train Your ResNet" (2018).
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
        self.pool = nn.AdaptiveMaxPool2d(
            1
        )  # 512×1×1: of each channel, its strongest response anywhere
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return self.logit_scale * self.linear(self.pool(x).flatten(1))


class BasicBlock(nn.Module):
    """ReLU(F(x) + shortcut(x)) of He et al. (2015); the shortcut is a 1×1 convolution where shapes differ."""

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
    """ResNet-18 of "Deep Residual Learning" (He et al., 2015) in its form for small images.

    Its first convolution is 3×3 with stride 1 and no max-pooling follows, as 32×32 images need.
    Takes images (B, in_channels, H, W) and gives logits (B, num_classes); 11,173,962 parameters
    for 10 classes and 3 channels.
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


MODELS = {
    "CustomResNet": CustomResNet,
    "ResNet18": ResNet18,
}  # by the name a person types


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters, each shared one counted once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def summarize(model: nn.Module, image_size: tuple[int, int, int] = (3, 32, 32)) -> None:
    """Print torchsummary's table of layers for images of `image_size` (C, H, W), and leave no trace.

    torchsummary runs the model in its current mode on random numbers, which would move BatchNorm's
    statistics and the random number generator: it gets a copy, and the generator is put back.
    """
    from torchsummary import summary

    with torch.random.fork_rng(devices=[]):
        summary(copy.deepcopy(model).cpu(), image_size, device="cpu")
