"""The records are made one by one, and what they show decides what is trained at the end."""

import json
import math

import pytest

from helpers import models, weights
from helpers.train_test import RECIPES, Recipe
from tests.test_main import Tiny
from tools import readme, records

SMALL = ["--profile", "smoke", "--train-images", "48", "--test-images", "16"]
SMALL += ["--batch-size", "16", "--epochs", "2", "--augment-on", "device"]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Makes the records of a plan of two seeds, two ingredients and one learning rate."""
    monkeypatch.setattr(records, "SEEDS", range(2))
    monkeypatch.setattr(records, "MAX_LRS", (1e-3,))
    monkeypatch.setattr(records, "KEPT", "")  # Tiny is none of the networks with a file
    some = {n: records.INGREDIENTS[n] for n in ("weight-decay", "no-cutout")}
    monkeypatch.setattr(records, "INGREDIENTS", some)
    for name in models.MODELS:
        monkeypatch.setitem(models.MODELS, name, Tiny)

    def run(*options):
        base = ["--out", str(tmp_path), "--holdout", "16", *options]
        records.main([*base, "--", *SMALL, "--peak-epoch", "1"])

    return run


def test_all_records_are_made_once(small, tmp_path, capsys):
    small()
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 2 * (3 + 1 + 4)
    assert "--- sweep-base-seed0" in capsys.readouterr().out
    held = json.loads((tmp_path / "sweep-weight-decay-seed1.json").read_text())
    assert held["recipe"]["weight_decay"] == 0.4
    assert held["data"]["evaluated_on"] == "held-out training images"
    final = json.loads((tmp_path / "run-page-CustomResNet-seed0.json").read_text())
    assert (final["recipe_name"], final["max_lr"]) == ("page", 0.4)
    assert final["data"]["evaluated_on"] == "test set"
    other = json.loads((tmp_path / "run-ours-ResNet18-seed1.json").read_text())
    assert (other["model"], other["seed"]) == ("ResNet18", 1)

    (tmp_path / "lr-1.0e-03-seed1.json").unlink()
    small()
    lines = capsys.readouterr().out.splitlines()
    assert [x for x in lines if x[:3] == "---"] == ["--- lr-1.0e-03-seed1"]


def test_nothing_begins_that_would_not_end_in_time(small, tmp_path):
    with pytest.raises(SystemExit, match="sweep-weight-decay-seed0 is next; run this"):
        small("--minutes", "1e-6")
    assert [path.name for path in tmp_path.iterdir()] == ["sweep-base-seed0.json"]


def test_network_of_the_first_seed_is_kept_and_scores_as_recorded(tmp_path, capsys):
    run = next(run for run in records.finals({}) if run.name == records.KEPT)
    records.make(run, tmp_path, [*SMALL, "--peak-epoch", "1", "--max-lr", "1e-3"])
    record = tmp_path / f"{run.name}.json"
    kept = tmp_path / json.loads(record.read_text())["weights"]["file"]
    weights.main([str(kept), "--record", str(record), "--data", "synthetic"])
    assert "They agree: " in capsys.readouterr().out


def leave(folder, name, accuracies):
    for seed, accuracy in enumerate(accuracies):
        record = {"seed": seed, "last_epoch_accuracy": accuracy}
        (folder / f"sweep-{name}-seed{seed}.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("tried", "kept"),
    [
        ([0.91, 0.92, 0.91, 0.92, 0.91], True),  # always about a point better
        ([0.90, 0.93, 0.88, 0.93, 0.90], False),  # better by chance, maybe
        ([0.89, 0.90, 0.89, 0.90, 0.89], False),  # worse
        ([0.91, 0.92, 0.91, 0.92], False),  # too few seeds
    ],
)
def test_ingredient_is_kept_if_it_gains_two_standard_errors_over_five_seeds(
    tried, kept, tmp_path
):
    leave(tmp_path, "base", [0.90, 0.91, 0.90, 0.91, 0.90])
    leave(tmp_path, "label-smoothing", tried)
    assert records.gain(tmp_path, "label-smoothing").kept == kept
    assert records.chosen(tmp_path) == ({"label_smoothing": 0.1} if kept else {})
    finals = {run.name: run.options for run in records.finals(records.chosen(tmp_path))}
    assert ("--label-smoothing=0.1" in finals["run-ours-CustomResNet-seed0"]) == kept


def test_ingredient_without_records_is_not_kept(tmp_path):
    found = records.gain(tmp_path, "averaging")
    assert math.isnan(found.mean)
    assert not found.kept


def test_ingredients_are_recipes():
    for changes in records.INGREDIENTS.values():
        assert Recipe(**changes) != Recipe()


def test_ours_is_what_the_records_have_chosen():
    assert RECIPES["ours"] == records.chosen(readme.PROJECT / "results")
