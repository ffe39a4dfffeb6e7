"""What records have in common, and by how much they differ."""

import itertools
import json
import math
import re
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

# A difference in accuracy: twice the standard deviation that the seed alone is assumed to
# cause in networks like these after 24 epochs (0.15 points). Short runs vary more, and two
# standard errors decide.
ALIKE = 0.003


class Experiment(NamedTuple):
    """What records have in common that are runs of one experiment."""

    model: str
    recipe_name: str
    epochs: int
    train_images: int
    batch_size: int
    source: str
    test_images: int
    evaluated_on: str
    device: str
    precision: str
    processes: int
    augment_on: str
    trained: str  # all else that decides, as JSON

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Experiment":
        """The experiment that a record is of."""
        data, recipe, hardware = record["data"], record["recipe"], record["hardware"]
        # 5 and 5.0 are one value.
        fields = {
            name: float(value) if isinstance(value, int) else value
            for name, value in recipe.items()
        }
        return cls(
            record["model"],
            record["recipe_name"],
            recipe["epochs"],
            data["train_images"],
            recipe["batch_size"],
            data["source"],
            data["test_images"],
            data["evaluated_on"],
            hardware["device"],
            hardware["precision"],
            hardware["processes"],
            record["augment_on"],
            json.dumps(fields, sort_keys=True),
        )

    @property
    def hardware(self) -> str:
        """The device, what it computed in, and how many such worked together."""
        several = f", processes: {self.processes}" if self.processes > 1 else ""
        return f"{unmarked(self.device)}, {self.precision}{several}"


def unmarked(name: str) -> str:
    """A processor's name without its trademarks."""
    return re.sub(r"\((R|TM)\)", "", name)


def experiments(records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The records in groups, each the runs of one experiment; of a seed, the last given.

    Raises TypeError for a record alone.
    """
    if isinstance(records, dict):
        raise TypeError("records is one record; pass a list of them, [record] say")
    return [
        list({run["seed"]: run for run in runs}.values())
        for _, runs in itertools.groupby(
            sorted(records, key=Experiment.of), key=Experiment.of
        )
    ]


def paired(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> list[tuple[float, float]]:
    """Last-epoch accuracies of each pair of runs that differ only in model or recipe."""

    def conditions(record: dict[str, Any]) -> tuple:
        alike = Experiment.of(record)._replace(model="", recipe_name="", trained="")
        images = record["data"]["test_fingerprint"]
        return alike, images, record["recipe"]["peak_epoch"], record["seed"]

    found = {conditions(record): record["last_epoch_accuracy"] for record in before}
    return [
        (found[alike], record["last_epoch_accuracy"])
        for record in after
        if (alike := conditions(record)) in found
    ]


class Gain(NamedTuple):
    """By how much accuracy is higher: a mean over n paired seeds.

    All are fractions; error is the standard error of the mean.
    """

    mean: float
    error: float
    n: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> "Gain":
        """The gain of pairs of accuracies, (before, after)."""
        differences = [after - before for before, after in pairs]
        n = len(differences)
        mean = statistics.fmean(differences) if n else math.nan
        error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.inf
        return cls(mean, error, n)

    @property
    def decided(self) -> bool:
        """Whether there are pairs enough, five, to tell."""
        return self.n >= 5

    @property
    def kept(self) -> bool:
        """Whether it is more than two standard errors, over enough pairs."""
        return self.decided and self.mean > 2 * self.error

    @property
    def points(self) -> str:
        """In percentage points, with its standard error."""
        if self.n == 1:
            return f"{100 * self.mean:+.2f}, one pair"
        return f"{100 * self.mean:+.2f} ± {100 * self.error:.2f}"


def accuracy_by_rate(
    records: Sequence[dict[str, Any]],
) -> dict[float, dict[int, float]]:
    """Return for each max_lr, lowest first, the last epoch's accuracy of each seed."""
    found: dict[float, dict[int, float]] = {}
    for record in sorted(records, key=lambda record: record["max_lr"]):
        seeds = found.setdefault(record["max_lr"], {})
        seeds[record["seed"]] = record["last_epoch_accuracy"]
    return found


def flat_top(records: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """Return the lowest and the highest max_lr that do as well as the best one.

    None as long as one that may be among them has no two seeds in common with the best:
    that is no comparison yet.

    records: of runs that differ in max_lr and seed alone. A rate does as well if over the
    seeds that it shares with the best its accuracy is, on average, at most 0.3 points
    lower, or at most two standard errors; on either side, the first that doesn't ends it.
    """
    found = accuracy_by_rate(records)
    rates = list(found)
    best = max(rates, key=lambda rate: statistics.fmean(found[rate].values()))

    def lost(rate: float) -> Gain:
        shared = found[best].keys() & found[rate].keys()
        return Gain.of([(found[rate][seed], found[best][seed]) for seed in shared])

    def may_be_as_good(rate: float) -> bool:
        mean, error, _ = lost(rate)
        # Without a pair the mean is nan; of one the error is infinite.
        return not mean > max(ALIKE, 2 * error)

    at = rates.index(best)
    sides = rates[at + 1 :], rates[:at][::-1]
    above, below = ([*itertools.takewhile(may_be_as_good, side)] for side in sides)
    top = [best, *above, *below]
    return None if any(lost(rate).n < 2 for rate in top) else (min(top), max(top))
