"""Records are made one by one, read with care, and decide what is trained at the end."""

import json
import math
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from helpers import models, results, tables, utils, weights
from helpers.train_test import PROFILES, RECIPES, Epoch, History, Recipe
from tests.shared import CPU, Tiny, raising, undiverged, within
from tools import readme, trainings, trials

SMALL = ["--profile", "smoke", "--train-images", "48", "--test-images", "16"]
SMALL += ["--batch-size", "16", "--epochs", "3", "--augment-on", "device"]
SMALL += ["--lr-test-steps", "30", "--lr-test-seeds", "1"]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Makes the records of a plan of two seeds, two trials and one learning rate."""
    monkeypatch.setattr(trainings, "SEEDS", range(2))
    monkeypatch.setattr(trainings, "MAX_LRS", (1e-3,))
    monkeypatch.setattr(trainings, "HOLDOUT", 16)
    monkeypatch.setattr(
        trainings, "KEPT", ""
    )  # Tiny is none of the networks with a file
    for plan, name in (("INGREDIENTS", "label-smoothing"), ("CHANGES", "no-cutout")):
        monkeypatch.setattr(trainings, plan, {name: getattr(trainings, plan)[name]})
    for name in models.MODELS:
        monkeypatch.setitem(models.MODELS, name, Tiny)

    def run(*options):
        base = ["--out", str(tmp_path), *options]
        trainings.main([*base, "--", *SMALL, "--peak-epoch", "1"])

    return run


@undiverged
def test_all_records_are_made_once(small, tmp_path, capsys):
    small()
    names = {path.name for path in tmp_path.iterdir()}  # and nothing else is left
    assert len(names) == 2 * (4 + 1 + 5)
    assert "--- run-page-CustomResNet-seed0" in capsys.readouterr().out
    for name, scale, smoothing, cutout in (
        ("base", 1, 0, 8),
        ("ours", 0.125, 0.1, 8),
        ("no-label-smoothing", 0.125, 0, 8),
        ("no-cutout", 0.125, 0.1, 0),
    ):
        held = json.loads((tmp_path / f"sweep-{name}-seed1.json").read_text())
        assert held["data"]["evaluated_on"] == "held-out training images"
        fields = ("logit_scale", "label_smoothing", "cutout")
        found = tuple(held["recipe"][field] for field in fields)
        assert found == (scale, smoothing, cutout), name
    final = json.loads((tmp_path / "run-page-CustomResNet-seed0.json").read_text())
    assert (final["recipe_name"], final["max_lr"]) == ("page", 0.4)
    assert final["data"]["evaluated_on"] == "test set"
    other = json.loads((tmp_path / "run-ours-ResNet18-seed1.json").read_text())
    assert (other["model"], other["seed"]) == ("ResNet18", 1)

    (tmp_path / "lr-1.0e-03-seed1.json").unlink()
    small()
    lines = capsys.readouterr().out.splitlines()
    assert [x for x in lines if x[:3] == "---"] == ["--- lr-1.0e-03-seed1"]


def test_nothing_begins_that_would_not_end_in_time(small, tmp_path, capsys):
    small("--minutes", "1e-6")
    said = capsys.readouterr().out
    assert "run-ours-CustomResNet-seed0 is next; run this again" in said
    assert "all records" not in said
    (made,) = tmp_path.iterdir()
    assert made.name == "run-page-CustomResNet-seed0.json"


def test_run_that_fails_is_told_and_the_others_are_made(
    small, tmp_path, monkeypatch, capsys
):
    for plan in ("finals", "ingredient_sweep", "other_network"):
        monkeypatch.setattr(trainings, plan, lambda *_: [])
    monkeypatch.setattr(trainings, "MAX_LRS", (1e30, 1e-3))
    with pytest.raises(
        SystemExit, match=r"no record of lr-1.0e\+30-seed0, lr-1.0e\+30"
    ):
        small()
    assert "error: the loss is " in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"lr-1.0e-03-seed{seed}.json" for seed in range(2)}


def test_plan_ends_where_there_is_no_dataset_for_any_run(tmp_path, capsys):
    (file := tmp_path / "file").write_text("")  # no folder for a download
    run = ["--", "--profile=quick", f"--data={file / 'below'}"]
    with pytest.raises(SystemExit, match="below cannot take"):
        trainings.main(["--out", str(tmp_path / "out"), *run])
    assert capsys.readouterr().out.count("---") == 1


def test_runs_are_of_full_length_also_where_no_gpu_is_found(tmp_path, monkeypatch):
    def stop(options, *_):
        raise SystemExit(options.profile)

    monkeypatch.setattr(trainings.program, "run", stop)
    (run, *_) = trainings.finals()
    with pytest.raises(SystemExit, match="full"):
        trainings.make(run, tmp_path, [])


def test_recipes_come_first():
    names = [run.name for run in trainings.plan()]
    assert names[0] == "run-page-CustomResNet-seed0"
    assert [name[:3] for name in names[:26]] == ["run"] * 25 + ["swe"]


def test_network_of_the_first_seed_is_kept_and_scores_as_recorded(tmp_path, capsys):
    run = next(run for run in trainings.finals() if run.name == trainings.KEPT)
    trainings.make(run, tmp_path, [*SMALL, "--peak-epoch", "1", "--max-lr", "1e-3"])
    record = tmp_path / f"{run.name}.json"
    weights.main([str(record), "--data", "synthetic"])
    assert "They agree: " in capsys.readouterr().out


def test_days_of_training_on_a_cpu_are_not_begun_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "get_device", lambda: CPU)
    monkeypatch.setattr(trainings, "make", raising(AssertionError("has begun")))
    for options in ([], ["--", "--precision=float32"]):
        with pytest.raises(
            SystemExit, match=r"no GPU .* these 100 trainings take days"
        ):
            trainings.main(["--out", str(tmp_path), *options])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("option", ["--profile=smoke", "--prof=smoke", "--epochs=6"])
def test_shorter_trainings_are_not_left_where_whole_ones_belong(option, monkeypatch):
    monkeypatch.setattr(trainings, "make", raising(AssertionError("has begun")))
    with pytest.raises(
        SystemExit, match="pass for trainings of full length .*add --out"
    ):
        trainings.main(["--", option])


def test_records_of_another_machine_are_not_added_to(small, tmp_path):
    there = within(made("page", 0, 0.9), "hardware", device="Tesla T4")
    path = tmp_path / "run-page-CustomResNet-seed0.json"
    utils.write_record(path, there)
    with pytest.raises(SystemExit, match=r"made on Tesla T4 and this is .* --out"):
        small()
    assert [*tmp_path.iterdir()] == [path]


def leave(folder, name, accuracies, **hardware):
    for seed, accuracy in enumerate(accuracies):
        record = within(made("ours", seed, accuracy), "hardware", **hardware)
        utils.write_record(folder / f"sweep-{name}-seed{seed}.json", record)


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
    leave(tmp_path, "ours", [0.90, 0.91, 0.90, 0.91, 0.90])
    leave(tmp_path, "no-cutout", tried)
    assert trials.gain(tmp_path, "ours", "no-cutout").kept == kept


def test_trials_on_two_machines_are_no_pairs(tmp_path):
    leave(tmp_path, "ours", [0.90, 0.91])
    leave(tmp_path, "no-cutout", [0.93, 0.94], device="Tesla T4")
    assert trials.gain(tmp_path, "ours", "no-cutout").n == 0


def test_trials_on_other_images_are_no_pairs():
    run, other = made("ours", 0, 0.90), made("page", 0, 0.91)
    assert results.paired([run], [other]) == [(0.90, 0.91)]
    for part, changes in (
        ("data", {"test_fingerprint": "0123456789abcdef"}),
        ("recipe", {"peak_epoch": 8}),
    ):
        assert results.paired([run], [within(other, part, **changes)]) == []


def test_trials_that_augment_elsewhere_are_no_pairs():
    page = made("page", 0, 0.90)
    elsewhere = {**made("page", 0, 0.80), "augment_on": "device"}
    run = made("ours", 0, 0.91)
    for before in ([page, elsewhere], [elsewhere, page]):
        assert results.paired(before, [run]) == [(0.90, 0.91)]
    assert results.paired([elsewhere], [run]) == []


def test_trial_without_records_decides_nothing(tmp_path):
    found = trials.gain(tmp_path, "no-averaging", "ours")
    assert math.isnan(found.mean)
    assert not found.kept
    assert not found.decided


def test_every_trial_is_of_a_recipe():
    for trial in trials.planned():
        assert Recipe(**trial.fields) != Recipe()


def test_ours_is_what_the_records_have_chosen():
    kept_fields = {}
    for trial in trials.TRIED["left-out"] + trials.TRIED["asked-again"]:
        if trials.gain(readme.TRIALS, trial.without, trial.having).kept:
            kept_fields |= trial.fields
    assert RECIPES["ours"] == kept_fields
    assert trials.gain(readme.TRIALS, "base", "no-averaging").kept
    (tried,) = utils.read_records(readme.TRIALS, "sweep-no-averaging-seed0.json")
    # `quick` had another peak then.
    assert tables.how_trained(tried) == "`ours` with `peak_epoch=4`"


# --- what records say ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format": 99}', "is of format 99 and this version reads 2; use"),
        ('{"format": "2"}', "is of format 2 and"),
        ('{"seed": 0}', r"is no record of a run \(KeyError: 'format'\); name a rec"),
        ("[]", r"is no record of a run \(TypeError"),
        ("{", r"is no record of a run \(JSONDecodeError"),
    ],
)
def test_what_is_no_record_of_this_version_is_one_sentence(content, said, tmp_path):
    path = tmp_path / "run-x.json"
    path.write_text(content)
    for read in (
        lambda: utils.read_record(path),
        lambda: utils.read_records(tmp_path),
    ):
        with pytest.raises(ValueError, match=rf"run-x\.json {said}"):
            read()


def test_record_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json is not there; name a rec"):
        utils.read_record(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError, match="is a folder; name a record"):
        utils.read_record(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        utils.write_record(tmp_path, {})


def made(recipe, seed, accuracy):
    (record,) = utils.read_records(
        readme.RESULTS, "run-CustomResNet-24epochs-*seed0.json"
    )
    fields = {**record["recipe"], **RECIPES[recipe]}
    changed = {"recipe_name": recipe, "recipe": fields, "seed": seed}
    return {**record, **changed, "last_epoch_accuracy": accuracy}


def rows_of(records):
    """The lines of their table, below its head."""
    lines = utils.results_markdown(records).splitlines()
    return lines[next(n for n, line in enumerate(lines) if line.startswith("|")) + 2 :]


def test_recipe_is_compared_with_pages_on_the_same_images_and_seeds():
    page = [made("page", seed, 0.90 + seed / 100) for seed in range(3)]
    ours = [made("ours", seed, 0.91 + seed / 100) for seed in range(2)]
    assert tables.against_page(ours, page + ours) == "+1.00 ± 0.00"
    assert tables.against_page(ours, ours) == "not measured"
    assert tables.against_page(ours[:1], page + ours) == "+1.00, one pair"
    assert tables.against_page(page, page + ours) == "0"
    # By that name, and with something otherwise: no baseline, but compared with it.
    for otherwise in ({"weight_decay": 0}, {"beta2": 0.99}):  # the second is no more
        other = [
            {**within(r, "recipe", **otherwise), "last_epoch_accuracy": 0.5}
            for r in page
        ]
        for runs in ([*page, *ours, *other], [*other, *ours, *page]):
            assert tables.against_page(ours, runs) == "+1.00 ± 0.00"
            assert tables.against_page(other[:1], runs) == "-40.00, one pair"
    # What isn't the recipe may be otherwise, if it is for both.
    longer = {"precision": "float32", "epochs": 40, "peak_epoch": 8}
    alike = [
        within(within(r, "recipe", **longer), "hardware", precision="float32")
        for r in page + ours
    ]
    assert tables.against_page(alike[3:], alike) == "+1.00 ± 0.00"
    assert tables.against_page(alike[3:], page + alike[3:]) == "not measured"
    for how in ({"precision": "float32"}, {"processes": 2}):
        rough = [
            {**within(r, "hardware", **how), "last_epoch_accuracy": 0.5} for r in page
        ]
        for runs in ([*page, *rough, *ours], [*rough, *page, *ours]):
            assert tables.against_page(ours, runs) == "+1.00 ± 0.00"
    ours[0]["last_epoch_accuracy"] = 0.93
    assert tables.against_page(ours, page + ours) == "+2.00 ± 1.00"
    first, second = rows_of(page + ours)  # a line for each recipe
    assert "`ours`" in first and "+2.00 ± 1.00" in first
    assert "**91.00% ± 1.00**" in second


def test_without_a_run_of_pages_there_is_no_column_for_it():
    ours, page = made("ours", 0, 0.91), made("page", 0, 0.90)
    assert "difference" not in utils.results_markdown([ours])
    assert "difference" in utils.results_markdown([ours, page])
    assert "not measured" in utils.results_markdown([made("ours", 1, 0.9), page])


def test_two_runs_of_one_seed_are_one_row_of_one_run():
    first, again = made("ours", 0, 0.91), made("ours", 0, 0.92)
    row, _ = rows_of([made("page", 0, 0.90), first, again])
    assert "| 1 | **92.00%** |" in row and "+2.00, one pair" in row


def test_row_says_what_the_run_had_otherwise_than_its_recipe_today():
    run = made("assignment", 0, 0.90)
    bare = within(run, "recipe", cutout=0, max_lr=0.1)
    first, second = rows_of([run, bare])
    assert first.startswith("| CustomResNet, `assignment` with `cutout=0` |")
    assert second.startswith("| CustomResNet, `assignment` |")
    still = within(run, "recipe", padding=0, flip=0)
    assert tables.how_trained(still) == "`assignment` with `flip=0`, `padding=0`"
    quick = {**asdict(PROFILES["quick"]), "max_lr": 3e-3}
    short = {**run, "profile": "quick", "recipe": quick}
    assert tables.how_trained(short) == "`assignment`"
    reported = {**bare, "recipe_name": "reported"}
    gone = {**bare, "recipe_name": "of another version"}
    for record in (reported, gone):
        assert tables.how_trained(record) == f"`{record['recipe_name']}`"
    older = within(run, "recipe", beta2=0.99)  # a field once tried
    assert tables.how_trained(older) == "`assignment` with `beta2=0.99`"


def test_processors_are_named_without_their_trademarks():
    name = "Intel(R) Core(TM) i7-1165G7 @ 2.80GHz"
    run = within(made("page", 0, 0.90), "hardware", device=name)
    assert "hardware: Intel Core i7-1165G7 @ 2.80GHz, bf" in utils.results_markdown(
        [run]
    )


def test_one_value_written_in_two_ways_is_one_row():
    run, again = made("page", 0, 0.90), made("page", 1, 0.92)
    again = within(again, "recipe", div_factor=float(again["recipe"]["div_factor"]))
    (row,) = rows_of([run, again])
    assert "91.00% ± 1.41" in row


def test_runs_that_differ_in_anything_but_the_seed_are_rows_of_their_own():
    run, again = made("assignment", 0, 0.90), made("assignment", 1, 0.92)
    bare = within(run, "recipe", cutout=0)
    held = within(run, "data", evaluated_on="held-out training images")
    shared = within(run, "hardware", processes=2)
    exact = within(run, "hardware", precision="float32")
    elsewhere = {**run, "augment_on": "device"}
    other = {**run, "model": "ResNet18"}
    rows = rows_of([run, held, bare, shared, exact, elsewhere, other, again])
    assert len(rows) == len(set(rows)) == 7
    assert sum("91.00% ± 1.41" in row for row in rows) == 1
    assert sum("→ 10,000 held-out training images |" in row for row in rows) == 1


def test_what_all_rows_share_stands_above_them():
    run, other = made("assignment", 0, 0.90), made("page", 0, 0.92)
    above, _, head, *_ = utils.results_markdown([run, other]).splitlines()
    said = (
        "training → test images: 50,000 → 10,000; epochs × batch: 24 × 512; "
        "hardware: AMD EPYC, bfloat16; augmented on: cpu"
    )
    assert said in above and "epochs × batch" not in head
    longer = within(other, "recipe", epochs=30)
    above, _, head, *_ = utils.results_markdown([run, longer]).splitlines()
    assert "epochs" not in above and "| epochs × batch |" in head
    assert utils.results_markdown([]) == "(no records)"
    table = utils.results_markdown([run, other])
    assert utils.results_markdown(iter([run, other])) == table
    with pytest.raises(TypeError, match=r"one record; pass a list of them, \[record\]"):
        utils.results_markdown(run)


def test_length_and_data_of_classwise_accuracy_are_told_once_if_they_are_alike():
    record = made("assignment", 0, 0.90)
    other = {**record, "model": "ResNet18"}
    longer = within(other, "recipe", epochs=30)
    about = (
        "CIFAR-10, JPEG copy, 50,000 training images, 24 epochs, evaluated on test set"
    )
    assert utils.class_results_markdown([record, other]).startswith(
        f"{about}\n\n| class |"
    )
    apart = utils.class_results_markdown([record, longer])
    assert f"runs: 1, {about} |" in apart
    assert f"runs: 1, {about.replace('24', '30')} |" in apart


def test_accuracy_of_a_class_is_a_mean_over_seeds_or_not_measured():
    runs = [
        {**made("assignment", seed, 0.9), "class_accuracy": {"a|b": cat, "dog": 0.5}}
        for seed, cat in ((0, 0.7), (1, 0.8))
    ]
    other = {**made("page", 0, 0.9), "class_accuracy": {"dog": 0.6, "owl": 0.9}}
    *_, cat, dog, owl = utils.class_results_markdown([*runs, other]).splitlines()
    assert cat == r"| a\|b | 75.00% ± 7.07 | not measured |"
    assert dog == "| dog | 50.00% ± 0.00 | 60.00% |"
    assert owl == "| owl | not measured | 90.00% |"
    assert utils.class_results_markdown([]) == "(no records)"
    with pytest.raises(TypeError, match="records is one record"):
        utils.class_results_markdown(other)


def test_changed_code_is_not_shown_as_its_commit():
    run = {**made("assignment", 0, 0.90), "commit": "0123456789-dirty"}
    assert "`0123456-dirty`" in utils.results_markdown([run])


def test_what_json_has_no_number_for_is_none_in_a_record_and_nan_in_its_history(
    tmp_path,
):
    epoch = Epoch(1, 2.3, 0.1, math.nan, 0.1)._asdict()
    record = {"max_lr": 0.1, "history": [epoch], "other": (math.inf, 1.5, "nan")}
    utils.write_record(tmp_path / "run.json", record)
    text = (tmp_path / "run.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    read = utils.read_record(tmp_path / "run.json")
    assert read["other"] == [None, 1.5, "nan"]
    assert read["history"][0]["test_loss"] is None
    (row,) = History.from_record(read).epochs
    assert math.isnan(row.test_loss) and row.train_loss == 2.3


def test_what_other_functions_give_can_be_kept_in_a_record(tmp_path):
    path, answers = tmp_path / "own.json", torch.tensor([0, 1, 1])
    matrix = utils.confusion_matrix([0, 1, 0], answers, 2)
    history = History(0.01, [Epoch(1, 2.3, 0.1, 2.2, 0.2)])  # as of a loop of one's own
    own = {"matrix": matrix, "answers": answers, "mean": np.float32(math.nan)}
    utils.write_record(path, {**own, "history": history.as_dict()})
    expected = {"matrix": [[1, 1], [0, 1]], "answers": [0, 1, 1], "mean": None}
    record = utils.read_record(path)
    assert record.items() >= expected.items()
    again = History.from_dict(record["history"])
    assert str(again.last) == str(history.last)
    with pytest.raises(TypeError, match="Recipe is not JSON serializable"):
        utils.write_record(path, {"recipe": Recipe()})
    assert "matrix" in utils.read_record(path)


def test_record_goes_to_the_file_behind_a_link(tmp_path):
    path, link = tmp_path / "run.json", tmp_path / "link.json"
    link.symlink_to(path)
    utils.write_record(link, {"seed": 3})
    assert link.is_symlink()
    assert utils.read_record(path)["seed"] == 3


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: utils.write_record(path, {"seed": 4}),
        lambda path: models.save_weights(
            models.CustomResNet(), path, classes=range(10), data="any"
        ),
    ],
)
def test_file_that_breaks_off_leaves_the_one_before_and_nothing_beside_it(
    write, tmp_path
):
    import resource

    path = tmp_path / "some.file"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, hard))  # bytes
    try:
        with pytest.raises(OSError, match="File too large"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_folder_of_records_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="none is not a folder; name one that"):
        utils.read_records(tmp_path / "none")


def curve(**accuracies):
    """Records of some seeds for each rate, given in thousandths: r10=[0.9, 0.91]."""
    return [
        {"max_lr": int(name[1:]) / 1e3, "seed": seed, "last_epoch_accuracy": accuracy}
        for name, some in accuracies.items()
        for seed, accuracy in enumerate(some)
    ]


def test_flat_top_ends_where_accuracy_is_lower_by_more_than_chance():
    steady = {"r3": [0.900, 0.910], "r1": [0.898, 0.908]}  # 0.2 points lower
    assert results.flat_top(curve(**steady)) == (0.001, 0.003)
    # Half a point lower on both seeds is more than three tenths.
    assert results.flat_top(curve(**{**steady, "r1": [0.895, 0.905]})) == (0.003, 0.003)
    lower = {**steady, "r10": [0.880, 0.890], "r30": [0.899, 0.909]}
    # What lies beyond a rate that is worse doesn't count, however good.
    assert results.flat_top(curve(**lower)) == (0.001, 0.003)
    noisy = {**steady, "r10": [0.860, 0.920]}  # 1.5 points lower, give or take 2.5
    assert results.flat_top(curve(**noisy)) == (0.001, 0.010)


def test_flat_top_compares_the_same_seeds():
    # Seed by seed a point lower, though both seeds differ by more than that.
    assert results.flat_top(curve(r3=[0.90, 0.93], r1=[0.89, 0.92])) == (0.003, 0.003)


def test_curve_that_was_cut_off_is_no_comparison_yet(tmp_path):
    steady = {"r3": [0.90, 0.93], "r10": [0.80, 0.83]}
    assert results.flat_top(curve(**steady, r1=[0.89])) is None
    other_seed = {"max_lr": 0.001, "seed": 2, "last_epoch_accuracy": 0.89}
    assert results.flat_top([*curve(**steady), other_seed]) is None
    # What lies beyond a rate that is worse isn't asked: most runs there may diverge.
    assert results.flat_top(curve(**steady, r30=[0.70])) == (0.003, 0.003)
    base = {**made("assignment", 0, 0.9), "max_lr": 3.2e-3}
    (tmp_path / "sweep-base-seed0.json").write_text(json.dumps(base))
    (tmp_path / "lr-3.2e-03-seed0.json").write_text(json.dumps(base))
    table = readme.learning_rates(tmp_path)
    assert "| 3.2e-03 | 1 | 90.00% |" in table
    assert "| flat top |  | not measured |" in table


def test_log_says_whether_the_range_tests_are_on_the_flat_top(tmp_path):
    assert "| flat top |  | not measured |" in readme.learning_rates(tmp_path)
    base, rates = made("assignment", 0, 0.9), {1e-3: 0.88, 3.2e-3: 0.9, 5.6e-3: 0.9}
    for seed in range(2):
        for rate, accuracy in rates.items():
            record = {**base, "seed": seed, "max_lr": rate}
            record["last_epoch_accuracy"] = accuracy + seed / 1e3
            (tmp_path / f"lr-{rate:.1e}-seed{seed}.json").write_text(json.dumps(record))
        chose = {**base, "seed": seed, "max_lr": (2e-3, 4e-3)[seed]}
        (tmp_path / f"sweep-base-seed{seed}.json").write_text(json.dumps(chose))
    table = readme.learning_rates(tmp_path)
    assert "| 3.2e-03 | 2 | 90.05% ± 0.07 |" in table
    assert "| range test: 2.0e-03, 4.0e-03 | 2 | 90.00% ± 0.00 |" in table
    assert "| flat top: 3.2e-03 to 5.6e-03 |  | 1 of 2 range tests inside |" in table


def test_log_compares_a_variant_with_what_it_varies_seed_by_seed(tmp_path):
    tried = {"base": (0.8, 0.8), "ours": (0.82, 0.83), "half-rate": (0.83, 0.85)}
    tried["ours"] += (0.99,)  # which has no partner yet
    for name, accuracies in tried.items():
        for seed, accuracy in enumerate(accuracies):
            path = tmp_path / f"sweep-{name}-seed{seed}.json"
            path.write_text(json.dumps(made("ours", seed, accuracy)))
    trial = trials.Trial("half-rate", {"max_lr": "half"}, "ours", "half-rate")
    (line,) = readme.ingredients(tmp_path, [trial]).splitlines()[2:]
    assert line == (
        "| half-rate | `max_lr=half` | 2 | 82.50% ± 0.71 | 84.00% ± 1.41 | +1.50 ± 0.50 | open |"
    )


def test_kept_networks_are_those_that_their_records_name():
    kept_files = {path.name for path in readme.RESULTS.glob("*.safetensors")}
    named = set()
    for path in readme.RESULTS.glob("run-*.json"):
        if "weights" in (record := utils.read_record(path)):
            model, _ = weights.load_run(path)  # checks the digest
            assert models.count_parameters(model) == record["parameters"]
            assert model.trained_on == record["data"]["source"]
            named.add(record["weights"]["file"])
    assert named == kept_files
