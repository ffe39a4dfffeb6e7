"""What a training leaves: metrics, epoch by epoch, and learning rates."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Metrics(NamedTuple):
    """loss: mean cross-entropy in nats per example; accuracy: a fraction in [0, 1]."""

    loss: float
    accuracy: float


class Epoch(NamedTuple):
    """One row of a History; epochs count from 1.

    *_loss: mean cross-entropy in nats per example, train_loss of smoothed labels if they
        were smoothed.
    *_accuracy: fractions in [0, 1].
    learning_rate: that of the epoch's last step.
    seconds: of training and evaluation.
    images_per_second: in training alone.

    A loop of one's own may leave out the last three: `Epoch(1, *trained, *tested)`, of two
    Metrics. Its line then leaves them out too.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float = math.nan
    seconds: float = math.nan
    images_per_second: float = math.nan

    def __str__(self) -> str:
        parts = [
            f"epoch {self.epoch:3}",
            f"train loss {self.train_loss:.4f} acc {self.train_accuracy:7.2%}",
            f"test loss {self.test_loss:.4f} acc {self.test_accuracy:7.2%}",
        ]
        if not math.isnan(self.learning_rate):
            parts.append(f"lr {self.learning_rate:.2e}")
        if not math.isnan(self.images_per_second):
            parts.append(f"{self.images_per_second:7,.0f} images/s")
        return " | ".join(parts)


@dataclass
class History:
    """What happened: a row per epoch, and the learning rate of every step.

    max_lr: the peak that was used, given or found.
    learning_rates: one per step; none where a record is all that is left.
    """

    max_lr: float
    epochs: list[Epoch] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)

    @property
    def last(self) -> Epoch:
        """The last epoch: the figure to report."""
        return self.epochs[-1]

    @property
    def best(self) -> Epoch:
        """The epoch with the highest test accuracy, which the test set has chosen."""
        return max(self.epochs, key=lambda row: row.test_accuracy)

    def as_dict(self) -> dict[str, Any]:
        """Numbers, lists and dicts alone, as JSON and a checkpoint hold them."""
        rows = [row._asdict() for row in self.epochs]
        return {**vars(self), "epochs": rows}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "History":
        """A History from what `as_dict` gave, also where a record has kept it.

        Where JSON has no number, as for NaN, a record has None.
        """
        rows = [
            Epoch(**{name: math.nan if v is None else v for name, v in row.items()})
            for row in values["epochs"]
        ]
        return cls(**{**values, "epochs": rows})

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "History":
        """The History in a run's record, which holds no learning_rates."""
        return cls.from_dict({"max_lr": record["max_lr"], "epochs": record["history"]})
