"""What was tried on images held out, and by how much it gained.

The tables of results/TRIALS.md are made of this, and one of LOG.md: what
tools/trainings.py would add.
"""

from pathlib import Path
from typing import Any, NamedTuple

from helpers import results, utils
from tools import trainings


def base_runs(folder: Path) -> list[dict[str, Any]]:
    """The runs whose rate the range test chose, on the images of the sweep of rates."""
    return utils.read_records(folder, "sweep-base-seed*.json")


def paired(folder: Path, without: str, having: str) -> list[tuple[float, float]]:
    """Accuracies of two kinds of runs, of each seed that both have, all else alike."""
    names = (f"sweep-{name}-seed*.json" for name in (without, having))
    return results.paired(*(utils.read_records(folder, name) for name in names))


def gain(folder: Path, without: str, having: str) -> results.Gain:
    """What the second of two kinds of runs gains over the first."""
    return results.Gain.of(paired(folder, without, having))


class Trial(NamedTuple):
    """Some fields, and the two kinds of runs that differ in them.

    without, having: the kinds' names, as globs.
    """

    name: str
    fields: dict[str, Any]
    without: str
    having: str


# First with this weight decay, then with other things, each seed at the rate that its range
# test had chosen in the first.
FIRST: dict[str, Any] = {
    "weight_decay": 0.4,
    "label_smoothing": 0.1,
    "logit_scale": 0.125,
    "average_epochs": 3,
    "final_div_factor": 4,
}
# What was left of it, today's `ours`.
KEPT = {"weight_decay": 0.2, "label_smoothing": 0.1, "logit_scale": 0.125}
# TRIALS.md's tables; the records are in results/trials.
TRIED = {
    "at-once": [
        Trial("four", FIRST, "base", "four"),
        Trial("half-decay", FIRST | {"weight_decay": 0.2}, "base", "half-decay"),
        Trial("no-averaging", KEPT, "base", "no-averaging"),
        Trial("two", {"label_smoothing": 0.1, "logit_scale": 0.125}, "base", "two"),
    ],
    "variants": [
        Trial("half-rate", {"max_lr": "half of that"}, "four", "half-rate"),
        Trial("half-decay", {"weight_decay": 0.2}, "four", "half-decay"),
        Trial("double-decay", {"weight_decay": 0.8}, "four", "double-decay"),
    ],
    # Of half-decay, which was `ours` then.
    "left-out": [
        Trial(name, fields, f"no-{name}", "half-decay")
        for name, fields in {
            "weight-decay": {"weight_decay": 0.2},
            "label-smoothing": {"label_smoothing": 0.1},
            "logit-scale": {"logit_scale": 0.125},
            "averaging": {"average_epochs": 3, "final_div_factor": 4},
        }.items()
    ],
    # Once averaging was dropped.
    "asked-again": [
        Trial("weight-decay", {"weight_decay": 0.2}, "two", "no-averaging")
    ],
    # Page's recipe in place of the assignment's, and ours in place of Page's.
    "beside-page": [
        Trial("page", {"recipe": "page"}, "base", "page"),
        Trial("ours", {"recipe": "ours"}, "page", "no-averaging"),
    ],
    # As large as the range test chose once, at which it came out worse.
    "higher-rate": [
        Trial("higher", {"max_lr": 5.6e-3}, "rate-3.2e-03", "rate-5.6e-03")
    ],
    "higher-rate-16": [
        Trial(
            "higher, 16 epochs", {"max_lr": 5.6e-3}, "rate16-3.2e-03", "rate16-5.6e-03"
        )
    ],
    # What the report describes in place of the assignment's recipe, the others beside it.
    # Here alone the fifth pair is of another processor: base-xeon and so on.
    "reported": [
        Trial("reported", {"cutout": 0}, "base*", "reported*"),
        Trial("ours", {"recipe": "ours"}, "reported*", "no-averaging*"),
        Trial("page", {"recipe": "page"}, "reported*", "page*"),
    ],
    "schedule": [Trial("linear", {"anneal": "linear"}, "no-averaging", "linear")],
    "hole": [
        Trial("no-cutout", {"cutout": 0}, "no-averaging", "no-cutout"),
        Trial("beside page", {"recipe": "ours", "cutout": 0}, "page", "no-cutout"),
    ],
    "hole-longer": [  # over 24 epochs
        Trial("no-cutout", {"cutout": 0}, "longer", "longer-no-cutout")
    ],
    "flips": [
        Trial("alternating", {"flips": "alternating"}, "no-averaging", "alternating")
    ],
    "beta2": [Trial("beta2", {"beta2": 0.99}, "half-decay", "beta2")],
}


def planned() -> list[Trial]:
    """What the sweep compares."""
    return [
        Trial("all three", trainings.OURS, "base", "ours"),
        *(Trial(n, f, f"no-{n}", "ours") for n, f in trainings.INGREDIENTS.items()),
        *(Trial(n, f, "ours", n) for n, f in trainings.CHANGES.items()),
    ]
