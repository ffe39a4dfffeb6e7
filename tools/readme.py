"""Bring pages and S10.ipynb up to date: tables from records, figures.

`make readme` runs this. Tables stand between <!-- NAME --> and <!-- /NAME -->, the
notebook's is an output of its own. The figures are those of the committed notebook, and
one of learning rates, from records.
"""

import base64
import json
import re
import statistics
from pathlib import Path
from typing import Any

from helpers import models, train_test, utils
from helpers.results import (
    Experiment,
    Gain,
    accuracy_by_rate,
    experiments,
    flat_top,
    unmarked,
)
from helpers.tables import (
    NOT_MEASURED,
    against_page,
    how_trained,
    machine,
    markdown,
    short_commit,
    spread,
)
from tools import trainings, trials

PROJECT = Path(__file__).resolve().parent.parent
README = PROJECT / "README.md"
BENCHMARKS = PROJECT / "benchmarks" / "README.md"
NOTEBOOK = PROJECT / "S10.ipynb"
RESULTS = PROJECT / "results"
RUNS = "run-*.json"  # on the test set, of those in RESULTS
EARLIER = RESULTS / "earlier"  # such runs by recipes as they were once
SHORT = RESULTS / "short"  # learning rates, tried at the length that a CPU allows
TRIALS = RESULTS / "trials"  # ingredients and recipes, tried at such a length too
LOG = RESULTS / "LOG.md"
TRIALS_TOLD = RESULTS / "TRIALS.md"
IMAGES = PROJECT / "Images"
NOTEBOOK_FIGURES = {
    "samples.png": "utils.plot_samples(",
    "augmentation.png": "utils.plot_augmentations(",
    "lr_range_test.png": "utils.plot_lr_range_test(",
    "loss_accuracy.png": "utils.plot_history(",
    "calibration.png": "utils.plot_calibration(",
    "misclassified.png": "utils.plot_misclassified(",
}


def ingredients(folder: Path, tried: list[trials.Trial]) -> str:
    """What each trial's fields gained on images held out, and whether that is enough."""
    lines = []
    for name, fields, without, having in tried:
        pairs = trials.paired(folder, without, having)
        gain = Gain.of(pairs)
        changes = ", ".join(f"`{field}={value}`" for field, value in fields.items())
        if not gain.n:
            lines.append((name, changes, 0, *[NOT_MEASURED] * 3, "not tried"))
            continue
        found = map(spread, zip(*pairs, strict=True))
        passed = "yes" if gain.kept else "no" if gain.decided else "open"
        lines.append((name, changes, gain.n, *found, gain.points, passed))
    columns = ["tried", "fields", "paired seeds", "without", "with"]
    columns += [
        "gain in points ± its standard error",
        "gains more than 2 standard errors",
    ]
    return markdown(columns, lines, left=(0, 1, 6))


def learning_rates(folder: Path = RESULTS) -> str:
    """Accuracy on held-out images against max_lr, the range test's choice, the verdict."""
    curve = utils.read_records(folder, "lr-*.json")
    lines = [
        (f"{rate:.1e}", len(seeds), spread(list(seeds.values())))
        for rate, seeds in accuracy_by_rate(curve).items()
    ]
    base = trials.base_runs(folder)
    chose = sorted(record["max_lr"] for record in base)
    top = flat_top(curve) if curve and base else None
    found, verdict = "flat top", NOT_MEASURED
    if top:
        found = f"flat top: {top[0]:.1e} to {top[1]:.1e}"
        inside = sum(top[0] <= rate <= top[1] for rate in chose)
        verdict = f"{inside} of {len(chose)} range tests inside"
    tested, reached = "range test", NOT_MEASURED
    if base:
        tested = "range test: " + ", ".join(f"{rate:.1e}" for rate in chose)
        reached = spread([record["last_epoch_accuracy"] for record in base])
    lines += [(tested, len(base), reached), (found, "", verdict)]
    return markdown(["max_lr", "seeds", "last epoch, held-out images"], lines, left=())


def each_run(records: list[dict[str, Any]]) -> str:
    """A line for each training on the test set: what the means are made of."""
    lines = [
        (
            f"{run['model']}, {how_trained(run)}",
            Experiment.of(run).hardware,
            run["seed"],
            f"{run['max_lr']:.2e}",
            spread([run["last_epoch_accuracy"]]),
            spread([run["flip_tta_accuracy"]]),
            against_page([run], records).removesuffix(", one pair"),
        )
        for runs in experiments(records)
        for run in runs
    ]
    columns = ["network, recipe", "hardware", "seed", "max_lr", "last epoch"]
    columns += ["flip TTA", "difference to `page`, points"]
    return markdown(columns, lines, left=(0, 1))


def claims(records: list[dict[str, Any]]) -> str:
    """The report's statements beside ours; the accuracy is that of the longest run."""
    rows = models.receptive_field_table(models.CustomResNet())
    custom, resnet = (models.count_parameters(net()) for net in models.MODELS.values())
    record, field = longest(records), rows[-1].receptive_field
    epochs = record["recipe"]["epochs"]
    return f"""\
| the report says | here |
| :-- | :-- |
| 18 convolutional layers and 6,574,090 parameters | They don't fit: the network of {custom:,} parameters has 8 convolutions; ResNet-18 for images of this size has 20 (17, and 3 in shortcuts) and {resnet:,} parameters |
| a table of 9 convolutions, whose parameters add up to 7,013,258 | Its rows can't be one network: Convolution 5, in a block of 128 channels, has the parameters of one between 128 and 256. The notebook's table adds up to {sum(row.parameters for row in rows):,} |
| receptive field 3×3 at every convolution, 5×5 to 17×17 behind blocks, 32×32 at the end | 3×3 is the kernel; the field grows to {field}×{field} pixels |
| maximum test accuracy 92.35%, in epoch 22 of 24 | The best of 24 test results, so chosen by the test set. Here the best is {record["maximum_accuracy"]:.2%} and the last of {epochs} epochs {record["last_epoch_accuracy"]:.2%} (recipe `{record["recipe_name"]}`, seed {record["seed"]}, {record["data"]["source"]}) |
| class-wise accuracy, losses, plots: announced, not given | In the notebook, accuracy with intervals |
| the LR finder's learning rates: not given | {record["max_lr"]:.1e} in that run |"""


def headline(records: list[dict[str, Any]]) -> str:
    """What the longest runs came to, recipe by recipe, and what is missing."""
    record = longest(records)
    data, epochs = record["data"], record["recipe"]["epochs"]
    alike = [
        record
        for record in records
        if record["data"] == data
        and record["recipe"]["epochs"] == epochs
        and record["model"] == "CustomResNet"
    ]
    found, groups = [], experiments(alike)
    for runs in groups:
        how = how_trained(runs[0])
        if how != f"`{runs[0]['recipe_name']}`":
            continue  # no recipe as it is today
        each = [run["last_epoch_accuracy"] for run in runs]
        # Of one or two seeds a mean and its ± would look surer than they are.
        few = len(runs) < 3
        accuracy = " and ".join(f"{one:.2%}" for one in each) if few else spread(each)
        seeds = "one seed" if len(runs) == 1 else f"{len(runs)} seeds"
        found.append((how + machine(runs, groups), f"**{accuracy}**", seeds))
    missing = unmeasured(records)
    about = (
        f"Test accuracy after the last of {epochs} epochs on {data['source']}, "
        f"{data['train_images']:,} training and {data['test_images']:,} test images"
    )
    about += "." if any(map(is_of_a_gpu, alike)) else ", on CPUs."
    text = f"{about}\n\n{markdown(['recipe (see Training)', 'test accuracy', 'runs'], found)}"
    return text + (f"\n\nNot measured yet: {', '.join(missing)}." if missing else "")


def is_of_a_gpu(record: dict[str, Any]) -> bool:
    """Whether it is; the earliest records, which don't tell, are of CPUs."""
    return record["hardware"].get("type") == "cuda"


def unmeasured(records: list[dict[str, Any]]) -> list[str]:
    """Of what is to be known in the end, that which no record tells."""
    whole = [r for r in records if r["data"]["train_images"] == 50_000]
    own = [runs for runs in experiments(whole) if runs[0]["model"] == "CustomResNet"]
    five = {how_trained(runs[0]) for runs in own if len(runs) >= 5}
    curve = utils.read_records(RESULTS, "lr-*.json")
    known = {
        "the original images": any(r["data"]["source"] == "CIFAR-10" for r in records),
        "a GPU": any(map(is_of_a_gpu, records)),
        "five seeds of each recipe": five
        >= {f"`{name}`" for name in train_test.RECIPES},
        "the report's recipe over 24 epochs": any(
            r["recipe_name"] == "reported" for r in whole
        ),
        "ResNet18": any(r["model"] == "ResNet18" for r in whole),
        "other learning rates over 24 epochs": curve and flat_top(curve),
        "what each ingredient of `ours` adds over 24 epochs": all(
            trials.gain(RESULTS, f"no-{name}", "ours").decided
            for name in trainings.INGREDIENTS
        ),
    }
    return [name for name, found in known.items() if not found]


def speed() -> str:
    """What was aimed at and what was found, a column for each machine's record."""
    records = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RESULTS.glob("bench-*.json"))
    ]
    heads, aims, columns = [], {}, []
    for record in records:
        hardware = record["hardware"]
        heads.append(
            f"{unmarked(hardware['device'])}, {hardware['threads']} threads, "
            f"{hardware['precision']}, commit `{short_commit(record['commit'])}`"
        )
        found = {}
        names = [row["name"] for row in record["rows"]]
        each = "GPU" if any(name.endswith("a GPU each") for name in names) else "thread"
        for target in record["targets"]:
            aims[target["text"]] = f"{target['sign']} {target['bound']:g}"
            if target["value"] is not None:
                missed = ", missed" * (target["verdict"] == "missed")
                found[target["text"]] = f"{target['value']:.3g}{missed}"
        for row in record["rows"]:
            if row["name"] == "speed of 2 over that of 1" and row["values"]:
                text = f"2 processes, a {each} each: {row['name']}, {row['unit']}"
                aims[text] = ""
                found[text] = f"{statistics.median(row['values']):.3g}"
        columns.append(found)
    lines = []
    for text, aim in aims.items():
        # A machine has either of the two kinds of steps, or neither.
        absent = "" if any(text in found for found in columns) else NOT_MEASURED
        lines.append((text, *(found.get(text, absent) for found in columns), aim))
    return markdown(["", *heads, "target"], lines)


def longest(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of CustomResNet that has seen the most images.

    Among equals the report's recipe comes first, and Page's, made to compare with, last.
    """
    own = [record for record in records if record["model"] == "CustomResNet"]
    return max(
        own,
        key=lambda r: (
            r["recipe"]["epochs"] * r["data"]["train_images"],
            r["recipe_name"] == "reported",
            r["recipe_name"] != "page",
        ),
    )


def render(text: str) -> str:
    """README's text with each table as it should be."""
    records = utils.read_records(RESULTS, RUNS)
    return filled(
        text,
        {
            "results": utils.results_markdown(records),
            "by-class": utils.class_results_markdown(records),
            "claims": claims(records),
            "headline": headline(records),
        },
    )


def render_benchmarks(text: str) -> str:
    """The benchmarks' page with its table as it should be."""
    return filled(text, {"speed": speed()})


def render_log(text: str) -> str:
    """LOG's text with each table as it should be."""
    return filled(
        text,
        {
            "ingredients": ingredients(RESULTS, trials.planned()),
            "runs": each_run(
                utils.read_records(RESULTS, RUNS) + utils.read_records(EARLIER, RUNS)
            ),
            "learning-rates": learning_rates(),
        },
    )


def render_trials(text: str) -> str:
    """TRIALS.md's text with each table as it should be."""
    tables = {name: ingredients(TRIALS, some) for name, some in trials.TRIED.items()}
    return filled(text, tables | {"learning-rates-short": learning_rates(SHORT)})


def render_notebook(text: str) -> str:
    """The notebook's text with its tables of results as they should be.

    Records come in after it was executed, and this is what that cell would give.
    """
    notebook = json.loads(text)
    records = utils.read_records(RESULTS, RUNS)
    tables = utils.results_markdown(records), utils.class_results_markdown(records)
    shown = shown_by(notebook, "utils.results_markdown(", "text/markdown")
    shown["text/markdown"] = "\n\n".join(tables).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def shown_by(notebook: dict[str, Any], call: str, kind: str) -> dict[str, Any]:
    """The first output of that kind, of the one cell that makes this call."""
    (cell,) = (
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and call in "".join(cell["source"])
    )
    outputs = (output.get("data", {}) for output in cell["outputs"])
    return next(data for data in outputs if kind in data)


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
    # The short one until there is another.
    folder = RESULTS if any(RESULTS.glob("lr-*.json")) else SHORT
    if curve := utils.read_records(folder, "lr-*.json"):
        chosen, about = trials.base_runs(folder), utils.describe_record(curve[0])
        figure = utils.plot_max_lr(curve, chosen, data=about)
        figure.savefig(IMAGES / "max_lr.png", dpi=100)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for name, call in NOTEBOOK_FIGURES.items():
        png = shown_by(notebook, call, "image/png")["image/png"]
        (IMAGES / name).write_bytes(base64.b64decode("".join(png)))


PAGES = {
    README: render,
    BENCHMARKS: render_benchmarks,
    LOG: render_log,
    TRIALS_TOLD: render_trials,
    NOTEBOOK: render_notebook,
}

if __name__ == "__main__":
    for path, rendered in PAGES.items():
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
    draw()
