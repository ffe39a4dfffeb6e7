"""The committed notebook is what a reader opens, and nbval would notice if it lied."""

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import torch

from helpers import __main__ as program
from helpers import dataset, models, train_test, utils, weights
from tests.shared import PROJECT, python
from tools import run_notebook

NOTEBOOK = PROJECT / "S10.ipynb"


@pytest.fixture(scope="module")
def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


@pytest.fixture(scope="module")
def code(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def text_of(cell):
    return "".join("".join(o["text"]) for o in cell["outputs"] if "text" in o)


def is_compared(cell):
    return "nbval-ignore-output" not in cell["metadata"].get("tags", [])


def test_notebook_is_thin(code):
    assert 12 <= len(code) <= 18
    for cell in code:
        tree = ast.parse("".join(cell["source"]))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_outputs_are_of_one_whole_run_without_errors(code):
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert NOTEBOOK.stat().st_size < 2_000_000


def test_outputs_are_of_the_code_that_is_there():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    executed = notebook.metadata.get("code_sha256")
    assert executed == run_notebook.digest_of(notebook), "execute it again"


def test_first_and_last_printed_lines_say_what_the_outputs_are_about(code):
    printed = "".join(text_of(cell) for cell in code).splitlines()
    assert printed[0].startswith("profile ")
    assert all(word in printed[0] for word in ("| data ", "| device ", "torch "))
    assert printed[-1].startswith("Done. Data: ")
    assert "Last-epoch test accuracy: " in printed[-1]


def test_every_figure_has_a_label_that_says_what_it_is_about(code):
    figures = [c for c in code if "plot_" in "".join(c["source"])]
    assert len(figures) >= 7
    for cell in figures:
        # ABOUT: of a network that was trained elsewhere, what it was trained on.
        assert re.search(r'data=(f"\{)?(DATA|ABOUT)\b', "".join(cell["source"]))
        assert any("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_compared_cells_hold_what_no_profile_or_device_changes(code):
    compared = "".join(json.dumps(c["outputs"]) for c in code if is_compared(c))
    for fact in ("6,574,090 parameters", "**88**", "step 490, the last of epoch 5"):
        assert fact in compared
    assert "%" not in compared  # an accuracy would vary


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "S10_PROFILE",
            "huge",
            "PROFILE must be one of full, quick, smoke, not 'h",
        ),
        ("S10_CHECKPOINT", "nowhere/s10.pt", "nowhere is not there; mount the drive"),
        ("S10_WEIGHTS", "held.json", "held.json was not evaluated on the test set"),
    ],
)
def test_part_2_refuses_what_cannot_work(
    name, value, said, sources, run_cells, monkeypatch
):
    record = {"data": {"evaluated_on": "held-out training images"}}
    monkeypatch.setattr(weights, "load_run", lambda path: (None, record))
    monkeypatch.setenv(name, value)
    (constants,) = [n for n, text in enumerate(sources) if "\nRECIPE = " in text]
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run_cells(sources[: constants + 1])


def test_first_cell_says_what_it_needs_and_fetches_the_project(
    code, tmp_path, monkeypatch
):
    pytest.importorskip("pip")
    if not shutil.which("git"):
        pytest.skip("needs git")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook has GIT_DIR, which would be committed to
    monkeypatch.setenv("PIP_BREAK_SYSTEM_PACKAGES", "1")  # nothing is installed
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # nor is pip's own version looked up
    (tmp_path / "from" / "helpers").mkdir(parents=True)
    (tmp_path / "from" / "helpers" / "models.py").touch()
    (tmp_path / "from" / "requirements.txt").touch()
    for command in ("init -q", "add .", "commit -qnm project --no-gpg-sign"):
        git = ["git", "-c", "user.name=n", "-c", "user.email=e", *command.split()]
        subprocess.run(git, cwd=tmp_path / "from", check=True)
    (tmp_path / "colab").mkdir()
    monkeypatch.chdir(tmp_path / "colab")
    first = tmp_path / "cell.py"
    source = "".join(code[0]["source"])
    source, count = re.subn(r'("S10_REPO", )"[^"]*"', r'\1""', source)  # of a course
    assert count == 1
    first.write_text(source, encoding="utf-8")
    monkeypatch.delenv("S10_REPO", raising=False)
    with pytest.raises(RuntimeError, match="set REPO above to the project's git"):
        runpy.run_path(str(first))
    monkeypatch.setenv("S10_REPO", (tmp_path / "from").as_uri())
    runpy.run_path(str(first))
    assert Path.cwd() == tmp_path / "colab" / "S10"
    runpy.run_path(str(first))  # once more changes nothing
    assert Path.cwd() == tmp_path / "colab" / "S10"


def nbval(notebook):
    return python(
        *("-m", "pytest", "--nbval", "--nbval-current-env", "-q", "--color=no"),
        *("-p", "no:cacheprovider", "--rootdir", notebook.parent, notebook),
        cwd=notebook.parent,
        env={**os.environ, "S10_WEIGHTS": "", "S10_CHECKPOINT": ""},
    )


def test_nbval_fails_when_one_stored_number_is_changed(tmp_path):
    whole = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    end = next(
        n for n, c in enumerate(whole["cells"]) if "summarize(" in "".join(c["source"])
    )
    # Up to the network's summary, without the figures, which take longer than the rest.
    kept = [c for c in whole["cells"][: end + 1] if "plot_" not in "".join(c["source"])]
    (tmp_path / "helpers").symlink_to(PROJECT / "helpers")
    path = tmp_path / "S10.ipynb"

    altered = json.dumps({**whole, "cells": kept}).replace(
        "6,574,090 parameters", "6,574,091 parameters"
    )
    path.write_text(altered, encoding="utf-8")
    lying = nbval(path)
    assert lying.returncode == 1
    assert "6,574,091 parameters" in lying.stdout
    count = sum(cell["cell_type"] == "code" for cell in kept)
    assert f"1 failed, {count - 1} passed" in lying.stdout


@pytest.fixture
def sources(code):
    return ["".join(cell["source"]) for cell in code]


@pytest.fixture
def run_cells(tmp_path, monkeypatch):
    """Runs sources as one script, beside the notebook, by the profile smoke."""
    monkeypatch.delenv("S10_WEIGHTS", raising=False)
    monkeypatch.delenv("S10_CHECKPOINT", raising=False)
    monkeypatch.setenv("S10_PROFILE", "smoke")
    monkeypatch.chdir(PROJECT)

    def run(sources):
        script = tmp_path / "cells.py"
        script.write_text("\n".join(sources), encoding="utf-8")
        return runpy.run_path(str(script))

    return run


@pytest.mark.parametrize(("kind", "profile"), [("cuda", "full"), ("cpu", "quick")])
def test_unless_told_otherwise_the_device_chooses_the_profile_and_data_is_the_folder(
    kind, profile, sources, run_cells, monkeypatch
):
    monkeypatch.setattr(utils, "get_device", lambda: torch.device(kind))
    monkeypatch.setenv("S10_PROFILE", "")
    monkeypatch.setenv("CIFAR10_ROOT", "elsewhere")
    names = run_cells(sources[:2])
    assert (names["PROFILE"], names["CIFAR10_ROOT"]) == (profile, "elsewhere")
    monkeypatch.delenv("CIFAR10_ROOT")
    assert run_cells(sources[:2])["CIFAR10_ROOT"] == "data"


@pytest.fixture
def found_rate(monkeypatch):
    """Of a range test that trains nothing: the notebook's own runs with nbval."""
    search = train_test.LRRangeTest(
        learning_rates=[1e-4, 1e-3, 1e-2],
        losses=[[2.3, 2.0, 3.0]],
        smoothed=[[2.3, 2.0, 3.0]],
        median=[2.3, 2.0, 3.0],
        rim=2.075,
        max_lr=3e-3,
        divergence_lr=1e-2,
    )
    monkeypatch.setattr(train_test, "lr_range_test", lambda *_, **__: search)
    return search.max_lr


def test_resnet18_is_described_by_the_same_cells(sources, run_cells, capsys):
    (end,) = [n for n, text in enumerate(sources) if "field_markdown(" in text]
    some = [text for text in sources[: end + 1] if "plot_" not in text]
    switched = [text.replace('"CustomResNet"', '"ResNet18"') for text in some]
    rows = run_cells(switched)["rows"]
    assert "11,173,962 parameters" in capsys.readouterr().out
    assert sum(row.kind == "Conv2d" for row in rows) == 20  # 3 of them in shortcuts


def test_rate_that_was_set_is_kept(sources, run_cells, monkeypatch, found_rate):
    (after,) = [n for n, text in enumerate(sources) if "train_test.fit(" in text]
    (constants,) = [n for n, text in enumerate(sources) if "\nRECIPE = " in text]
    fitted = []
    monkeypatch.setattr(train_test, "fit", lambda *given, **_: fitted.append(given[2]))
    for given, used in ((None, found_rate), (0.4, 0.4)):
        setting = f"RECIPE = replace(RECIPE, max_lr={given})"
        before, then = sources[: constants + 1], sources[constants + 1 : after + 1]
        run_cells([*before, setting, *then])
        assert fitted.pop().max_lr == used


@pytest.mark.parametrize(
    "changed",
    [
        "SEED = 1",
        "train = train.subset(64)",
        "test = test.subset(50)",
        'MODEL = "ResNet18"',
        'RECIPE = replace(RECIPE, optimizer="sgd")',
        "MEAN = (0.5, 0.5, 0.5)",
    ],
)
def test_training_cell_refuses_what_the_cells_before_it_were_not_made_with(
    changed, sources, run_cells, monkeypatch
):
    monkeypatch.setattr(train_test, "fit", None)  # nothing is to be trained
    some = [text for text in sources if "plot_" not in text or "fit(" in text]
    (end,) = [n for n, text in enumerate(some) if "train_test.fit(" in text]
    with pytest.raises(RuntimeError, match="run all cells from part 2 on again"):
        run_cells([*some[:end], changed, some[end]])


@pytest.mark.parametrize(
    ("changed", "again", "said"),
    [
        ("SEED = 1", "make_loaders(", "run all cells from part 2 on again"),
        ("RECIPE = replace(RECIPE, cutout=0)", "made_for =", "run all cells from part"),
        ('MODEL = "ResNet18"', "made_for =", "part 6 was about another network"),
    ],
)
def test_training_cell_refuses_what_only_some_cells_were_run_again_for(
    changed, again, said, sources, run_cells, monkeypatch, found_rate
):
    monkeypatch.setattr(train_test, "fit", None)  # nothing is to be trained
    some = [text for text in sources if "plot_" not in text or "lr_range" in text]
    (end,) = [n for n, text in enumerate(some) if "train_test.fit(" in text]
    (cell,) = [text for text in some if again in text and "train_test" not in text]
    with pytest.raises(RuntimeError, match=said):
        run_cells([*some[:end], changed, cell, some[end]])


def test_images_that_came_after_the_training_are_no_part_of_its_results(
    sources, run_cells, monkeypatch
):
    (results,) = [text for text in sources if "flip_tta=True" in text]
    changed = ["test = test.subset(50)", results]
    (loaders,) = [n for n, text in enumerate(sources) if "make_loaders(" in text]
    before = [text for text in sources[: loaders + 1] if "plot_" not in text]
    with pytest.raises(RuntimeError, match="part 3 has changed: run all cells"):
        run_cells([*before, "history = train_test.History(1)", *changed])


def test_stored_network_of_other_classes_is_refused(sources, run_cells, monkeypatch):
    stored = models.CustomResNet()
    stored.classes = dataset.CIFAR10_CLASSES
    data = {"evaluated_on": "test set", "test_images": 100}
    record = {"model": "CustomResNet", "data": data}
    monkeypatch.setattr(weights, "load_run", lambda path: (stored, record))
    monkeypatch.setenv("S10_WEIGHTS", "run.json")
    some = [text for text in sources if "plot_" not in text]
    (end,) = [n for n, text in enumerate(some) if "make_loaders(" in text]
    own = "unavailable = None"  # as for pictures of one's own
    with pytest.raises(
        ValueError, match="of other classes: set WEIGHTS = None in part 2"
    ):
        run_cells([*some[:end], own, some[end]])


def test_with_weights_it_goes_to_the_mistakes_without_training(
    sources, run_cells, tmp_path, monkeypatch, capsys, found_rate
):
    tested_on = train_test.PROFILES["smoke"].test_images
    options = ["--profile=smoke", "--epochs=2", "--peak-epoch=1", "--max-lr=1e-3"]
    options += [f"--out={tmp_path}", "--seeds=0", "--save-weights"]
    program.main([*options, "--train-images=64", "--batch-size=32"])
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    record["data"]["source"] = "what it was trained on"
    path.write_text(json.dumps(record))
    monkeypatch.setenv("S10_WEIGHTS", str(path))
    monkeypatch.setattr(train_test, "fit", None)  # nothing is to be trained
    capsys.readouterr()
    names = run_cells(sources)
    said = capsys.readouterr().out
    assert "SYNTHETIC IMAGES, NOT CIFAR-10: asked for" in said
    assert f"Not trained here. {path}: what it was trained on, 64 training" in said
    accuracy = f"{record['last_epoch_accuracy']:.2%}"
    # The history is of the data in the record, the mistakes of those that are here.
    other = f"Tested here on other data, synthetic images, not CIFAR-10: {accuracy} of"
    assert other in said
    assert (
        f"Done. Data: what it was trained on. Weights: {path}, 2 epochs on 64 images"
        in said
    )
    assert f"Last-epoch test accuracy: {accuracy} of {tested_on}" in said
    right = (names["answers"] == names["predictions"].labels).float().mean().item()
    assert right == pytest.approx(record["weights"]["accuracy"])
    assert len(names["plan"]) == 4  # steps of the record's run


def test_with_a_checkpoint_the_training_cell_goes_on(
    sources, run_cells, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("S10_CHECKPOINT", str(tmp_path / "training.pt"))
    (end,) = [n for n, text in enumerate(sources) if "train_test.fit(" in text]
    some = [text for text in sources[: end + 1] if "plot_" not in text]
    (constants,) = [n for n, text in enumerate(some) if "\nRECIPE = " in text]
    changes = "RECIPE = replace(RECIPE, max_lr=1e-3, train_images=64)"
    some.insert(constants + 1, changes)
    run_cells(some)
    assert "going on" not in capsys.readouterr().out
    run_cells(some)
    assert (
        "going on after epoch 3 of 3, with nothing left to train"
        in capsys.readouterr().out
    )


# Ctrl-C reaches the program; the cell itself would go on.
INTERRUPTED = "import os, signal; os.kill(os.getppid(), signal.SIGINT); signal.pause()"


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("import os; os._exit(1)", "Kernel died: where memory"),
        (INTERRUPTED, "Interrupted"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_make_run_leaves_what_there_is_where_it_ends_early(
    last, said, tmp_path, monkeypatch, capsys
):
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "of-another-machine", "display_name": "x"}
    first = "import os; print('so far', sorted(os.listdir()))"
    sources = (first, last, "print('the end')")
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    # What was committed, from another execution.
    stale = nbformat.v4.new_output("stream", text="of another run")
    notebook.cells[-1].outputs = [stale]
    nbformat.write(notebook, tmp_path / "S10.ipynb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_notebook, "PROJECT", tmp_path)
    monkeypatch.setattr(run_notebook, "BUILD", tmp_path / "build")
    assert run_notebook.main() == 1
    page = (tmp_path / "build" / "S10.html").read_text(encoding="utf-8")
    assert "so far" in page
    assert "of another run" not in page
    told = capsys.readouterr()
    assert (
        "so far ['S10.ipynb', 'build']" in told.out
    )  # the kernel's sockets lie elsewhere
    assert said in told.err
    # Executed again, it differs in nothing but outputs that do.
    executed = nbformat.read(tmp_path / "build" / "S10.ipynb", as_version=4)
    assert executed.cells[0].metadata == notebook.cells[0].metadata == {}


def test_make_run_shows_its_parts_and_ends_with_the_last_line(
    tmp_path, monkeypatch, capsys
):
    notebook = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell("print('so far\\nDone.')")
    notebook.cells = [nbformat.v4.new_markdown_cell("## 1. Data"), cell]
    nbformat.write(notebook, tmp_path / "S10.ipynb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_notebook, "PROJECT", tmp_path)
    monkeypatch.setattr(run_notebook, "BUILD", tmp_path / "build")
    assert run_notebook.main() == 0
    shown = capsys.readouterr().out
    assert "] 1. Data\n    so far\n    Done.\n" in shown
    where = Path("build", "S10.html"), Path("build", "S10.ipynb")
    assert shown.endswith("\nDone.\nSee {} and {}.\n".format(*where))
