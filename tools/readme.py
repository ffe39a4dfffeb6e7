"""Bring README.md and results/LOG.md up to date: tables from records and networks, figures.

`make readme` runs this. Tables stand between <!-- NAME --> and <!-- /NAME -->. The figures
of training come from a record, the others are those of the committed notebook.
"""

import base64
import json
import re
import statistics
from itertools import groupby
from pathlib import Path
from typing import Any

from helpers import __main__ as program
from helpers import models, train_test, utils
from tools import records as sweeps

PROJECT = Path(__file__).resolve().parent.parent
README = PROJECT / "README.md"
LOG = PROJECT / "results" / "LOG.md"
IMAGES = PROJECT / "Images"
NOTEBOOK_FIGURES = {
    "samples.png": "utils.plot_samples(",
    "augmentation.png": "utils.plot_augmentations(",
    "lr_range_test.png": "utils.plot_lr_range_test(",
    "misclassified.png": "utils.plot_misclassified(",
}


def read_records(folder: Path = PROJECT / "results") -> list[dict[str, Any]]:
    """The runs on the test set. Raises ValueError for a record of a newer version."""
    read = []
    for path in sorted(folder.glob("run-*.json")):
        record = json.loads(path.read_text())
        if not 1 <= record["format"] <= program.FORMAT:
            raise ValueError(
                f"{path} is of format {record['format']} and this version reads up to "
                f"{program.FORMAT}; use the version that wrote it"
            )
        # The first format had one recipe, and no flip TTA.
        read.append({"recipe_name": "assignment", "flip_tta_accuracy": None, **record})
    return read


def receptive_field() -> str:
    rows = models.receptive_field_table(models.CustomResNet())
    return utils.receptive_field_markdown(rows)


def experiment(record: dict[str, Any]) -> tuple:
    """What two records must share to be runs of one experiment."""
    data = record["data"]
    return (
        record["model"],
        record["recipe_name"],
        record["recipe"]["epochs"],
        data["train_images"],
        record["recipe"]["batch_size"],
        data["source"],
        data["test_images"],
        record["hardware"]["device"],
    )


def spread(values: list[float | None]) -> str:
    """Mean, and with several values their standard deviation, of fractions, in percent."""
    if None in values:
        return "not measured"
    mean = f"{statistics.fmean(values):.2%}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def table(head: str, aligns: str, lines: list[tuple]) -> str:
    rows = [head.split(" | "), aligns.split(), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def against_page(runs: list[dict[str, Any]], records: list[dict[str, Any]]) -> str:
    """How much better than Page's recipe: points, with the standard error over seeds."""

    def same(record: dict[str, Any]) -> tuple:
        return *experiment(record)[2:], record["seed"]

    page = {
        same(record): record["last_epoch_accuracy"]
        for record in records
        if (record["model"], record["recipe_name"]) == ("CustomResNet", "page")
    }
    gains = [
        100 * (run["last_epoch_accuracy"] - page[same(run)])
        for run in runs
        if same(run) in page
    ]
    if len(gains) < 2:
        return "not measured"
    error = statistics.stdev(gains) / len(gains) ** 0.5
    return f"{statistics.fmean(gains):+.2f} ± {error:.2f}"


def results(records: list[dict[str, Any]]) -> str:
    lines = []
    for key, group in groupby(sorted(records, key=experiment), key=experiment):
        runs = list(group)
        model, recipe, epochs, train, batch, source, test, hardware = key
        last, tta, best = (
            spread([run[name] for run in runs])
            for name in ("last_epoch_accuracy", "flip_tta_accuracy", "maximum_accuracy")
        )
        commits = sorted({f"`{run['commit'][:7]}`" for run in runs})
        rates = sorted({f"{run['max_lr']:.1e}" for run in runs})
        lines.append(
            (
                f"{model}, `{recipe}`",
                source,
                f"{train:,} → {test:,}",
                f"{epochs} × {batch}",
                " to ".join(dict.fromkeys((rates[0], rates[-1]))),
                len(runs),
                f"**{last}**",
                best,
                tta,
                against_page(runs, records),
                hardware,
                ", ".join(commits),
            )
        )
    head = (
        "network, recipe | data | training → test images | epochs × batch | max_lr | runs "
        "| last epoch | maximum | last epoch, flip TTA | points above `page` | hardware "
        "| commit"
    )
    return table(head, ":-- :-- --: --: --: --: --: --: --: --: :-- :--", lines)


def by_class(records: list[dict[str, Any]]) -> str:
    """Accuracy of each class, a column for each experiment."""
    groups = groupby(sorted(records, key=experiment), key=experiment)
    columns = {key: list(runs) for key, runs in groups}
    names = list(dict.fromkeys(c for r in records for c in r["class_accuracy"]))
    lines = [
        (
            name,
            *(
                spread([run["class_accuracy"][name] for run in r])
                for r in columns.values()
            ),
        )
        for name in names
    ]
    heads = [f"{key[0]}, `{key[1]}`, {key[2]} epochs, {key[5]}" for key in columns]
    return table(
        " | ".join(["class", *heads]), " ".join([":--", *["--:"] * len(heads)]), lines
    )


def ingredients(folder: Path = PROJECT / "results") -> str:
    """What each ingredient gained on images held out, and whether it was kept."""
    base = list(sweeps.accuracies(folder, "sweep-base").values())
    lines = []
    for name, fields in sweeps.INGREDIENTS.items():
        gain = sweeps.gain(folder, name)
        tried = ", ".join(f"`{field}={value}`" for field, value in fields.items())
        if not gain.n:
            lines.append((name, tried, 0, *["not measured"] * 3, "not tried"))
            continue
        found = list(sweeps.accuracies(folder, f"sweep-{name}").values())
        points = f"{100 * gain.mean:+.2f} ± {100 * gain.error:.2f}"
        kept = "kept" if gain.kept else "not kept"
        lines.append((name, tried, gain.n, spread(base), spread(found), points, kept))
    head = "ingredient | fields | paired seeds | without | with | gain in points ± its standard error | decision"
    return table(head, ":-- :-- --: --: --: --: :--", lines)


def learning_rates(folder: Path = PROJECT / "results") -> str:
    """Accuracy on images held out against max_lr, and what the range test chose."""
    lines = []
    for rate in sweeps.MAX_LRS:
        found = list(sweeps.accuracies(folder, f"lr-{rate:.1e}").values())
        shown = spread(found) if found else "not measured"
        lines.append((f"{rate:.1e}", len(found), shown))
    chose = [json.loads(p.read_text()) for p in folder.glob("sweep-base-seed*.json")]
    rates = ", ".join(f"{rate:.1e}" for rate in sorted(r["max_lr"] for r in chose))
    lines.append(("range test", len(chose), rates or "not measured"))
    return table("max_lr | seeds | last epoch, held-out images", "--: --: --:", lines)


def claims(records: list[dict[str, Any]]) -> str:
    """The report's statements beside ours; the accuracy is that of the longest run."""
    rows = models.receptive_field_table(models.CustomResNet())
    field = rows[-1].receptive_field
    counts = {
        name: f"{models.count_parameters(network()):,}"
        for name, network in models.MODELS.items()
    }
    networks = (
        f"Two networks. The one with {counts['CustomResNet']} has 8 convolutions; "
        f"ResNet-18 for images of this size has {counts['ResNet18']} parameters"
    )
    record = longest(records)
    accuracy = (
        f"{record['last_epoch_accuracy']:.2%} in the last epoch, maximum "
        f"{record['maximum_accuracy']:.2%} in epoch {record['maximum_epoch']}, on "
        f"{record['data']['source']} after {record['recipe']['epochs']} epochs instead of 24 "
        "and not on the original images"
    )
    lines = [
        ("18 convolutional layers and 6,574,090 parameters", networks),
        (
            "layers whose parameters add up to 7,013,258",
            f"{sum(row.parameters for row in rows):,}, the sum of the table above",
        ),
        (
            "receptive field 3×3 at every convolution, 32×32 at the end",
            f"3×3 is the kernel; the field grows to {field}×{field} pixels",
        ),
        ("maximum test accuracy 92.35%, in epoch 22 of 24", accuracy),
        (
            "class-wise accuracy: announced, not given",
            "In the notebook, with intervals",
        ),
        (
            "the LR finder's learning rates: not given",
            f"The peak used there: {record['max_lr']:.1e}",
        ),
    ]
    return table("the report says | what is so", ":-- :--", lines)


def speed(folder: Path = PROJECT / "results") -> str:
    """What was aimed at and what was found, by the benchmark's record of a CPU."""
    record = json.loads((folder / "bench-cpu.json").read_text())
    lines = [
        (
            target["text"],
            "" if target["value"] is None else f"{target['value']:.3g}",
            f"{target['sign']} {target['bound']:g}",
            target["verdict"],
        )
        for target in record["targets"]
    ]
    for row in record["rows"]:
        if row["name"] in ("speed of 2 over that of 1", "efficiency"):
            value = f"{statistics.median(row['values']):.3g}"
            name = f"2 processes of one thread each: {row['name']}, {row['unit']}"
            lines.append((name, value, "", "measured"))
    hardware = record["hardware"]
    about = (
        f"{hardware['device']}, {hardware['threads']} threads, {hardware['precision']}, "
        f"commit `{record['commit'][:7]}`"
    )
    return table(f"{about} | found | target | verdict", ":-- --: --: :--", lines)


def notebook() -> str:
    """The last line that the committed notebook printed."""
    cells = json.loads((PROJECT / "S10.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = [o["text"] for c in cells for o in c.get("outputs", []) if "text" in o]
    return "> " + "".join(texts[-1]).strip().splitlines()[-1]


def longest(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of CustomResNet that has seen the most images."""
    own = [record for record in records if record["model"] == "CustomResNet"]
    return max(own, key=lambda r: r["recipe"]["epochs"] * r["data"]["train_images"])


def render(text: str) -> str:
    """README's text with each table as it should be."""
    records = read_records()
    return filled(
        text,
        {
            "receptive-field": receptive_field(),
            "results": results(records),
            "by-class": by_class(records),
            "speed": speed(),
            "notebook": notebook(),
            "claims": claims(records),
        },
    )


def render_log(text: str) -> str:
    """LOG's text with each table as it should be."""
    return filled(
        text, {"ingredients": ingredients(), "learning-rates": learning_rates()}
    )


def filled(text: str, tables: dict[str, str]) -> str:
    """The text with its tables. Raises ValueError for a lost mark."""
    for name, rendered in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, found = re.subn(
            pattern, lambda m, t=rendered: m[1] + t + "\n" + m[2], text, flags=re.DOTALL
        )
        if found != 1:
            raise ValueError(
                f"the text must hold <!-- {name} --> once, not {found} times"
            )
    return text


def draw() -> None:
    """Write the figures of Images/."""
    record = longest(read_records())
    history = train_test.History(
        record["max_lr"], [train_test.Epoch(**row) for row in record["history"]]
    )
    recipe = record["recipe"]
    data = (
        f"{record['data']['source']}, {record['data']['train_images']:,} training images, "
        f"{recipe['epochs']} epochs, seed {record['seed']}"
    )
    utils.plot_history(history, data=data).savefig(
        IMAGES / "loss_accuracy.png", dpi=100
    )
    cells = json.loads((PROJECT / "S10.ipynb").read_text(encoding="utf-8"))["cells"]
    for name, call in NOTEBOOK_FIGURES.items():
        cell = next(cell for cell in cells if call in "".join(cell["source"]))
        png = next(o["data"]["image/png"] for o in cell["outputs"] if "data" in o)
        (IMAGES / name).write_bytes(base64.b64decode("".join(png)))


if __name__ == "__main__":
    for path, rendered in {README: render, LOG: render_log}.items():
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
    draw()
