"""Train all that results/ should hold, record by record; made for a GPU.

    python -m tools.records [--minutes 8]

Ingredients are tried one by one on training images held out, over paired seeds; those that
gain are added to Adam's recipe, and what results is trained on all images and tested
beside the others. A record that is there isn't made again: stop this at any time, and
run it again. `make readme` draws up the tables.
"""

import argparse
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from helpers import __main__ as program
from helpers import utils
from helpers.train_test import RECIPES, Recipe

PROJECT = Path(__file__).resolve().parent.parent
SEEDS = range(5)
# Whose network is kept: the first seed's, not the best one's.
KEPT = "run-ours-CustomResNet-seed0"
# Each is tried alone, on top of the assignment's recipe.
INGREDIENTS: dict[str, dict[str, Any]] = {
    # With logit-scale the range test chose 1.3e-2: times that and the steps of an epoch,
    # this is what 0.4 is in the short trials.
    "weight-decay": {"weight_decay": 0.2},
    "label-smoothing": {"label_smoothing": 0.1},
    "logit-scale": {"logit_scale": 0.125},
    # Averaging needs steps that still move: the rate ends at 1% of its peak.
    "averaging": {"average_epochs": 3, "final_div_factor": 4},
    "no-cutout": {"cutout": 0},
}
# The four that others report to help, at once: tried first, as short as a CPU needs it,
# as half-decay; what was tried before that had twice the weight decay.
TOGETHER = {
    field: value
    for name, changes in INGREDIENTS.items()
    if name != "no-cutout"
    for field, value in changes.items()
}
# Around what the range test chooses, a factor of about 1.8 apart.
MAX_LRS = (3e-4, 1e-3, 1.8e-3, 3.2e-3, 5.6e-3, 1e-2, 3e-2)


class Run(NamedTuple):
    """A record's name, and the options of `python -m helpers` that make it."""

    name: str
    options: list[str]


def as_options(fields: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]


def ingredient_sweep(holdout: int) -> list[Run]:
    """Each ingredient alone, and none, on images held out."""
    tried = {"base": {}, **INGREDIENTS}
    return [
        Run(
            f"sweep-{name}-seed{seed}",
            [f"--holdout={holdout}", f"--seeds={seed}", *as_options(fields)],
        )
        for seed in SEEDS  # paired, however many there is time for
        for name, fields in tried.items()
    ]


def rate_sweep(holdout: int) -> list[Run]:
    """Learning rates around what the range test chooses, on images held out."""
    return [
        Run(
            f"lr-{rate:.1e}-seed{seed}",
            [f"--holdout={holdout}", f"--seeds={seed}", f"--max-lr={rate}"],
        )
        for seed in SEEDS
        for rate in MAX_LRS
    ]


def finals(chosen: dict[str, Any]) -> list[Run]:
    """On the test set, once: the three recipes and both networks."""
    # What the recipe of that name has today may not have been kept.
    plain = {field: getattr(Recipe(), field) for field in RECIPES["ours"]}
    ours = ["--recipe=ours", *as_options(plain | chosen)]
    experiments = {
        "page-CustomResNet": ["--recipe=page"],
        "reported-CustomResNet": ["--recipe=reported"],
        "ours-CustomResNet": ours,
        "ours-ResNet18": [*ours, "--model=ResNet18"],
    }
    return [
        Run(f"run-{name}-seed{seed}", [*options, f"--seeds={seed}"])
        for seed in SEEDS
        for name, options in experiments.items()
    ]


class Gain(NamedTuple):
    """What an ingredient adds to the last epoch's accuracy: a mean over n paired seeds.

    All are fractions; error is the standard error of the mean.
    """

    mean: float
    error: float
    n: int

    @property
    def kept(self) -> bool:
        return self.n >= 5 and self.mean > 2 * self.error

    @property
    def points(self) -> str:
        return f"{100 * self.mean:+.2f} ± {100 * self.error:.2f}"


def accuracies(folder: Path, prefix: str) -> dict[int, float]:
    """Last-epoch accuracy by seed."""
    if not folder.is_dir():
        return {}
    records = utils.read_records(folder, f"{prefix}-seed*.json")
    return {record["seed"]: record["last_epoch_accuracy"] for record in records}


def base_runs(folder: Path) -> list[dict[str, Any]]:
    """Those whose rate the range test chose, on the images of the curve's runs."""
    return utils.read_records(folder, "sweep-base-seed*.json")


def gain(folder: Path, ingredient: str, base: str = "base") -> Gain:
    before, tried = (accuracies(folder, f"sweep-{n}") for n in (base, ingredient))
    differences = [tried[seed] - before[seed] for seed in tried if seed in before]
    n = len(differences)
    mean = statistics.fmean(differences) if n else math.nan
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.inf
    return Gain(mean, error, n)


def chosen(folder: Path) -> dict[str, Any]:
    """The fields of all ingredients that are kept.

    Until each was tried alone as often as it takes, those of TOGETHER, if together they are.
    """
    if any(gain(folder, name).n < len(SEEDS) for name in INGREDIENTS):
        return TOGETHER if gain(folder / "together", "half-decay").kept else {}
    fields: dict[str, Any] = {}
    for name, changes in INGREDIENTS.items():
        if gain(folder, name).kept:
            fields |= changes
    return fields


def missing(folder: Path, holdout: int) -> Iterator[Run]:
    """Those still to be made; the finals once it is known what they consist of."""

    def lacking(runs: list[Run]) -> list[Run]:
        return [run for run in runs if not (folder / f"{run.name}.json").exists()]

    sweep = ingredient_sweep(holdout)
    yield from lacking(sweep)
    if not lacking(sweep):  # none has failed
        yield from lacking(finals(chosen(folder)))
    yield from lacking(rate_sweep(holdout))


def make(run: Run, folder: Path, common: list[str]) -> None:
    keep = ["--save-weights"] if run.name == KEPT else []
    # A run is repeated, not gone on with: a checkpoint would only take time.
    common = [*common, "--no-checkpoint"]
    with tempfile.TemporaryDirectory() as scratch:
        program.main([*common, *run.options, *keep, "--out", scratch])
        (path,) = Path(scratch).glob("*.json")
        record = utils.read_record(path)
        if keep:
            name = f"{run.name}.safetensors"
            shutil.copyfile(path.with_name(record["weights"]["file"]), folder / name)
            record["weights"]["file"] = name
    utils.write_record(folder / f"{run.name}.json", record)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.records")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="begin no run that would not end within these",
    )
    parser.add_argument("--out", type=Path, default=PROJECT / "results")
    parser.add_argument("--holdout", type=int, default=5_000)
    parser.add_argument(
        "common", nargs="*", help="options of python -m helpers, for all (after --)"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    began, longest, failed = time.monotonic(), 0.0, []
    for run in missing(options.out, options.holdout):
        start = time.monotonic()
        # The first run begins in any case, or nothing would ever be made.
        if longest and start - began + longest > 60 * options.minutes:
            raise SystemExit(f"{run.name} is next; run this again to go on")
        print(f"--- {run.name}")
        try:
            make(run, options.out, options.common)
        except SystemExit as error:
            if isinstance(error.code, int):  # Ctrl-C
                raise
            # A rate that is too high, say: the others' records don't depend on it.
            print(error)
            failed.append(run.name)
        longest = max(longest, time.monotonic() - start)
    if failed:
        waiting = any(name.startswith("sweep-") for name in failed)
        raise SystemExit(
            f"no record of {', '.join(failed)}: the reasons are above"
            + "; what is trained on all images waits for the whole sweep" * waiting
        )
    print(f"all records are in {options.out}")


if __name__ == "__main__":
    main()
