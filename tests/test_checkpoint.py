"""What a crash, a flipped bit or a full disk can do to a checkpoint: nothing unnoticed."""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import checkpoint
from helpers.checkpoint import previous, save_checkpoint
from helpers.resume import load_checkpoint
from tests.shared import python

PLAN = {"epochs": 3}


def state(number):
    weights = {"weight": torch.full((50,), float(number))}
    history = {"epochs": [{"epoch": epoch} for epoch in range(1, number + 1)]}
    return {"plan": PLAN, "model": weights, "history": history}


def load(path):
    """How many epochs the checkpoint holds."""
    found = load_checkpoint(path, plan=PLAN, model=state(0)["model"])
    return found and len(found["history"]["epochs"])


@pytest.fixture
def path(tmp_path):
    """The second of two checkpoints, the first beside it."""
    path = tmp_path / "training.pt"
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    return path


def test_latest_is_loaded_and_the_one_before_is_kept(path):
    assert load(path) == 2
    path.unlink()
    assert load(path) == 1
    previous(path).unlink()
    assert load(path) is None


def test_two_damaged_files_are_an_error_that_names_the_last(path):
    path.write_bytes(b"")
    previous(path).write_bytes(b"x")
    with (
        pytest.warns(UserWarning, match=r"training\.pt is damaged"),
        pytest.raises(ValueError, match=r"training\.pt\.previous is damaged"),
    ):
        load(path)


@given(st.data())
def test_damage_anywhere_is_noticed_and_the_one_before_is_taken(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "training.pt")
        save_checkpoint(path, state(1))
        save_checkpoint(path, state(2))
        content = path.read_bytes()
        place = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 40) | st.just(len(content)))
        there = content[place : place + length]
        instead = data.draw(st.binary(max_size=40).filter(lambda b: b != there))
        path.write_bytes(content[:place] + instead + content[place + length :])
        with pytest.warns(UserWarning, match=r"training\.pt is damaged"):
            assert load(path) == 1
        assert load(path) == 1  # in its place: a save now keeps it
        assert not previous(path).exists()


@pytest.mark.parametrize("form", [checkpoint.FORMAT - 1, checkpoint.FORMAT + 1])
def test_checkpoint_of_another_format_is_said(form, path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", form)
    save_checkpoint(path, state(3))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"is of format {form} and this version reads"):
        load(path)


def test_place_where_nothing_can_be_written_is_said_and_training_may_go_on(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "training.pt"  # refuses also to be cleaned up
    # Can't even be asked for, as on a network drive that is lost.
    gone = tmp_path / ("x" * 300)
    unmounted = tmp_path / "drive" / "runs" / "training.pt"
    sentence = r"can't be written after epoch 1 .* goes on, and nothing is kept"
    for place in (path, gone, unmounted):
        with pytest.warns(UserWarning, match=sentence):
            save_checkpoint(place, state(1))
    assert not (tmp_path / "drive").exists()  # on this machine, and in a mount's way


@pytest.mark.skipif(sys.platform != "linux", reason="no fork, or not a safe one")
def test_killed_trainings_end_as_if_undisturbed():
    soak = python("-m", "tests.soak", 5)
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert soak.stdout.startswith("5 kills, ")
