"""The JSON records that runs leave: read, checked, and drawn up as a table.

`python -m helpers` writes them. What one holds can be read in any: they are plain JSON.
"""

import itertools
import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from helpers.files import place_of, write_whole
from helpers.recipe import PROFILES, RECIPES, Recipe

FORMAT = 2
# In columns of their own.
IN_COLUMNS = {"epochs", "batch_size", "train_images", "test_images", "max_lr"}
# What a recipe leaves to profile and machine.
AMOUNTS = {"epochs", "batch_size", "train_images", "test_images", "peak_epoch"}
AMOUNTS |= {"lr_test_steps", "lr_test_seeds", "precision"}
NOT_MEASURED = "not measured"
# A difference in accuracy: twice the standard deviation that the seed alone is assumed to
# cause in networks like these after 24 epochs (0.15 points). Short runs vary more, and two
# standard errors decide.
ALIKE = 0.003


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """Return a run's record, as `python -m helpers` wrote it.

    Raises FileNotFoundError where there is none, ValueError for a file that is no record
    and for one of another format.
    """
    path = place_of(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        form = record["format"]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is not there; name a record that python -m helpers wrote"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no record of a run ({type(error).__name__}: {error}); name one "
            "that python -m helpers wrote"
        ) from error
    if form != FORMAT:
        raise ValueError(
            f"{path} is of format {form} and this version reads {FORMAT}; use the version "
            "that wrote it"
        )
    return record


def write_record(path: str | os.PathLike, record: dict[str, Any]) -> None:
    """Write a run's record, and the number of its format: whole, or not at all.

    record: of JSON's own types; `results_markdown` and `describe_record` need the fields
    of those in results. Raises OSError where the file can't be written.
    """
    content = json.dumps({**record, "format": FORMAT}, indent=1) + "\n"
    write_whole(path, content.encode())


def read_records(
    folder: str | os.PathLike, pattern: str = "*.json"
) -> list[dict[str, Any]]:
    """Return all records of `folder` whose names match, by name; see `read_record`.

    pattern: a glob; run-*.json for this project's results, as those of its benchmarks
        there are of another format, at which this raises ValueError.

    Raises FileNotFoundError also where there is no such folder.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; name one that holds records"
        )
    return [read_record(path) for path in sorted(folder.glob(pattern))]


def describe_record(record: dict[str, Any]) -> str:
    """Return one line for a figure's `data`, about one run or several like it."""
    data, recipe = record["data"], record["recipe"]
    return (
        f"{data['source']}, {data['train_images']:,} training images, "
        f"{recipe['epochs']} epochs, evaluated on {data['evaluated_on']}"
    )


def results_markdown(records: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with a row for each experiment among `records`.

    Accuracies are means in percent, with the standard deviation where there are several
    seeds. The last epoch's is the figure to quote: the maximum was chosen by the test set.
    Of records of one experiment and seed the last one counts. Data, numbers of images,
    epochs × batch, hardware and where images are augmented stand above the table where all
    rows share them; a column of which nothing was measured is left out.
    """
    lines = []
    for runs in experiments(records):
        ran = Experiment.of(runs[0])
        images = f"{ran.train_images:,} → {ran.test_images:,}"
        if ran.evaluated_on != "test set":
            images += f" {ran.evaluated_on}"
        last, tta, best = (
            spread([run[name] for run in runs])
            for name in ("last_epoch_accuracy", "flip_tta_accuracy", "maximum_accuracy")
        )
        commits = sorted({f"`{short_commit(run['commit'])}`" for run in runs})
        rates = sorted({f"{run['max_lr']:.1e}" for run in runs}, key=float)
        lines.append(
            {
                "network, recipe": f"{ran.model}, {how_trained(runs[0])}",
                "data": ran.source,
                "training → test images": images,
                "epochs × batch": f"{ran.epochs} × {ran.batch_size}",
                "hardware": ran.hardware,
                "augmented on": ran.augment_on,
                "max_lr": " to ".join(dict.fromkeys((rates[0], rates[-1]))),
                "runs": len(runs),
                "last epoch": f"**{last}**",
                "maximum": best,
                "last epoch, flip TTA": tta,
                "difference to `page`, points ± standard error": against_page(
                    runs, records
                ),
                "commit": ", ".join(commits),
            }
        )
    if not lines:
        return "(no records)"
    conditions = list(lines[0])[1:6]
    shared = [name for name in conditions if len({line[name] for line in lines}) == 1]
    above = "; ".join(f"{name}: {lines[0][name]}" for name in shared)
    columns = [
        name
        for name in lines[0]
        if name not in shared and {line[name] for line in lines} != {NOT_MEASURED}
    ]
    table = markdown(columns, [[line[name] for name in columns] for line in lines])
    return f"{above}\n\n{table}" if above else table


def how_trained(record: dict[str, Any]) -> str:
    """The recipe's name, and the fields in which the run differs from that recipe today."""
    name, had = record["recipe_name"], record["recipe"]
    profile = PROFILES.get(record.get("profile"), Recipe())
    # Of a recipe that is no more, nothing can be said.
    today = {**asdict(profile), **RECIPES.get(name, had)}
    otherwise = [
        f"`{field}={had[field]}`"
        for field in sorted(had.keys() - IN_COLUMNS)
        if had[field] != today.get(field)  # or a field that is no more
    ]
    return f"`{name}`" + f" with {', '.join(otherwise)}" * bool(otherwise)


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
        return Gain.of([found[best][seed] - found[rate][seed] for seed in shared])

    def may_be_as_good(rate: float) -> bool:
        mean, error, _ = lost(rate)
        # Without a pair the mean is nan; of one the error is infinite.
        return not mean > max(ALIKE, 2 * error)

    at = rates.index(best)
    sides = rates[at + 1 :], rates[:at][::-1]
    above, below = ([*itertools.takewhile(may_be_as_good, side)] for side in sides)
    top = [best, *above, *below]
    return None if any(lost(rate).n < 2 for rate in top) else (min(top), max(top))


class Gain(NamedTuple):
    """By how much accuracy is higher: a mean over n paired seeds.

    All are fractions; error is the standard error of the mean.
    """

    mean: float
    error: float
    n: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Gain":
        """The gain of one difference a pair."""
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
        return f"{self.device}, {self.precision}{several}"


def experiments(records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The records in groups, each the runs of one experiment; of a seed, the last given."""
    return [
        list({run["seed"]: run for run in runs}.values())
        for _, runs in itertools.groupby(
            sorted(records, key=Experiment.of), key=Experiment.of
        )
    ]


def short_commit(commit: str) -> str:
    """Seven digits, as git has them, and whether the code was changed."""
    return commit[:7] + "-dirty" * commit.endswith("-dirty")


def spread(values: Sequence[float | None]) -> str:
    """Mean, and with several values their standard deviation, of fractions, in percent."""
    if None in values:
        return NOT_MEASURED
    mean = f"{statistics.fmean(values):.2%}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def is_page(record: dict[str, Any]) -> bool:
    """Whether a run is by Page's recipe as it is, with which the others are compared."""
    had, page = (
        {field: value for field, value in fields.items() if field not in AMOUNTS}
        for fields in (record["recipe"], {**asdict(Recipe()), **RECIPES["page"]})
    )
    by_name = (record["model"], record["recipe_name"]) == ("CustomResNet", "page")
    return by_name and had == page


def against_page(
    runs: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]]
) -> str:
    """How much better than Page's recipe: points, and their standard error over seeds."""
    if is_page(runs[0]):
        return "0"

    pairs = paired([record for record in records if is_page(record)], runs)
    gains = [after - before for before, after in pairs]
    return Gain.of(gains).points if gains else NOT_MEASURED


def paired(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> list[tuple[float, float]]:
    """Last-epoch accuracies of each two runs that only model or recipe sets apart."""

    def conditions(record: dict[str, Any]) -> tuple:
        # Where images are augmented decides only what is drawn.
        rest = Experiment.of(record)._replace(
            model="", recipe_name="", augment_on="", trained=""
        )
        images = record["data"]["test_fingerprint"]
        return *rest, images, record["recipe"]["peak_epoch"], record["seed"]

    found = {conditions(record): record["last_epoch_accuracy"] for record in before}
    return [
        (found[conditions(record)], record["last_epoch_accuracy"])
        for record in after
        if conditions(record) in found
    ]


def markdown(
    columns: Sequence[str], lines: Sequence[Sequence], left: Sequence[int] = (0,)
) -> str:
    """A Markdown table with numbers at the right, and the columns `left` at the left."""
    aligns = [":--" if i in left else "--:" for i in range(len(columns))]
    rows = [columns, aligns, *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
