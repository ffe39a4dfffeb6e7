"""The README tells the truth: its tables are fresh, its example runs, its paths exist."""

import base64
import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as benchmarks
from helpers import __main__ as program
from helpers import dataset, models, train_test, utils
from tests.shared import PROJECT, python, within
from tools import readme


@pytest.fixture(scope="module")
def text():
    return (PROJECT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def importing():
    return (PROJECT / "helpers" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_tables_are_what_records_and_networks_give(page):
    text = page.read_text(encoding="utf-8")
    assert readme.PAGES[page](text) == text, "run make readme"


def test_what_a_machine_could_not_measure_has_no_line_among_speeds(
    tmp_path, monkeypatch
):
    record = json.loads((readme.RESULTS / "bench-amd-epyc-bfloat16.json").read_text())
    assert "2 processes" in readme.speed()
    for row in record["rows"]:
        row["values"] = [] if row["name"].startswith("speed of 2") else row["values"]
    (tmp_path / "bench-gpu.json").write_text(json.dumps(record))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert "2 processes" not in readme.speed()


def test_readme_tells_the_profiles_numbers(text):
    quick = train_test.PROFILES["quick"]
    assert f"{quick.train_images:,} images, {quick.epochs} epochs" in text
    assert f"of {quick.test_images:,} test images" in text
    assert f"(in `quick` {quick.batch_size})" in text


def test_beside_the_reports_figure_stands_the_longest_run_by_its_recipe():
    records = [
        {
            "model": "CustomResNet",
            "recipe_name": name,
            "recipe": {"epochs": epochs},
            "data": {"train_images": 50_000},
        }
        for name, epochs in (("page", 24), ("ours", 24), ("reported", 24), ("ours", 12))
    ]
    assert readme.longest(records)["recipe_name"] == "reported"
    assert readme.longest(records[:2])["recipe_name"] == "ours"


def test_what_a_record_tells_is_no_longer_missing():
    (cpu, *_) = utils.read_records(readme.RESULTS, "run-CustomResNet-*.json")
    gpu = {**within(cpu, "hardware", type="cuda"), "model": "ResNet18"}
    before, after = readme.unmeasured([cpu]), readme.unmeasured([cpu, gpu])
    assert set(before) - set(after) == {"a GPU", "ResNet18"}


def test_runs_on_two_kinds_of_machines_are_told_apart():
    (record, *_) = utils.read_records(readme.RESULTS, "run-CustomResNet-*.json")
    gpu = within(record, "hardware", device="Tesla T4")
    for table in (readme.headline, utils.class_results_markdown):
        here = record["hardware"]["device"]
        assert here not in table([record])
        assert {
            f"`assignment`, {name}" in table([record, gpu])
            for name in (here, "Tesla T4")
        } == {True}
        # What they share isn't told of each.
        assert "augmented on" not in table([record, gpu])
        assert "augmented on device" in table([record, {**gpu, "augment_on": "device"}])


def test_a_recipe_is_measured_when_five_seeds_of_it_as_it_is_are():
    (record, *_) = utils.read_records(readme.RESULTS, "run-CustomResNet-*.json")
    runs = [
        {**within(record, "recipe", **fields), "recipe_name": name, "seed": seed}
        for name, fields in train_test.RECIPES.items()
        for seed in range(5)
    ]
    assert "five seeds of each recipe" not in readme.unmeasured(runs)
    otherwise = within(runs[0], "recipe", weight_decay=0.4)
    for other in ({**runs[0], "model": "ResNet18"}, otherwise):
        assert "five seeds of each recipe" in readme.unmeasured([other, *runs[1:]])


ALONE = """
import importlib
draws = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("matplotlib", "PIL")}
assert draws
four = ("models", "dataset", "train_test", "utils")
for name in four:
    for old in [module for module in sys.modules if module.split(".")[0] == "helpers"]:
        del sys.modules[old]
    sys.modules |= draws if name == "utils" else dict.fromkeys(draws)  # which it may not
    importlib.import_module(f"helpers.{name}")
    assert [n for n in four if f"helpers.{n}" in sys.modules] == [name]
import helpers.__main__
"""


def test_the_example_runs_and_each_module_is_imported_without_packages_it_does_not_need(
    importing,
):
    example, _ = re.findall(r"```python\n(.*?)```", importing, re.DOTALL)
    optional = ["torchvision", "albumentations", "torch_lr_finder", "torchsummary"]
    optional += ["safetensors", "filelock"]  # PIL comes with Matplotlib
    hide = f"import sys; sys.modules |= dict.fromkeys({optional})\n"
    done = python("-c", hide + example + ALONE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nepoch   2" in done.stdout


def test_the_cell_for_several_gpus_gives_history_and_weights_and_one_record(
    importing, tmp_path, monkeypatch, capfd
):
    _, cell = re.findall(r"```python\n(.*?)```", importing, re.DOTALL)
    changes = {"epochs": 2, "train_images": 40, "test_images": 23, "batch_size": 16}
    recipe = replace(train_test.PROFILES["smoke"], **changes, max_lr=1e-3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    path = tmp_path / "cell.py"
    path.write_text(cell, encoding="utf-8")
    other = (
        tmp_path / "runs" / "together" / "9-CustomResNet-of another recipe-seed0.json"
    )
    utils.write_record(other, {"recipe": {"epochs": 3}})
    before = {  # what the notebook's cells before it have made
        "sys": sys,
        "Path": Path,
        "utils": utils,
        "train_test": train_test,
        "MODEL": "CustomResNet",
        "SEED": 0,
        "CIFAR10_ROOT": "data",
        "unavailable": "there is no network",
        "RECIPE": replace(recipe, max_lr=None),
        "search": SimpleNamespace(max_lr=1e-3),
        "DATA": "synthetic",
        "device": "cpu",
        "train": range(40),
        "test": range(23),
        "PROFILE": "smoke",
        "model": models.CustomResNet(),
    }
    names = runpy.run_path(str(path), before)
    other.unlink()
    (written,) = (tmp_path / "runs" / "together").glob("*.json")
    record = utils.read_record(written)
    processes = torch.cuda.device_count() or 2
    assert record["hardware"]["processes"] == processes
    assert record["data"]["test_images"] == 23
    assert record["max_lr"] == 1e-3
    # torch 2.8 adds a line for each connection.
    lines = capfd.readouterr().out.splitlines()
    lines = [line for line in lines if not line.startswith("[Gloo]")]
    assert lines[2].endswith("isn't there: training begins with epoch 1")
    assert [line[:9] for line in lines[3:5]] == ["epoch   1", "epoch   2"]
    assert lines[5].endswith(written.name) and len(lines) == 6
    assert len(names["history"].epochs) == 2
    assert (names["trained_on"], names["tested_on"]) == (40, 23)
    assert (names["ABOUT"], names["how"]) == ("synthetic", "Profile: smoke")
    sets = dataset.synthetic_cifar10(train=40, test=23)
    tested = dataset.make_loaders(*sets, batch_size=16, device="cpu").test
    found = train_test.evaluate(names["trained"], tested, device="cpu")
    assert found.accuracy == names["history"].last.test_accuracy


def test_commands_have_options_that_there_are(text, importing):
    pattern = r"^ .*-m helpers (?!--help)(.*)$"
    alone, together = (
        re.findall(pattern, page, re.MULTILINE) for page in (text, importing)
    )
    assert (len(alone), len(together)) == (4, 2)
    given = alone + together
    for options in given:
        program.parse(options.split())
    said = (PROJECT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    given = re.findall(r"^ .*-m benchmarks ([^#\n]*)", said, re.MULTILINE)
    assert len(given) == 3
    for options in given:
        benchmarks.parse(options.split())


def test_each_promise_names_a_test_that_exists():
    promises = (PROJECT / "tests" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", promises)
    tests = (PROJECT / "tests").glob("test_*.py")
    sources = "".join(p.read_text(encoding="utf-8") for p in tests)
    assert len(named) > 12
    assert [name for name in named if f"def {name}(" not in sources] == []


def test_what_it_links_to_and_lists_is_there(text, importing):
    tree = text.split("## What is where")[1].split("## Sources")[0]
    package = importing.split("## What is where")[1]
    pages = [
        (text, tree, PROJECT, [PROJECT, PROJECT / "tools"], (6, 12)),
        (importing, package, PROJECT / "helpers", [PROJECT / "helpers"], (5, 20)),
    ]
    for page, listing, folder, places, (some_links, some_files) in pages:
        links = re.findall(r"\]\((?!http)([^)]+)\)", page)
        listed = re.findall(r"\b[\w.]+\.(?:py|ipynb|txt)\b|\b\w+/", listing)
        assert len(links) > some_links
        assert len(listed) > some_files
        assert [link for link in links if not (folder / link).exists()] == []
        missing = [
            name for name in listed if not any((p / name).exists() for p in places)
        ]
        assert missing == []


def shown_code(cells):
    return "".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def test_figures_are_those_of_the_notebook():
    cells = json.loads(readme.NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    shown = "".join(json.dumps(cell.get("outputs", "")) for cell in cells)
    for name, call in readme.NOTEBOOK_FIGURES.items():
        (cell,) = [c for c in cells if call in "".join(c["source"])]
        png = base64.b64encode((readme.IMAGES / name).read_bytes()).decode()
        assert png in shown, "run make readme"
        assert png in json.dumps(cell["outputs"]), name
    (stored,) = re.findall(r"Images/bench-second[\w-]*\.png", shown_code(cells))
    assert base64.b64encode((PROJECT / stored).read_bytes()).decode() in shown


def test_figures_have_alternative_texts_and_exist(text):
    figures = re.findall(r"!\[(.*?)\]\((.*?)\)", text)
    there = {f"Images/{path.name}" for path in (PROJECT / "Images").glob("*.png")}
    shown = {path for _, path in figures}
    # Of what make bench has drawn on each kind of machine, some is shown.
    benched = {
        f"Images/{path.stem.replace('bench', name, 1)}.png"
        for path in readme.RESULTS.glob("bench-*.json")
        for name in ("bench", "bench-second")
    }
    assert shown <= there <= shown | benched
    assert all(len(alternative) > 20 for alternative, _ in figures)


def test_public_names_in_its_table_exist(importing):
    import importlib

    rows = re.findall(r"^\| `(helpers\.\w+)` \| (.*) \|$", importing, re.MULTILINE)
    assert len(rows) == 5
    for module, names in rows:
        found = importlib.import_module(module)
        for name in re.findall(r"`(\w+)`", names):
            assert hasattr(found, name), f"{module}.{name}"
