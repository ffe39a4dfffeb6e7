"""Markdown tables: of results, and of receptive fields."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from helpers.recipe import PROFILES, RECIPES, Recipe
from helpers.records import describe_record
from helpers.results import Experiment, Gain, experiments, paired

# Fields that have columns of their own.
IN_COLUMNS = {"epochs", "batch_size", "train_images", "test_images", "max_lr"}
# Fields that profile and machine decide, not the recipe.
AMOUNTS = {"epochs", "batch_size", "train_images", "test_images", "peak_epoch"}
AMOUNTS |= {"lr_test_steps", "lr_test_seeds", "precision"}
NOT_MEASURED = "not measured"


def results_markdown(records: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with a row for each experiment among `records`.

    Accuracies are means in percent, with the standard deviation where there are several
    seeds. The last epoch's is the figure to quote: the maximum was chosen by the test set.
    Of records of one experiment and seed the last one counts. Data, numbers of images,
    epochs × batch, hardware and where images are augmented stand above the table where all
    rows share them; a column of which nothing was measured is left out.

    Raises TypeError for a record alone.
    """
    groups, lines = experiments(records), []
    compared = list(itertools.chain.from_iterable(groups))
    for runs in groups:
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
                    runs, compared
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


def class_results_markdown(records: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of each class's accuracy, a column for each experiment.

    Means in percent, with the standard deviation over seeds where there are several.

    Raises TypeError for a record alone.
    """
    groups = experiments(records)
    if not groups:
        return "(no records)"
    by_class = [[run["class_accuracy"] for run in runs] for runs in groups]
    names = dict.fromkeys(name for each in by_class for one in each for name in one)
    lines = [
        (name, *(spread([one.get(name) for one in each]) for each in by_class))
        for name in names
    ]
    heads, about = ["class"], []
    for runs in groups:
        how = f"{runs[0]['model']}, {how_trained(runs[0])}{machine(runs, groups)}"
        heads.append(f"{how}, runs: {len(runs)}")
        about.append(describe_record(runs[0]))
    if len(set(about)) == 1:
        return f"{about[0]}\n\n{markdown(heads, lines)}"
    each = [
        f"{head}, {trained}" for head, trained in zip(heads[1:], about, strict=True)
    ]
    return markdown(["class", *each], lines)


def machine(
    runs: Sequence[dict[str, Any]], groups: Sequence[Sequence[dict[str, Any]]]
) -> str:
    """The hardware of these runs and where they augment, if not all groups' are alike."""
    ran, others = Experiment.of(runs[0]), [Experiment.of(group[0]) for group in groups]
    told = ""
    if any(other.hardware != ran.hardware for other in others):
        told += f", {ran.hardware}"
    if any(other.augment_on != ran.augment_on for other in others):
        told += f", augmented on {ran.augment_on}"
    return told


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


def against_page(
    runs: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]]
) -> str:
    """How much better than Page's recipe: points, and their standard error over seeds."""
    if is_page(runs[0]):
        return "0"
    gain = Gain.of(paired([record for record in records if is_page(record)], runs))
    return gain.points if gain.n else NOT_MEASURED


def is_page(record: dict[str, Any]) -> bool:
    """Whether a run is by Page's recipe as it is, with which the others are compared."""
    had, page = (
        {field: value for field, value in fields.items() if field not in AMOUNTS}
        for fields in (record["recipe"], {**asdict(Recipe()), **RECIPES["page"]})
    )
    by_name = (record["model"], record["recipe_name"]) == ("CustomResNet", "page")
    return by_name and had == page


def spread(values: Sequence[float | None]) -> str:
    """Mean, and with several values their standard deviation, of fractions, in percent."""
    if None in values:
        return NOT_MEASURED
    mean = f"{statistics.fmean(values):.2%}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def short_commit(commit: str) -> str:
    """Seven digits, as git has them, and whether the code was changed."""
    return commit[:7] + "-dirty" * commit.endswith("-dirty")


def receptive_field_markdown(rows: Sequence[Any]) -> str:
    """Return a Markdown table of the rows that `models.receptive_field_table` gives.

    Convolutions, poolings, means and linear layers have a line each. The others see what
    their input sees: one line, if there are any, sums up their parameters. Those that the
    model holds outside its layers are in none.
    """
    kinds = ("Conv2d", "Pool2d", "Linear", "mean", "amax")
    shown = [row for row in rows if row.kind.endswith(kinds)]
    total, listed = (sum(row.parameters for row in some) for some in (rows, shown))
    lines = [
        (
            f"`{row.name}`",
            row.kind,
            "×".join(map(str, row.output_size)),
            f"**{row.receptive_field}**",
            row.jump,
            f"{row.kernel}×{row.kernel}" if row.kind != "Linear" else "",
            f"{row.parameters:,}" if row.parameters else "",
        )
        for row in shown
    ]
    others = {row.kind for row in rows if row.parameters and row not in shown}
    name = (
        f"all {others.pop().removesuffix('2d')} layers"
        if len(others) == 1
        else "all other layers"
    )
    if total > listed:
        lines.append((name, "", "", "", "", "", f"{total - listed:,}"))
    lines.append(("all layers", "", "", "", "", "", f"**{total:,}**"))
    columns = ["layer", "kind", "output", "receptive field", "jump", "kernel"]
    return markdown([*columns, "parameters"], lines, left=(0, 1))


def markdown(
    columns: Sequence[str], lines: Sequence[Sequence], left: Sequence[int] = (0,)
) -> str:
    """A Markdown table with numbers at the right, and the columns `left` at the left."""
    aligns = [":--" if i in left else "--:" for i in range(len(columns))]
    rows = [
        [str(cell).replace("|", r"\|") for cell in row]  # a class's name may have one
        for row in (columns, aligns, *lines)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
