"""Train all that results/ should hold, record by record; made for a GPU.

    python -m tools.trainings [--minutes 60]

Each recipe on all images first, and ResNet18; then, on training images held out, the recipe
that short trials chose, that with one ingredient left out in turn or another weight decay,
and the assignment's at other learning rates. (After the test set is used up, these explain
the recipe; they don't choose it.) A record that is there isn't made again: stop this at any
time, and run it again. `make readme` draws up the tables of those in results/.

Where time is short, `--minutes 8 --out records` does a part, one run at least, and the next
call goes on; `tar czf records.tgz records` makes one file of them.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from helpers import __main__ as program
from helpers import train_test, utils
from helpers.files import place_of

RESULTS = Path(__file__).resolve().parent.parent / "results"
SEEDS = range(5)
HOLDOUT = 5_000  # training images that the sweeps are tested on
# Whose network is kept: the first seed's, not the best one's.
KEPT = "run-ours-CustomResNet-seed0"
# What short trials chose: see results/LOG.md.
OURS = train_test.RECIPES["ours"]
INGREDIENTS = {field.replace("_", "-"): {field: value} for field, value in OURS.items()}
# Each is tried with all of these.
CHANGES: dict[str, dict[str, Any]] = {
    "decay-0.1": {"weight_decay": 0.1},
    "decay-0.4": {"weight_decay": 0.4},
    "no-cutout": {"cutout": 0},
}
# Closer together near what the range test chooses.
MAX_LRS = (3e-4, 1e-3, 1.8e-3, 3.2e-3, 5.6e-3, 1e-2, 3e-2)


class Run(NamedTuple):
    """A record's name, and the options of `python -m helpers` that make it."""

    name: str
    options: list[str]


def as_options(fields: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]


def ingredient_sweep() -> list[Run]:
    """The assignment's recipe, OURS, and that but for one thing, on held-out images."""
    tried: dict[str, dict[str, Any]] = {"base": {}, "ours": OURS}
    for name, fields in INGREDIENTS.items():
        tried[f"no-{name}"] = {f: OURS[f] for f in OURS if f not in fields}
    for name, fields in CHANGES.items():
        tried[name] = OURS | fields
    return [
        Run(
            f"sweep-{name}-seed{seed}",
            [f"--holdout={HOLDOUT}", f"--seeds={seed}", *as_options(fields)],
        )
        for seed in SEEDS  # paired, however many there is time for
        for name, fields in tried.items()
    ]


def rate_sweep() -> list[Run]:
    """Learning rates around what the range test chooses, on images held out."""
    return [
        Run(
            f"lr-{rate:.1e}-seed{seed}",
            [f"--holdout={HOLDOUT}", f"--seeds={seed}", f"--max-lr={rate}"],
        )
        for seed in SEEDS
        for rate in MAX_LRS
    ]


def finals() -> list[Run]:
    """On the test set, once: each recipe."""
    return [
        Run(
            f"run-{recipe}-CustomResNet-seed{seed}",
            [f"--recipe={recipe}", f"--seeds={seed}"],
        )
        for seed in SEEDS
        for recipe in ("page", "ours", "assignment", "reported")
    ]


def other_network() -> list[Run]:
    """ResNet18 by the recipe `ours`, on the test set."""
    return [
        Run(
            f"run-ours-ResNet18-seed{seed}",
            ["--recipe=ours", "--model=ResNet18", f"--seeds={seed}"],
        )
        for seed in SEEDS
    ]


def plan() -> list[Run]:
    """All of them, what tells most first."""
    return [*finals(), *other_network(), *ingredient_sweep(), *rate_sweep()]


def require_machine(folder: Path, common: list[str]) -> None:
    """Raise SystemExit where days would pass, or new records couldn't join those there."""
    here = utils.get_device()
    given = [option for option in common if option.startswith("-")]
    shorter = any(option.startswith(("--prof", "--epochs")) for option in given)
    altered = any(not option.startswith(("--data", "--augment-on")) for option in given)
    if here.type == "cpu" and not shorter:
        raise SystemExit(
            f"torch finds no GPU that it can use, and on a CPU these {len(plan())} trainings "
            "take days: use a machine with a GPU (an older driver needs a torch built for its "
            "CUDA), or rehearse with `--out FOLDER -- --profile=smoke`"
        )
    if altered and folder.resolve() == RESULTS:
        raise SystemExit(
            f"in {folder} these would pass for trainings of full length by today's recipes; "
            "add --out FOLDER"
        )
    name = utils.device_name(here)
    for path in (folder / f"{run.name}.json" for run in plan()):
        if path.exists():
            there = utils.read_record(path)["hardware"]["device"]
            if there != name:
                raise SystemExit(
                    f"{path} was made on {there} and this is {name}, whose accuracies aren't "
                    "compared with those: go on there, or add --out FOLDER for this one's"
                )


def make(run: Run, folder: Path, common: list[str]) -> None:
    keep = ["--save-weights"] if run.name == KEPT else []
    # Of full length, also where no GPU is found: its name doesn't tell. And a run is
    # repeated, not gone on with: a checkpoint would only take time.
    common = ["--profile=full", *common, "--no-checkpoint"]
    # Beside the records: what can't be written there is said before training.
    with tempfile.TemporaryDirectory(prefix=".run-", dir=folder) as scratch:
        program.main([*common, *run.options, *keep, "--out", scratch])
        (path,) = Path(scratch).glob("*.json")
        if keep:
            record = utils.read_record(path)
            name = f"{run.name}.safetensors"
            path.with_name(record["weights"]["file"]).replace(folder / name)
            record["weights"]["file"] = name
            utils.write_record(path, record)
        path.replace(folder / f"{run.name}.json")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.trainings")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="begin no run that, by the longest so far, would not end within these",
    )
    parser.add_argument(
        "--out", type=place_of, default=RESULTS, help="folder of records and weights"
    )
    parser.add_argument(
        "common", nargs="*", help="options of python -m helpers, for all (after --)"
    )
    options = parser.parse_args(arguments)
    require_machine(options.out, options.common)
    options.out.mkdir(parents=True, exist_ok=True)
    began, longest, failed = time.monotonic(), 0.0, []
    for run in plan():
        if (options.out / f"{run.name}.json").exists():
            continue
        start = time.monotonic()
        # The first run begins in any case, or nothing would ever be made.
        if longest and start - began + longest > 60 * options.minutes:
            print(f"{run.name} is next; run this again to go on")
            break
        print(f"--- {run.name}", flush=True)
        try:
            make(run, options.out, options.common)
        except SystemExit as error:
            # Ctrl-C, and what the others need as well: dataset, disk.
            if isinstance(error.code, int) or isinstance(error.__cause__, OSError):
                raise
            # A rate that is too high, say: the others' records don't depend on it.
            print(error)
            failed.append(run.name)
        longest = max(longest, time.monotonic() - start)
    else:
        print(f"all {'other ' * bool(failed)}records are in {options.out}")
    if failed:
        raise SystemExit(f"no record of {', '.join(failed)}: the reasons are above")


if __name__ == "__main__":
    main()
