"""Bring README.md up to date: tables from results/*.json and the networks, and figures.

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

from helpers import models, train_test, utils

PROJECT = Path(__file__).resolve().parent.parent
README = PROJECT / "README.md"
IMAGES = PROJECT / "Images"
NOTEBOOK_FIGURES = {
    "samples.png": "utils.plot_samples(",
    "augmentation.png": "utils.plot_augmentations(",
    "lr_range_test.png": "utils.plot_lr_range_test(",
    "misclassified.png": "utils.plot_misclassified(",
}


def read_records(folder: Path = PROJECT / "results") -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("run-*.json"))]


def receptive_field() -> str:
    rows = models.receptive_field_table(models.CustomResNet())
    return utils.receptive_field_markdown(rows)


def experiment(record: dict[str, Any]) -> tuple:
    """What two records must share to be runs of one experiment."""
    data = record["data"]
    return (
        record["model"],
        record["recipe"]["epochs"],
        data["train_images"],
        record["recipe"]["batch_size"],
        data["source"],
        data["test_images"],
        record["hardware"]["device"],
        record["max_lr"],
    )


def spread(values: list[float]) -> str:
    """Mean, and with several values their standard deviation, of fractions, in percent."""
    mean = f"{statistics.fmean(values):.2%}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def table(head: str, aligns: str, lines: list[tuple]) -> str:
    rows = [head.split(" | "), aligns.split(), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def results(records: list[dict[str, Any]]) -> str:
    lines = []
    for key, group in groupby(sorted(records, key=experiment), key=experiment):
        runs = list(group)
        model, epochs, train, batch, source, test, hardware, max_lr = key
        last = spread([run["last_epoch_accuracy"] for run in runs])
        best = spread([run["maximum_accuracy"] for run in runs])
        commits = sorted({f"`{run['commit'][:7]}`" for run in runs})
        lines.append(
            (
                model,
                source,
                f"{train:,}",
                f"{epochs} × {batch}",
                f"{max_lr:.1e}",
                f"{test:,}",
                len(runs),
                f"**{last}**",
                best,
                hardware,
                ", ".join(commits),
            )
        )
    head = (
        "network | data | training images | epochs × batch | max_lr | test images | runs "
        "| last epoch | maximum | hardware | commit"
    )
    return table(head, ":-- :-- --: --: --: --: --: --: --: :-- :--", lines)


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
    """README's text with each table as it should be. Raises ValueError for a lost mark."""
    records = read_records()
    tables = {
        "receptive-field": receptive_field(),
        "results": results(records),
        "notebook": notebook(),
        "claims": claims(records),
    }
    for name, rendered in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, found = re.subn(
            pattern, lambda m, t=rendered: m[1] + t + "\n" + m[2], text, flags=re.DOTALL
        )
        if found != 1:
            raise ValueError(
                f"README.md must hold <!-- {name} --> once, not {found} times"
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
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
    draw()
