"""python -m helpers: what a run writes, where it goes on, and how it says no."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import helpers
from helpers import __main__ as program
from helpers import dataset, models, train_test, utils, weights
from helpers.train_test import PROFILES
from tests.shared import FIELDS, NO_SPACE, OTHER, Tiny, raising, untimed
from tools.trainings import as_options

SMALL = {
    "train_images": 64,
    "test_images": 24,
    "batch_size": 16,
    "lr_test_steps": 40,
    "lr_test_seeds": 1,
}


@pytest.fixture(autouse=True, scope="module")
def tiny():
    """A network that trains in no time, on the CPU wherever the tests run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(models.MODELS, "Tiny", Tiny)
        patched.setattr(utils, "get_device", lambda: torch.device("cpu"))
        yield


def main(out, *options):
    run = ["--profile=smoke", "--model=Tiny", f"--out={out}"]
    program.main([*run, *as_options(SMALL), *options])


def refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


def records(out):
    """The records in `out`, in the order of their names, read as strict JSON."""
    return [
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
        for path in sorted(out.glob("*.json"))
    ]


def record(out):
    (only,) = records(out)
    return only


def repeatable(record):
    """All of it that a second run can repeat."""
    history = untimed(record["history"])
    of_its_run = {"seconds": None, "commit": None, "resumed_after": None}
    return {**record, **of_its_run, "history": history}


# --- the record ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "new"
    main(out, "--seeds", "3")
    return out


@pytest.fixture(scope="module")
def images():
    return dataset.synthetic_cifar10(train=64, test=24)


def test_run_writes_one_record_and_its_checkpoint(ran):
    names = sorted(path.name for path in ran.iterdir())
    assert len(names) == 2
    assert re.fullmatch(r"\d{8}-\d{6}-Tiny-smoke-assignment-seed3.*\.json", names[0])
    assert names[1] == names[0].replace(".json", ".pt")


def test_without_checkpoint_the_record_is_all_that_is_left(tmp_path):
    main(tmp_path, "--no-checkpoint")
    (path,) = tmp_path.iterdir()
    assert path.suffix == ".json"


def test_run_without_checkpoint_has_nothing_to_go_on_from(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(tmp_path, "--no-checkpoint", "--resume")
    assert (
        "--resume: not allowed with argument --no-checkpoint" in capsys.readouterr().err
    )


def test_record_tells_what_was_done(ran):
    got = record(ran)
    expected = dataclasses.replace(PROFILES["smoke"], **SMALL)
    assert got["recipe"] == dataclasses.asdict(expected)
    assert (got["profile"], got["model"], got["seed"]) == ("smoke", "Tiny", 3)
    assert got["parameters"] == sum(p.numel() for p in Tiny().parameters())
    assert got["format"] == 2


def test_seed_decides_first_weights_order_and_augmentation(tmp_path, images):
    main(tmp_path, "--seeds", "0", "1")
    recipe = dataclasses.replace(PROFILES["smoke"], **SMALL)
    for got, seed in zip(records(tmp_path), (0, 1), strict=True):
        assert got["seed"] == seed
        utils.set_seed(seed)
        pair = dataset.make_loaders(
            *images, batch_size=16, device="cpu", seed=seed, **recipe.augmentation
        )
        history = train_test.fit(Tiny(), pair, recipe, device="cpu")
        assert untimed(got["history"]) == untimed(history.epochs)


def test_figure_of_a_run_says_on_which_images_it_was_evaluated(ran):
    about = "synthetic images, not CIFAR-10, 64 training images, 3 epochs, evaluated on"
    assert utils.describe_record(record(ran)) == f"{about} test set"


def test_record_tells_by_what_code_and_on_which_machine(ran):
    got = record(ran)
    assert got["versions"] == {
        "helpers": helpers.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{
            name: importlib.metadata.version(name)
            for name in ("torchvision", "albumentations", "torch-lr-finder", "numpy")
        },
    }
    auto = train_test.choose_dtype("auto", torch.device("cpu"))
    if (cpu := Path("/proc/cpuinfo")).exists() and "model name" in cpu.read_text():
        assert f": {got['hardware']['device']}\n" in cpu.read_text()
    assert got["hardware"] == {
        "type": "cpu",
        "device": utils.device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "precision": str(auto).removeprefix("torch."),
        "processes": 1,
    }


def test_record_tells_which_images_were_used(ran, images):
    train, test = images
    assert record(ran)["data"] == {
        "source": "synthetic images, not CIFAR-10",
        "train_images": 64,
        "test_images": 24,
        "evaluated_on": "test set",
        "train_fingerprint": train.fingerprint(),
        "test_fingerprint": test.fingerprint(),
    }


def test_record_agrees_with_itself(ran, images):
    got = record(ran)
    rows = got["history"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert got["last_epoch_accuracy"] == rows[-1]["test_accuracy"]
    accuracies = [row["test_accuracy"] for row in rows]
    assert got["maximum_accuracy"] == max(accuracies)
    assert got["maximum_epoch"] == 1 + accuracies.index(max(accuracies))
    assert got["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    history = train_test.History.from_record(got)
    assert history.max_lr == got["max_lr"]
    assert [row._asdict() for row in history.epochs] == rows
    # One epoch up, so the first row's rate is the peak.
    assert rows[0]["learning_rate"] == pytest.approx(got["max_lr"])
    test = images[1]
    assert tuple(got["class_accuracy"]) == test.classes
    counts = np.bincount(test.labels, minlength=10)
    total = np.average(list(got["class_accuracy"].values()), weights=counts)
    assert total == pytest.approx(got["last_epoch_accuracy"])


def test_run_prints_what_it_is_about_and_what_came_of_it(tmp_path, capsys):
    main(tmp_path)
    first, second, third, *epochs, last = capsys.readouterr().out.splitlines()
    got = record(tmp_path)
    assert first.startswith("profile smoke | data synthetic images, not CIFAR-10 |")
    assert second == (
        f"Tiny, {got['parameters']:,} parameters, recipe assignment, seed 0, processes: 1"
    )
    assert third == f"range test: max_lr {got['max_lr']:.2e}"
    assert [line[:11] for line in epochs] == [f"epoch   {i} |" for i in (1, 2, 3)]
    assert last.startswith("synthetic images, not CIFAR-10, seed 0: last epoch ")
    assert f"last epoch {got['last_epoch_accuracy']:.2%}, " in last
    assert f"maximum {got['maximum_accuracy']:.2%} in epoch" in last
    assert "on the test set" in last
    assert Path(last.partition("; record ")[2]).is_file()


def test_weights_that_could_not_be_written_cost_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "save_scored", raising(NO_SPACE))
    with pytest.raises(SystemExit, match="No space left on device"):
        main(tmp_path, "--save-weights", "--no-checkpoint")
    assert len(record(tmp_path)["history"]) == 3


def test_package_that_only_weights_need_is_missed_before_training(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(SystemExit, match="safetensors is not .* leave out --save"):
        main(tmp_path, "--save-weights")
    assert capsys.readouterr().out == ""


def test_recipe_is_chosen_by_name_and_options_alter_it(tmp_path):
    main(tmp_path, "--recipe", "page", "--weight-decay", "0.1")
    got = record(tmp_path)
    assert got["recipe_name"] == "page"
    assert got["recipe"]["optimizer"] == "sgd"
    assert got["recipe"]["weight_decay"] == 0.1
    assert got["max_lr"] == got["recipe"]["max_lr"] == 0.4


def test_every_recipe_option_reaches_the_recipe(tmp_path):
    assert list(OTHER) == FIELDS
    main(tmp_path, *as_options(OTHER))
    got = record(tmp_path)
    assert got["recipe"] == OTHER
    assert got["max_lr"] == 0.02
    assert len(got["history"]) == 2
    assert got["data"]["train_images"] == 96
    assert got["data"]["test_images"] == 30
    assert got["hardware"]["precision"] == "bfloat16"


@pytest.mark.parametrize(("gpu", "profile"), [(True, "full"), (False, "quick")])
def test_profile_goes_by_the_hardware(gpu, profile, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert program.parse([]).profile == profile


def test_program_without_options_is_the_assignment_and_writes_where_readme_says():
    options = program.parse([])
    assert (options.model, options.recipe) == ("CustomResNet", "assignment")
    assert (options.out, options.seeds, options.holdout) == (Path("runs"), [0], 0)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-2", 0.01), ("none", None), ("None", None), ("1", 1)]
)
def test_numbers_are_read_as_people_write_them(text, value):
    altered = program.parse(["--max-lr", text])
    assert altered.max_lr == value
    assert type(altered.max_lr) is type(value)


def test_class_without_images_has_no_accuracy_and_leaves_the_record_json(tmp_path):
    main(tmp_path, "--test-images", "4")
    accuracies = record(tmp_path)["class_accuracy"]
    assert len(accuracies) == 10
    assert sum(value is None for value in accuracies.values()) == 6


# --- held-out images -------------------------------------------------------------------


def test_holdout_evaluates_on_training_images_that_are_not_trained_on(tmp_path, capsys):
    main(tmp_path, "--holdout", "20")
    assert "on the held-out training images" in capsys.readouterr().out
    data = record(tmp_path)["data"]
    train, held = dataset.synthetic_cifar10(train=84, test=24)[0].split(20)
    assert data["evaluated_on"] == "held-out training images"
    assert data["test_images"] == 20
    assert data["train_images"] == 64
    assert data["train_fingerprint"] == train.fingerprint()
    assert data["test_fingerprint"] == held.fingerprint()


def test_holdout_never_touches_the_test_set(tmp_path, monkeypatch):
    main(tmp_path / "one", "--holdout", "20")

    def without_test_set(**sizes):
        train, test = real(**sizes)
        return train, test.take(np.arange(0))

    real = dataset.synthetic_cifar10
    monkeypatch.setattr(dataset, "synthetic_cifar10", without_test_set)
    main(tmp_path / "two", "--holdout", "20")
    assert repeatable(record(tmp_path / "one")) == repeatable(record(tmp_path / "two"))


# --- interruptions ---------------------------------------------------------------------


def break_off(out, *options):
    """A run that is interrupted in its second epoch."""
    real = train_test.train_one_epoch

    def interrupted(*args, epoch, **options):
        if epoch == 2:
            raise KeyboardInterrupt
        return real(*args, epoch=epoch, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_test, "train_one_epoch", interrupted)
        with pytest.raises(SystemExit, match="^130$"):
            main(out, *options)


@pytest.fixture
def interrupted(tmp_path):
    """The folder of a run that broke off after its first epoch."""
    break_off(tmp_path, "--seeds", "3")
    return tmp_path


def checkpoints(out):
    """The files in `out` that a run can go on from, with their content."""
    return {path: path.read_bytes() for path in out.glob("Tiny-*")}


def test_resumed_run_ends_with_the_record_of_an_uninterrupted_one(
    interrupted, ran, capsys
):
    main(interrupted, "--seeds=3", "--resume")
    out = capsys.readouterr().out
    assert "going on after epoch 1 of 3" in out
    assert "range test" not in out  # whose rate the checkpoint has
    assert re.findall(r"^epoch +(\d+)", out, re.MULTILINE) == ["2", "3"]
    assert repeatable(record(interrupted)) == repeatable(record(ran))
    assert record(interrupted)["resumed_after"] == 1
    assert "resumed_after" not in record(ran)
    assert checkpoints(interrupted) == {}


def test_later_seed_that_can_not_go_on_is_said_before_the_first_is_trained(
    interrupted, capsys
):
    for seeds, change, sentence in (
        ("4 3", "--padding=2", r"from another training: padding is 4 there and 2 here"),
        ("4 3", "--holdout=10", r"another training: images is \["),
        ("4 5", "--padding=4", "seed5.pt is damaged or no checkpoint"),
    ):
        (interrupted / "Tiny-smoke-assignment-seed5.pt").write_bytes(b"junk")
        with pytest.raises(SystemExit, match=sentence):
            main(interrupted, "--seeds", *seeds.split(), "--resume", change)
        assert "epoch" not in capsys.readouterr().out


def test_other_seed_is_not_in_the_way_of_an_interrupted_run(interrupted):
    before = checkpoints(interrupted)
    main(interrupted, "--seeds=4", "--max-lr=0.01")
    assert record(interrupted)["seed"] == 4
    assert checkpoints(interrupted) == before


def test_interrupted_run_goes_on_at_the_rate_that_it_began_with(tmp_path, capsys):
    break_off(tmp_path, "--seeds=3", "--max-lr=0.003")
    # By mistake without it: a range test would have chosen another.
    with pytest.raises(
        SystemExit, match="max_lr_from is 'the recipe' there and 'the range test'"
    ):
        main(tmp_path, "--seeds", "4", "3", "--resume")
    assert not [*tmp_path.glob("*seed4.json")]  # said before any training
    with pytest.raises(SystemExit, match="max_lr is 0.003 there and 0.1 here"):
        main(tmp_path, "--seeds=3", "--resume", "--max-lr=0.1")
    for _ in range(2):
        main(tmp_path, "--seeds=3", "--resume", "--max-lr=0.003")
    assert "seed 3, max_lr 3.00e-03; this seed is skipped" in capsys.readouterr().out
    got = record(tmp_path)
    assert got["max_lr"] == got["recipe"]["max_lr"] == 0.003


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (["2", "3"], "seed3.*pt exists; name another file"),
        (["2", "-1"], "seed is -1; choose"),
    ],
)
def test_what_a_later_seed_would_fail_for_is_said_before_the_first_trains(
    seeds, said, interrupted, capsys
):
    with pytest.raises(SystemExit, match=said):
        main(interrupted, "--max-lr=0.01", "--seeds", *seeds)
    assert records(interrupted) == []
    assert "epoch" not in capsys.readouterr().out


def test_run_that_is_done_can_be_repeated_in_the_same_folder(
    tmp_path, monkeypatch, capsys
):
    stamps = iter(["20250101-000000", "20250101-000001"])
    monkeypatch.setattr(program.time, "strftime", lambda form: next(stamps))
    main(tmp_path)
    capsys.readouterr()
    main(tmp_path)
    assert "\nepoch   1 |" in capsys.readouterr().out
    one, two = records(tmp_path)
    assert repeatable(one) == repeatable(two)


def test_seeds_that_are_done_are_passed_over_when_the_next_goes_on(
    ran, interrupted, capsys
):
    shutil.copytree(ran, interrupted, dirs_exist_ok=True)  # seed 3 is done and begun
    main(interrupted, "--resume", "--seeds", "2", "3", "4")
    main(interrupted, "--resume", "--seeds", "2", "3", "4", "5")
    said = capsys.readouterr().out
    assert "going on after epoch 1 of 3" in said
    assert re.findall(r"assignment, seed (\d)", said) == ["2", "3", "4", "5"]
    passed = re.findall(r"\.json is the record of seed (\d)", said)
    assert passed == ["2", "3", "4"]


def test_files_that_are_no_records_of_this_version_are_not_taken_for_done(
    ran, tmp_path, capsys
):
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    (written,) = tmp_path.glob("*.json")
    for number, content in enumerate(("", '{"format": 99}', '{"format": 2}')):
        written.with_name(f"{number}-{written.name.split('-', 2)[2]}").write_text(
            content
        )
    with pytest.warns(UserWarning, match="it doesn't count as done") as warned:
        main(tmp_path, "--resume", "--seeds=3")
    assert len(warned) == 2  # the third is a record, of nothing like it
    assert f"{written} is the record of seed 3" in capsys.readouterr().out


def test_weights_that_are_asked_for_too_late_are_not_passed_over_in_silence(
    ran, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(weights, "save_scored", lambda *_, **__: "saved")
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    main(tmp_path, "--resume", "--seeds=3", "--save-weights")
    said = capsys.readouterr().out
    (old, new) = re.search(
        r"no weights: rename (\S+) to (\S+) and repeat", said
    ).groups()
    (tmp_path / old).rename(tmp_path / new)
    main(tmp_path, "--resume", "--seeds=3", "--save-weights")
    said = capsys.readouterr().out
    assert "nothing left to train" in said and "\nepoch" not in said
    assert len(records(tmp_path)) == 2
    (weighed,) = (each for each in records(tmp_path) if "weights" in each)
    assert repeatable(weighed) == {**repeatable(record(ran)), "weights": "saved"}

    shutil.copytree(ran, tmp_path / "again")
    for checkpoint in (tmp_path / "again").glob("*.pt"):
        checkpoint.unlink()
    main(tmp_path / "again", "--resume", "--seeds=3", "--save-weights")
    assert "it has no weights: without --resume" in capsys.readouterr().out


def test_weights_that_no_file_can_hold_cost_neither_record_nor_later_seeds(
    tmp_path, monkeypatch
):
    def refused(*args, **options):
        raise ValueError("0.weight holds 1.7e+05, and float16 nothing above 65504")

    monkeypatch.setattr(weights, "save_scored", refused)
    with pytest.warns(
        UserWarning, match=r"seed\d\.json has no weights: 0.weight holds"
    ):
        main(tmp_path, "--seeds", "0", "1", "--save-weights", "--max-lr=0.01")
    assert [each["seed"] for each in records(tmp_path)] == [0, 1]
    assert not [each for each in records(tmp_path) if "weights" in each]
    assert checkpoints(tmp_path) == {}


def test_run_that_was_repeated_for_its_weights_is_done(ran, tmp_path, capsys):
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    first = record(tmp_path)
    name = "99991231-235959-Tiny-smoke-assignment-seed3.json"
    utils.write_record(tmp_path / name, {**first, "weights": {}})
    main(tmp_path, "--resume", "--seeds=3", "--save-weights")
    said = capsys.readouterr().out
    assert f"{name} is the record of seed 3" in said
    assert "it has no weights" not in said


def test_home_is_meant_by_its_sign_also_where_no_shell_says_so(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("USERPROFILE", "/home/anna")  # Windows's name
    assert program.parse(["--out=~/runs"]).out == Path("/home/anna/runs")


def test_seed_that_is_done_and_begun_again_goes_on(ran, interrupted, capsys):
    shutil.copytree(ran, interrupted, dirs_exist_ok=True)
    (checkpoint,) = checkpoints(interrupted)
    # What a kill between the two renames of a checkpoint leaves.
    checkpoint.rename(checkpoint.with_name(checkpoint.name + ".previous"))
    main(interrupted, "--resume", "--seeds", "3")
    assert "going on after epoch 1 of 3" in capsys.readouterr().out


def test_damaged_checkpoint_is_said_and_the_one_before_gone_on_from(
    interrupted, capsys
):
    (checkpoint,) = checkpoints(interrupted)
    checkpoint.rename(checkpoint.with_name(checkpoint.name + ".previous"))
    checkpoint.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"seed3\.pt is damaged"):
        main(interrupted, "--resume", "--seeds", "3")
    assert "going on after epoch 1 of 3" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["--cutout=4", "--holdout=20", "--augment-on=device"])
def test_seed_that_is_done_in_another_way_is_trained(other, ran, tmp_path, monkeypatch):
    monkeypatch.setattr(program.time, "strftime", lambda form: "a later second")
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    main(tmp_path, "--seeds=3", "--resume", other)
    assert len(records(tmp_path)) == 2


def test_checkpoint_that_could_not_be_written_costs_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", raising(NO_SPACE))
    with pytest.warns(UserWarning, match="No space left on device"):
        main(tmp_path)
    assert len(record(tmp_path)["history"]) == 3


# --- how it says no --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--flip", "none"], "flip must be a probability from 0 to 1, not None"),
        (["--precision", "half"], "precision must be one of auto, float32, .* 'half'"),
        (["--padding", "32"], "padding must be 0 to 31 pixels, not 32"),
        (["--batch-size", "64", "--max-lr", "1e-2"], "peak_epoch 1 "),
        (["--holdout", "-5"], "holdout is -5; give a number of training images, or 0"),
        (["--seeds", "-1"], "seed is -1; choose one from 0"),
        (["--max-lr", "1e30"], "the loss is (nan|inf) in epoch 1, step"),
    ],
)
def test_bad_value_is_one_sentence_and_leaves_no_record(options, sentence, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(tmp_path, *options)
    assert re.fullmatch(f"error: {sentence}.*", caught.value.code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--profile", "huge"], "argument --profile: invalid choice: 'huge'"),
        (["--model", "VGG"], "argument --model: invalid choice: 'VGG'"),
        (["--augment-on", "gpu"], "argument --augment-on: invalid choice: 'gpu'"),
        (["--max-lr", "x"], "argument --max-lr: invalid number value: 'x'"),
        (["--seeds", "a"], "argument --seeds: invalid int value: 'a'"),
        (["--epoch-count", "3"], "unrecognized arguments: --epoch-count"),
    ],
)
def test_unknown_choice_is_one_sentence_with_the_usage(
    options, sentence, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as caught:
        main(tmp_path, *options)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: python -m helpers")
    assert sentence in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_lack_of_memory_is_one_sentence(tmp_path, monkeypatch):
    full = MemoryError("a step of 512 images needs more memory")
    monkeypatch.setattr(train_test, "fit", raising(full))
    with pytest.raises(SystemExit, match="^error: a step of 512 images needs more"):
        main(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="has no such folder")
def test_out_that_cannot_be_written_to_is_said_before_training(capsys):
    sentence = r"^error: the folder /proc can't be written to \(.* \(--out\)$"
    with pytest.raises(SystemExit, match=sentence):
        main(Path("/proc"))
    assert "epoch" not in capsys.readouterr().out


def test_dataset_on_the_disk_is_called_by_its_source(tmp_path, monkeypatch):
    train, test = (
        dataclasses.replace(part, source="CIFAR-10, made up")
        for part in dataset.synthetic_cifar10(train=80, test=40)
    )
    monkeypatch.setattr(dataset, "load_cifar10", lambda root: (train, test))
    small = ["--profile", "quick", "--epochs", "2", "--peak-epoch", "1"]
    main(tmp_path, *small, "--max-lr", "0.01", "--data", str(tmp_path / "data"))
    data = record(tmp_path)["data"]
    assert data["source"] == "CIFAR-10, made up"
    assert data["train_fingerprint"] == train.subset(64).fingerprint()
    assert data["test_fingerprint"] == test.subset(24).fingerprint()


def test_record_tells_the_accuracy_with_mirror_images(tmp_path):
    main(tmp_path, "--test-images=400")
    (path,), model = tmp_path.glob("*.pt"), Tiny()
    train_test.read_history(path, model)
    sets = dataset.synthetic_cifar10(train=64, test=400)
    test = dataset.make_loaders(*sets, batch_size=16, device="cpu").test
    mirrored = train_test.predict(model, test, device="cpu", flip_tta=True)
    found = record(tmp_path)
    assert found["flip_tta_accuracy"] == mirrored.metrics.accuracy
    assert found["flip_tta_accuracy"] != found["last_epoch_accuracy"]


def test_folder_of_the_dataset_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("CIFAR10_ROOT", "elsewhere")
    assert program.parse([]).data == "elsewhere"
    monkeypatch.setenv("CIFAR10_ROOT", "")
    assert program.parse([]).data == "data"


# --- which code it was -----------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The code as it is unpacked from an archive: outside any checkout."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook has GIT_DIR, which would be taken instead
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    package = tmp_path / "helpers"
    package.mkdir()
    (package / "utils.py").write_text("")
    monkeypatch.setattr(utils, "__file__", str(package / "utils.py"))
    monkeypatch.delenv("S10_COMMIT", raising=False)
    return package


def test_commit_without_a_checkout_is_that_of_the_environment(elsewhere, monkeypatch):
    assert utils.commit() == "unknown"
    monkeypatch.setenv("S10_COMMIT", "0123abc")
    assert utils.commit() == "0123abc"


def test_commit_without_git_is_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("S10_COMMIT", "0123abc")
    assert utils.commit() == "0123abc"


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_commit_is_gits_and_tells_of_changed_files(elsewhere, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        identity += ["-c", "commit.gpgSign=false", "-c", "tag.gpgSign=false"]
        command = ["git", "-C", str(elsewhere.parent), *identity, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", "--all")
    commit = ["commit", "--quiet", "--no-verify", "--allow-empty", "-m"]
    git(*commit, "first")
    monkeypatch.setenv("S10_COMMIT", "not asked for")
    head = git("rev-parse", "HEAD")
    git("tag", "-a", "v1", "-m", "a tag's name doesn't hide it")
    assert utils.commit() == head
    (elsewhere / "utils.py").write_text("changed")
    assert utils.commit() == f"{head}-dirty"
    # Installed below somebody's own project, it isn't of that one's commits.
    git("rm", "--quiet", "--cached", "-r", "helpers")
    git(*commit, "second")
    assert utils.commit() == "not asked for"


def test_record_names_the_code_that_the_run_started_from(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "commit", lambda: "of a checkout that has moved on")
    main(tmp_path)
    assert record(tmp_path)["commit"] == program.COMMIT


# --- as a person types it --------------------------------------------------------------


def test_help_explains_every_field_of_a_recipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit, match="^0$"):
        program.parse(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m helpers")
    shown = " ".join(out.partition("\nhyperparameters:")[2].split())
    for name in FIELDS:
        option = f"--{name.replace('_', '-')} VALUE"
        assert re.search(rf"{option} \w\S* \w", shown), name
    assert "--padding VALUE pixels by which a random crop moves an image" in shown
    assert "--test-images VALUE how many of the images are used" in shown
