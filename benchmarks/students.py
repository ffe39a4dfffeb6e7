"""What one writes instead, as the assignment's public solutions do: loaders and a loop."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from helpers.dataset import CIFAR10_MEAN, CIFAR10_STD, ImageSet, import_albumentations


class PerImage(Dataset):
    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Callable
    ):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def torchvision_loader(train: ImageSet, batch_size: int) -> DataLoader:
    from torchvision import transforms as T

    transform = T.Compose(
        [
            Image.fromarray,  # as torchvision's CIFAR10 does
            T.RandomCrop(32, padding=4, padding_mode="reflect"),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(CIFAR10_MEAN, CIFAR10_STD),
            # 8×8 of 32×32 pixels, of the mean colour: the same hole as the others'.
            T.RandomErasing(p=1, scale=(1 / 16, 1 / 16), ratio=(1, 1)),
        ]
    )
    data = PerImage(train.images, train.labels, transform)
    return DataLoader(data, batch_size, shuffle=True, num_workers=0)


def albumentations_loader(train: ImageSet, batch_size: int) -> DataLoader:
    A = import_albumentations()
    from albumentations.pytorch import ToTensorV2

    transform = A.Compose(
        [
            A.PadIfNeeded(40, 40, border_mode=4, p=1),  # reflection, as ours
            A.RandomCrop(32, 32, p=1),
            A.HorizontalFlip(p=0.5),
            A.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=(8, 8),
                hole_width_range=(8, 8),
                fill=tuple(round(255 * mean) for mean in CIFAR10_MEAN),
                p=1,
            ),
            A.Normalize(CIFAR10_MEAN, CIFAR10_STD),
            ToTensorV2(),
        ]
    )
    data = PerImage(
        train.images, train.labels, lambda image: transform(image=image)["image"]
    )
    return DataLoader(data, batch_size, shuffle=True, num_workers=0)


def train_one_epoch(
    model: nn.Module,
    loader,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    device: torch.device,
) -> tuple[float, float]:
    """float32, channels-first, and two numbers read from the device at each step."""
    model.train()
    losses, correct, processed = [], 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        correct += logits.argmax(1).eq(labels).sum().item()
        processed += len(labels)
    return sum(losses) / len(losses), correct / processed
