"""Counts and intervals are true, figures show what they are given, bad input is named."""

import importlib.metadata
import itertools
import math
import platform
import random
from types import SimpleNamespace

import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

import helpers
from helpers import utils
from helpers.measures import wilson
from helpers.train_test import Epoch, History

DATA = "made-up data, for a test"
CLASSES = ["airplane", "automobile", "bird"]
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def pictures(count, *, channels=3, side=8):
    generator = np.random.default_rng(count)
    return generator.integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def normalized(images):
    """Images (..., H, W, C) as a normalized tensor (..., C, H, W)."""
    channels = images.shape[-1]
    scaled = (images / 255 - MEAN[:channels]) / STD[:channels]
    return torch.from_numpy(np.moveaxis(scaled, -1, -3).astype(np.float32))


def history(*test_accuracies):
    rows = [
        Epoch(
            epoch,
            train_loss=2 / epoch,
            train_accuracy=1 - 0.6 / epoch,
            test_loss=1.8 / epoch,
            test_accuracy=accuracy,
        )
        for epoch, accuracy in enumerate(test_accuracies, start=1)
    ]
    return History(1e-3, rows)


def search(*, divergence=0.4):
    """Two tests that fall from 2.3 to 1.5 and explode; the second one stopped early."""
    rates = np.geomspace(1e-4, 1, 60)
    losses = np.concatenate([np.linspace(2.3, 1.5, 50), np.geomspace(2, 1e30, 10)])
    broken = [*losses[:50], math.inf, math.nan]
    return SimpleNamespace(
        learning_rates=list(rates),
        losses=[list(losses), broken],
        smoothed=[list(losses), broken[:50]],
        median=list(losses[:50]),
        rim=1.7,
        max_lr=0.05,
        divergence_lr=divergence,
    )


def rates(steps):
    return np.interp(np.arange(steps), [0, steps // 4, steps - 1], [0.01, 0.05, 0.0])


def mistakes(count):
    return [utils.Mistake(i, 1, 0, 0.9 - i / 100) for i in range(count)]


def accuracies():
    return utils.class_accuracy([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 1], CLASSES)


def samples(**options):
    labels = np.arange(10) % 3
    return utils.plot_samples(pictures(10), labels, CLASSES, data=DATA, **options)


def augmentations(channels=3):
    originals = pictures(2, channels=channels)
    views = normalized(np.stack([255 - originals, originals[:, :, ::-1]], axis=1))
    used = MEAN[:channels], STD[:channels]
    return utils.plot_augmentations(originals, views, *used, data=DATA)


def misclassified_figure(count, **options):
    images = pictures(30)
    return utils.plot_misclassified(
        images, mistakes(count), CLASSES, data=DATA, **options
    )


def many_classes():
    names = [f"class {number}" for number in range(48)]
    return utils.plot_confusion_matrix(np.ones((48, 48), int), names, data=DATA)


LONG = "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"


def confusion_of(size, name):
    matrix = np.full((size, size), 1_000)
    names = [f"{name} {number}" for number in range(size)]
    return utils.plot_confusion_matrix(matrix, names, data=DATA)


HUNDRED = [f"a class of many, {number}" for number in range(100)]


def accuracies_of_100():
    """Of the first 50 classes 0%, 2%, 4%, ... are right, of the others all."""
    labels = np.repeat(np.arange(100), 50)
    wrong = np.tile(np.arange(50), 100) >= labels
    predictions = np.where(wrong, (labels + 1) % 100, labels)
    rows = utils.class_accuracy(labels, predictions, HUNDRED)
    return utils.plot_class_accuracy(rows, data=DATA)


def samples_of_100():
    images = pictures(200, channels=1)
    return utils.plot_samples(images, np.arange(200) % 100, HUNDRED, data=DATA)


# Confidences 0.875 right, 0.75 wrong, 0.625, 0.5 and 1 right; nothing is called class 2.
LABELS = [0, 1, 0, 1, 0]
PROBABILITIES = torch.tensor(
    [
        [0.875, 0.125, 0.0],
        [0.75, 0.25, 0.0],
        [0.625, 0.25, 0.125],
        [0.25, 0.5, 0.25],
        [1.0, 0.0, 0.0],
    ]
)


def calibration_figure(bins):
    rows = utils.calibration(LABELS, PROBABILITIES, bins=bins)
    return utils.plot_calibration(rows, data=DATA)


def full_calibration(bins):
    """Each bin with thousands of images."""
    rows = [
        utils.CalibrationBin(
            i / bins, (i + 1) / bins, 9_999, (i + 0.5) / bins, i / bins
        )
        for i in range(bins)
    ]
    return utils.plot_calibration(rows, data=DATA)


def rates_figure(*rates, seeds=2):
    """The nearer to 3e-3 the better, by more than chance."""
    runs = [
        {
            "max_lr": rate,
            "seed": seed,
            "last_epoch_accuracy": 0.9 - abs(math.log10(rate / 3e-3)) / 9 + seed / 1e3,
        }
        for rate in rates
        for seed in range(seeds)
    ]
    chosen = [
        {"max_lr": rate, "seed": seed, "last_epoch_accuracy": 0.88 + rate}
        for seed, rate in enumerate((2.5e-3, 3e-3))
    ]
    return utils.plot_max_lr(runs, chosen, data=DATA)


FIGURES = {
    "samples": samples,
    "samples, long names": lambda: utils.plot_samples(
        pictures(40, side=32),
        np.arange(40) % 10,
        ["a class with quite a long name"] * 10,
        data=DATA,
        per_class=3,
    ),
    "samples, grey": lambda: utils.plot_samples(
        pictures(3, channels=1), [0, 1, 1], CLASSES, data=DATA
    ),
    "samples, 100 classes": samples_of_100,
    "augmentations": augmentations,
    "augmentations, grey": lambda: augmentations(channels=1),
    "range test": lambda: utils.plot_lr_range_test(search(), data=DATA),
    "range test, no divergence": lambda: utils.plot_lr_range_test(
        search(divergence=None), data=DATA
    ),
    "range test, divergence at the end": lambda: utils.plot_lr_range_test(
        search(divergence=1.0), data=DATA
    ),
    "max_lr": lambda: rates_figure(3e-4, 1e-3, 3e-3, 1e-2),
    "max_lr, one seed": lambda: rates_figure(1e-3, 3e-3, seeds=1),
    "max_lr, one rate": lambda: rates_figure(3e-3),
    "learning rate": lambda: utils.plot_learning_rate(
        rates(40), rates(40), steps_per_epoch=4, data=DATA
    ),
    "learning rate, no step": lambda: utils.plot_learning_rate(
        rates(40), [], steps_per_epoch=4, data=DATA
    ),
    "history": lambda: utils.plot_history(history(0.5, 0.92, 0.9), data=DATA),
    "history, one epoch": lambda: utils.plot_history(history(0.5), data=DATA),
    "class accuracy": lambda: utils.plot_class_accuracy(accuracies(), data=DATA),
    "class accuracy, 100 classes": accuracies_of_100,
    "class accuracy, long names": lambda: utils.plot_class_accuracy(
        [row._replace(name=LONG) for row in accuracies()], data=DATA
    ),
    "confusion": lambda: utils.plot_confusion_matrix(
        [[900, 30, 70], [0, 1000, 0], [5, 0, 995]], CLASSES, data=DATA
    ),
    "confusion, no mistake": lambda: utils.plot_confusion_matrix(
        np.eye(3, dtype=int), CLASSES, data=DATA
    ),
    "confusion, 48 classes": many_classes,
    "confusion, long names": lambda: confusion_of(20, "Strawberry___healthy"),
    "confusion, long names of few": lambda: confusion_of(5, LONG),
    "calibration": lambda: calibration_figure(4),
    "calibration, one bin": lambda: calibration_figure(1),
    "calibration, full": lambda: full_calibration(15),
    "calibration, 40 bins": lambda: full_calibration(40),
    "misclassified": lambda: misclassified_figure(20),
    "misclassified, long names": lambda: utils.plot_misclassified(
        pictures(30, channels=1), mistakes(20), HUNDRED, data=DATA
    ),
    "misclassified, none": lambda: misclassified_figure(0),
}


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("name", FIGURES)
def test_figure_names_its_data_and_is_legible_and_a_notebook_can_show_it(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    assert DATA in figure.get_suptitle()
    assert figure.axes  # IPython's own hook shows no figure without axes
    assert figure._repr_png_().startswith(b"\x89PNG")
    width, height = figure.get_size_inches()
    assert 6 <= width <= 10
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= 0 and drawn.x1 <= width, "cut off at a side"
    assert drawn.y0 >= 0 and drawn.y1 <= height, "cut off above or below"
    for text in figure.findobj(Text):
        assert text.get_size() >= 9, f"{text.get_text()!r} is too small"


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("range test", [("learning rate", "loss (nats per example)")]),
        ("max_lr", [("peak learning rate (max_lr)", "last-epoch accuracy (%)")]),
        ("learning rate", [("epochs done", "learning rate")]),
        (
            "history",
            [("epoch", "loss (nats per example)"), ("epoch", "accuracy (%)")],
        ),
        (
            "confusion",
            [("predicted class", "true class"), ("", "mistakes (% of the true class)")],
        ),
    ],
)
def test_axes_say_what_they_show_and_in_which_unit(name, axes):
    shown = FIGURES[name]().axes
    assert [(each.get_xlabel(), each.get_ylabel()) for each in shown] == axes


def test_lines_to_compare_with_are_where_they_say():
    (calibrated,) = (
        line
        for line in FIGURES["calibration"]().axes[0].lines
        if line.get_label() == "calibrated"
    )
    assert list(calibrated.get_xdata()) == list(calibrated.get_ydata()) == [0, 100]
    (mean,) = (
        line
        for line in FIGURES["class accuracy"]().axes[0].lines
        if line.get_label() == "all images: 66.67%"
    )
    assert list(mean.get_xdata()) == pytest.approx([200 / 3] * 2)


def test_seed_that_is_no_whole_number_changes_nothing():
    before = random.getstate()
    with pytest.raises(TypeError):
        utils.set_seed(1.5)
    assert random.getstate() == before
    with pytest.raises(TypeError, match="^seed must be a whole number, not '0'$"):
        utils.set_seed("0")


def test_seed_repeats_python_numpy_and_torch():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    utils.set_seed(7)
    first = draw()
    utils.set_seed(7)
    assert draw() == first
    utils.set_seed(np.int64(7))
    assert draw() == first
    utils.set_seed(8)
    assert not set(draw()) & set(first)


def test_device_holds_tensors_and_run_is_described_in_one_line():
    device = utils.get_device()
    assert torch.ones(2, device=device).sum().item() == 2
    line = utils.describe_run("quick", DATA, device)
    assert "\n" not in line
    version = torch.__version__.partition("+")[0]
    for part in ("profile quick", DATA, f"device {device.type}", f"torch {version}"):
        assert part in line
    assert f"python {platform.python_version()}" in line
    assert ("threads: " in line) == (device.type == "cpu")


def test_run_is_described_without_the_packages_that_an_own_task_does_not_need(
    monkeypatch,
):
    def version(name):
        if name in ("torchvision", "albumentations"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    line = utils.describe_run("quick", DATA, "cpu")
    assert line.endswith(f"torch {torch.__version__}, torch-lr-finder 1.0, numpy 1.0")
    assert utils.versions()["helpers"] == helpers.__version__


# Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_is_the_published_one(correct, count, low, high):
    predictions = [0] * correct + [1] * (count - correct)
    row = utils.class_accuracy([0] * count, predictions, ["yes", "no"])[0]
    assert (row.correct, row.count) == (correct, count)
    assert row.low == pytest.approx(low, abs=5e-5)
    assert row.high == pytest.approx(high, abs=5e-5)


def test_class_without_images_has_no_accuracy():
    row = accuracies()[2]
    assert (row.count, row.low, row.high) == (0, 0.0, 1.0)
    assert math.isnan(row.accuracy)


def test_confusion_matrix_has_true_rows_and_predicted_columns():
    matrix = utils.confusion_matrix([0, 0, 0, 1, 2], torch.tensor([0, 2, 2, 1, 0]), 3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 0, 2], [0, 1, 0], [1, 0, 0]]
    small = np.full(3, 46, np.uint8)  # as is 47 classes' square
    assert utils.confusion_matrix(small, small, small[0] + 1)[46, 46] == 3


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_mistakes_come_most_confident_first_and_alone(kind):
    probabilities = torch.tensor(
        [
            [0.75, 0.25, 0.0],  # right
            [0.5, 0.25, 0.25],  # wrong
            [0.0, 0.875, 0.125],  # wrong, and surest
            [0.25, 0.125, 0.625],  # wrong
        ],
        dtype=kind,
    )
    found = utils.misclassified([0, 1, 2, 0], probabilities)
    assert found == [(2, 2, 1, 0.875), (3, 0, 2, 0.625), (1, 1, 0, 0.5)]
    assert utils.misclassified([0, 1, 2, 0], probabilities, most=2) == found[:2]
    assert utils.misclassified([0, 0, 1, 2], probabilities) == []
    whole = np.uint8([[0, 0, 0], [1, 0, 0]])  # without a sign to turn
    assert [each.index for each in utils.misclassified([2, 2], whole)] == [1, 0]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_calibration_is_the_one_computed_by_hand(kind):
    rows = utils.calibration(LABELS, PROBABILITIES.to(kind), bins=4)
    empty, low, middle, high = rows
    assert empty[:3] == (0, 0.25, 0)
    assert math.isnan(empty.confidence) and math.isnan(empty.accuracy)
    assert low == (0.25, 0.5, 1, 0.5, 1)  # an edge belongs to the bin below it
    assert middle == (0.5, 0.75, 2, 0.6875, 0.5)
    assert high == (0.75, 1, 2, 0.9375, 1)
    # (1 × 0.5 + 2 × 0.1875 + 2 × 0.0625) / 5
    assert utils.expected_calibration_error(rows) == pytest.approx(0.2)
    assert len(utils.calibration(LABELS, PROBABILITIES.to(kind))) == 15


@pytest.mark.parametrize(
    ("labels", "probabilities", "error"),
    [
        ([0, 1], [[1, 0], [0, 1]], 0),  # sure and right
        ([1, 0], [[1, 0], [0, 1]], 1),  # sure and wrong
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]], 0),  # as unsure as it should be
        ([0, 0], [[1.0005, 0], [1, 0]], 0.00025),  # rounded up, still in the last bin
    ],
)
def test_calibration_error_goes_from_0_to_1(labels, probabilities, error):
    rows = utils.calibration(labels, np.array(probabilities))
    assert utils.expected_calibration_error(rows) == pytest.approx(error)


def test_most_confused_classes_are_counted_both_ways():
    matrix = [[90, 3, 7], [0, 99, 1], [5, 0, 95]]
    pairs = utils.most_confused(matrix, CLASSES)
    assert pairs == [
        ("airplane", "bird", 7, 5, 0.75),
        ("airplane", "automobile", 3, 0, 0.1875),
        ("automobile", "bird", 1, 0, 0.0625),
    ]
    assert utils.most_confused(matrix, CLASSES, most=1) == pairs[:1]
    assert str(utils.Confusion("cat", "dog", 1200, 80, 0.25)) == (
        "cat taken for dog 1,200 times, dog for cat 80 times: 25.0% of all mistakes"
    )
    # A sum that doesn't fit the counts' type.
    narrow = np.array([[0, 200, 0], [100, 0, 100], [0, 0, 0]], np.uint8)
    assert utils.most_confused(narrow, "abc", most=1) == [("a", "b", 200, 100, 0.75)]


def test_classes_that_are_not_confused_are_left_out():
    assert utils.most_confused(np.diag([5, 0, 7]), CLASSES) == []
    never_right = [[0, 2, 0], [2, 0, 0], [0, 0, 0]]
    assert utils.most_confused(never_right, CLASSES) == [
        ("airplane", "automobile", 2, 2, 1.0)
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_denormalize_undoes_normalization(channels):
    images = pictures(4, channels=channels)
    restored = utils.denormalize(normalized(images), MEAN[:channels], STD[:channels])
    np.testing.assert_allclose(restored, images / 255, atol=1e-6)


def test_denormalize_takes_the_tensors_that_normalize_a_batch():
    images = pictures(4)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    given = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    np.testing.assert_allclose(
        utils.denormalize(given, mean, std), images / 255, atol=1e-6
    )


def test_denormalize_stays_between_0_and_1():
    extremes = torch.tensor([-9.0, 9.0]).reshape(2, 1, 1, 1)
    assert utils.denormalize(extremes, [0.5], [0.25]).ravel().tolist() == [0.0, 1.0]


def test_samples_hold_the_first_images_of_each_class():
    images, step = pictures(10), 9  # 8 pixels and a gap of 1
    fewest = samples(per_class=1).axes[0].images[0].get_array()
    np.testing.assert_array_equal(fewest[step : step + 8, :8], images[1])
    figure = samples(per_class=4)
    sheet = figure.axes[0].images[0].get_array()
    for row in range(3):
        for column, image in enumerate(images[row::3][:4]):
            y, x = row * step, column * step
            np.testing.assert_array_equal(sheet[y : y + 8, x : x + 8], image)
    assert (sheet[step : 2 * step, 3 * step :] == 255).all()  # only three of class 1
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == CLASSES
    most = samples(per_class=100).axes[0].images[0].get_array()
    assert np.array_equal(most, sheet)  # no class has more than four


def test_samples_of_many_classes_are_of_some_evenly_spaced_ones():
    figure = samples_of_100()
    assert figure.get_suptitle().startswith("Sample images of 12 of 100 classes\n")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == HUNDRED[::9]
    sheet, images = axes.images[0].get_array(), pictures(200, channels=1)
    for row, number in enumerate(range(0, 100, 9)):
        for column, image in enumerate((images[number], images[100 + number])):
            part = sheet[row * 9 : row * 9 + 8, column * 9 : column * 9 + 8]
            np.testing.assert_array_equal(part, np.broadcast_to(image, (8, 8, 3)))


def test_augmentations_start_with_the_original():
    figure = augmentations()
    sheet = figure.axes[0].images[0].get_array()
    originals = pictures(2)
    columns = [originals[1], 255 - originals[1], originals[1][:, ::-1]]
    for number, image in enumerate(columns):
        x = 9 * number
        np.testing.assert_array_equal(sheet[9:17, x : x + 8], image)
    heads = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert heads == ["unchanged", "view 1", "view 2"]


def test_range_test_shows_the_fall_although_losses_explode():
    axes = FIGURES["range test"]().axes[0]
    low, high = axes.get_ylim()
    assert axes.get_xscale() == "log"
    assert 0 < low < 1.5 and 2.3 < high < 4
    (rim,) = (line for line in axes.lines if line.get_label().startswith("climbed"))
    upright = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert [line.get_xdata()[0] for line in upright if line is not rim] == [0.05, 0.4]
    assert list(rim.get_ydata()) == [1.7, 1.7]
    (median,) = (line for line in axes.lines if line.get_label() == "median")
    assert len(median.get_xdata()) == 50
    stopped = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 52]
    assert [high < curve[50] < math.inf for curve in stopped] == [True]
    written = " ".join(texts(axes))
    assert "choice 0.05" in written and "divergence 0.4" in written


def test_no_mistake_is_called_certain():
    some = [utils.Mistake(i, 0, 1, p) for i, p in enumerate((0.5, 0.99984, 0.999951))]
    shown = texts(utils.plot_misclassified(pictures(3), some, CLASSES, data=DATA))
    probabilities = {text.splitlines()[-1] for text in shown if " → " in text}
    assert {"50.00%", "99.98%", "> 99.99%"} < probabilities


def test_range_test_without_divergence_marks_none():
    assert not any(
        "divergence" in t for t in texts(FIGURES["range test, no divergence"]())
    )


def test_rates_that_do_as_well_as_the_best_are_shaded_and_the_chosen_marked():
    axes = rates_figure(3e-4, 2e-3, 3e-3, 1e-2).axes[0]
    first, _, mean, chosen = axes.lines
    # The first seed's, with its range test's among them.
    assert list(first.get_xdata()) == [3e-4, 2e-3, 2.5e-3, 3e-3, 1e-2]
    assert first.get_ydata()[2] == pytest.approx(88.25)
    assert chosen.get_marker() == "D"
    assert list(mean.get_xdata()) == [3e-4, 2e-3, 3e-3, 1e-2]
    assert mean.get_ydata()[2] == pytest.approx(90.05)
    assert list(chosen.get_xdata()) == [2.5e-3, 3e-3]
    assert list(chosen.get_ydata()) == pytest.approx([88.25, 88.3])
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["0.0003", "0.002", "0.003", "0.01"]
    assert "not shown to be worse: 0.003 to 0.003" in texts(axes.figure)
    unclear = texts(FIGURES["max_lr, one seed"]())
    assert "too few seeds yet to tell which rates do as well" in unclear
    assert not any("shown to be worse" in text for text in unclear)


def test_rates_that_fail_altogether_do_not_flatten_the_others():
    runs = [
        {"max_lr": rate, "seed": 0, "last_epoch_accuracy": accuracy}
        for rate, accuracy in ((1e-3, 0.9), (1e-2, 0.88), (1e-1, 0.1))
    ]
    (axes,) = utils.plot_max_lr(runs, runs[:1], data=DATA).axes
    assert axes.get_ylim()[0] == pytest.approx(80)
    assert "↓ 10.0%" in texts(axes.figure)


def test_plan_alone_is_drawn_where_no_step_is_known():
    assert not any(
        "actual" in text for text in texts(FIGURES["learning rate, no step"]())
    )


def test_learning_rate_names_the_peak_in_epochs():
    figure = utils.plot_learning_rate(
        rates(40), rates(40)[:8], steps_per_epoch=4, data=DATA
    )
    planned, actual, peak = figure.axes[0].lines
    assert (len(planned.get_xdata()), len(actual.get_xdata())) == (40, 8)
    assert actual.get_xdata()[-1] == 8 / 4
    assert (peak.get_xdata()[0], peak.get_ydata()[0]) == (2.75, 0.05)
    assert "peak 0.05 after epoch 2.75" in texts(figure)


def test_history_names_the_last_and_the_highest_accuracy():
    figure = FIGURES["history"]()
    (legend,), (loss, accuracy) = figure.legends, figure.axes
    losses = np.array([line.get_ydata() for line in loss.lines])
    assert losses == pytest.approx(np.array([[2, 1, 2 / 3], [1.8, 0.9, 0.6]]))
    assert [text.get_text() for text in legend.get_texts()] == [
        "train",
        "test",
        "test, last (epoch 3): 90.00%",
        "test, maximum (epoch 2): 92.00%",
    ]
    curves = {line.get_label(): list(line.get_ydata()) for line in accuracy.lines}
    assert curves["test"] == pytest.approx([50, 92, 90])
    assert curves["train"] == pytest.approx([40, 70, 80])


def test_history_of_one_epoch_has_one_tick():
    for axes in FIGURES["history, one epoch"]().axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_class_accuracy_ranks_the_best_on_top():
    axes = FIGURES["class accuracy"]().axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["bird", "automobile", "airplane"]
    assert [bar.get_width() for bar in axes.patches] == [0, 50, 75]
    assert [text.get_text() for text in axes.texts] == ["0 / 0", "1 / 2", "3 / 4"]
    (bars,) = axes.collections
    limits = 100 * np.array([(row.low, row.high) for row in reversed(accuracies())])
    assert np.array(bars.get_segments())[:, :, 0] == pytest.approx(limits)


def test_class_accuracy_of_many_classes_shows_the_best_and_the_worst():
    figure = accuracies_of_100()
    assert "the 12 best and the 12 worst of 100" in figure.get_suptitle()
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == HUNDRED[:12] + HUNDRED[-12:]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([*range(0, 24, 2), *[100] * 12])
    assert figure.get_size_inches()[1] <= 12
    assert "all images: 74.50%" in texts(figure)


def test_classes_without_images_are_not_the_worst():
    labels = [number % 40 for number in range(80)]
    rows = utils.class_accuracy(labels, labels, HUNDRED)
    figure = utils.plot_class_accuracy(rows, data=DATA)
    assert "the 12 best and the 12 worst of 40" in figure.get_suptitle()
    assert "0 / 0" not in texts(figure)


def test_classes_may_be_numbers():
    rows = utils.class_accuracy([0, 1], [0, 1], [0, 1])
    assert "1" in texts(utils.plot_class_accuracy(rows, data=DATA))
    figure = utils.plot_confusion_matrix(np.eye(2, dtype=int), range(2), data=DATA)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["0", "1"]


def test_few_classes_with_images_among_many_are_all_drawn():
    labels = [number % 20 for number in range(40)]
    rows = utils.class_accuracy(labels, [*labels[:39], 0], HUNDRED)
    figure = utils.plot_class_accuracy(rows, data=DATA)
    assert ", the 20 of 100 that have images\n" in figure.get_suptitle()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(names) == sorted(HUNDRED[:20]) and names[0] == HUNDRED[19]


def test_lines_on_a_dark_background_are_seen():
    with matplotlib.style.context("dark_background"):
        axes = FIGURES["calibration"]().axes[0]
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    assert (colours["calibrated"], axes.get_facecolor()) == ("white", (0, 0, 0, 1))


def test_confusion_figure_writes_counts_and_colours_only_mistakes():
    axes = FIGURES["confusion"]().axes[0]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {
        (0, 0): "900",
        (1, 0): "30",
        (2, 0): "70",
        (1, 1): "1000",
        (0, 2): "5",
        (2, 2): "995",
    }
    shares = axes.images[0].get_array()
    assert shares.mask.diagonal().all() and shares.mask.sum() == 3
    assert shares[0, 2] == pytest.approx(7) and axes.images[0].get_clim() == (0, 7)


def test_confusion_figure_has_no_counts_that_would_run_into_one_another():
    assert not FIGURES["confusion, long names"]().axes[0].texts
    assert FIGURES["confusion, long names of few"]().axes[0].texts


def test_confusion_figure_of_many_classes_has_no_counts():
    axes = many_classes().axes[0]
    assert not axes.texts
    assert len(axes.get_xticklabels()) == 48


@pytest.mark.parametrize(
    ("size", "name", "shown"),
    [(48, "class", 48), (49, "class", 25), (36, LONG, 36), (37, "Tomato___spot", 19)],
)
def test_names_of_many_classes_do_not_run_into_one_another(size, name, shown):
    figure = confusion_of(size, name)
    figure.draw_without_rendering()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        places = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert len(places) == shown
        assert len({label.get_text() for label in axis.get_ticklabels()}) == shown
        # Of a line's height about a sixth is free, above and below the letters.
        sides = (axis.axis_name + "0", axis.axis_name + "1")
        for one, other in itertools.pairwise(places):
            low, high = sorted((one, other), key=lambda box: getattr(box, sides[0]))
            assert getattr(low, sides[1]) - getattr(high, sides[0]) < 2  # pixels


def test_calibration_figure_shows_each_bin_that_has_images():
    figure = FIGURES["calibration"]()
    title = "Calibration, with an expected calibration error of 20.0 points\n"
    assert figure.get_suptitle().startswith(title)
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == [100, 50, 100]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    assert middles == pytest.approx([37.5, 62.5, 87.5])
    marks = {line.get_label(): line for line in axes.lines}["mean confidence"]
    assert list(marks.get_ydata()) == pytest.approx([50, 68.75, 93.75])
    (bars,) = axes.collections
    limits = 100 * np.array([wilson(1, 1), wilson(1, 2), wilson(2, 2)])
    assert np.array(bars.get_segments())[:, :, 1] == pytest.approx(limits)
    assert [text.get_text() for text in axes.texts] == ["1", "2", "2"]


@pytest.mark.parametrize("name", ["calibration, full", "calibration, 40 bins"])
def test_counts_of_calibration_do_not_run_into_each_other(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0


def test_misclassified_figure_shows_each_mistake_once():
    images = pictures(30)
    figure = misclassified_figure(22)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 22
    for axes, mistake in zip(shown, mistakes(22)):
        np.testing.assert_array_equal(axes.images[0].get_array(), images[mistake.index])
    assert shown[1].get_title() == "automobile → airplane\n89.00%"


def test_titles_of_misclassified_images_do_not_run_into_each_other():
    figure = FIGURES["misclassified, long names"]()
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes[:4]]
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0


def test_long_label_stays_within_its_figure():
    about = "a dataset of a name that takes more room than a line has, " * 4
    figure = utils.plot_learning_rate([1, 2], [1], data=about, steps_per_epoch=1)
    figure.canvas.draw()
    title = figure._suptitle.get_window_extent()
    assert title.x0 > 0
    assert title.x1 < figure.bbox.width


def test_dollars_in_names_are_no_mathematics():
    names, images = ("$1", "US$ {x and C$"), pictures(30)
    figures = [
        utils.plot_misclassified(images, mistakes(3), names, data="from $ to {x $"),
        utils.plot_samples(images, np.arange(30) % 2, names, data=DATA),
        utils.plot_confusion_matrix(np.ones((2, 2), int), names, data=DATA),
        utils.plot_class_accuracy(
            utils.class_accuracy([0, 1], [0, 1], names), data=DATA
        ),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        drawn = [text.get_text() for text in figure.findobj(Text)]
        assert any("US$ {x" in text for text in drawn)
    assert figures[0].get_suptitle().endswith("from $ to {x $")


def test_misclassified_figure_says_that_there_are_none():
    assert "There are no misclassified images." in texts(misclassified_figure(0))


def test_tensors_are_taken_in_lists_too_wherever_they_are():
    scores = [torch.tensor([0.9, 0.1], requires_grad=True)]
    assert utils.misclassified([torch.tensor(1)], scores)[0].prediction == 0
    views = [[one.bfloat16().requires_grad_()] for one in TENSOR]
    utils.plot_augmentations(IMAGES, views, MEAN, STD, data=DATA)
    mean, std = torch.full((2, 3), 0.5, requires_grad=True)
    assert utils.denormalize(torch.zeros(1, 3, 2, 2), mean, std) == pytest.approx(0.5)


def test_confusion_matrix_asks_for_a_number_of_classes():
    with pytest.raises(TypeError, match=r"'dog'\); pass how many: len\(classes\)"):
        utils.confusion_matrix([0, 1], [0, 1], ("cat", "dog"))


@pytest.mark.parametrize(
    "classes", [2, {"cat", "dog"}, {"cat": 0}], ids=["number", "set", "dict"]
)
def test_what_is_no_list_of_classes_is_refused(classes):
    matrix = utils.confusion_matrix([0, 1], [0, 1], 2)
    for call in (
        lambda: utils.class_accuracy([0, 1], [0, 1], classes),
        lambda: utils.most_confused(matrix, classes),
        lambda: utils.plot_confusion_matrix(matrix, classes, data=DATA),
        lambda: utils.plot_samples(IMAGES, [0] * 4, classes, data=DATA),
        lambda: utils.plot_misclassified(IMAGES, [], classes, data=DATA),
    ):
        with pytest.raises(TypeError, match="the names in the labels' order"):
            call()


IMAGES, TENSOR = pictures(4), normalized(pictures(4))
BAD = {
    "seed is -1; choose": lambda: utils.set_seed(-1),
    "labels holds 3, outside the 3 classes; pass class numbers from 0 to 2": (
        lambda: utils.confusion_matrix([0, 3], [0, 1], 3)
    ),
    "predictions holds -1, outside": (
        lambda: utils.class_accuracy([0, 1], [0, -1], CLASSES)
    ),
    "predictions has 3 entries for 2; pass as many": (
        lambda: utils.class_accuracy([0, 1], [0, 1, 1], CLASSES)
    ),
    "labels has shape (2,) and type float64; pass one integer": (
        lambda: utils.confusion_matrix([0.5, 1.0], [0, 1], 3)
    ),
    "the 2 parts have different shapes; make one array of them, by torch.cat": (
        lambda: utils.class_accuracy([[0, 1], [0]], [0, 1, 0], CLASSES)
    ),
    "images are uint8, mean [0.5, 0.5, 0.5]": (
        lambda: utils.denormalize(np.uint8(TENSOR), [0.5] * 3, [0.5] * 3)
    ),
    "images are float32, mean [125, 125, 125] and std [60, 60, 60]; pass": (
        lambda: utils.denormalize(TENSOR, [125] * 3, [60] * 3)
    ),
    "images are float32, mean [0.5, 0.5, 0.5] and std [-0.5, 0.5, 0.5]; pass": (
        lambda: utils.denormalize(TENSOR, [0.5] * 3, [-0.5, 0.5, 0.5])
    ),
    "images are float32, mean [nan, 0.5, 0.5] and std": (
        lambda: utils.denormalize(TENSOR, [math.nan, 0.5, 0.5], [0.5] * 3)
    ),
    "labels has shape (1, 2) and type int64; pass one integer": (
        lambda: utils.confusion_matrix([[0, 1]], [0, 1], 3)
    ),
    "probabilities has shape (2,); pass (N, C)": (
        lambda: utils.misclassified([0, 1], [0.5, 0.5])
    ),
    "probabilities holds values from -2 to 3; apply softmax": (
        lambda: utils.misclassified([0], [[-2.0, 3.0]])
    ),
    "probabilities holds values from nan to nan; look for what is not": (
        lambda: utils.misclassified([0], [[0.5, math.nan]])
    ),
    "labels has 2 entries for 1; pass as many": (
        lambda: utils.misclassified([0, 1], [[0.5, 0.5]])
    ),
    "most is 0; choose a whole number, 1 or more": (
        lambda: utils.misclassified([0], [[0.5, 0.5]], most=0)
    ),
    "bins is 0; choose a whole number, 1": (
        lambda: utils.calibration([0], [[0.5, 0.5]], bins=0)
    ),
    "most is None; choose a whole number": (
        lambda: utils.misclassified([0], [[0.5, 0.5]], most=None)
    ),
    "bins is 2.5; choose a whole number": (
        lambda: utils.calibration([0], [[0.5, 0.5]], bins=2.5)
    ),
    "labels has 3 entries for 1; pass as many": (
        lambda: utils.calibration([0, 1, 0], [[0.5, 0.5]])
    ),
    "probabilities holds values from -1 to 2; apply softmax": (
        lambda: utils.calibration([0], [[-1.0, 2.0]])
    ),
    "calibration is of 0 images; pass at least one": (
        lambda: utils.expected_calibration_error(
            utils.calibration([], np.empty((0, 3)))
        )
    ),
    "calibration is of 0 images; pass at least": (
        lambda: utils.plot_calibration([], data=DATA)
    ),
    "matrix has shape (2, 2) and type int64 for 3 classes; pass the integers": (
        lambda: utils.most_confused([[1, 0], [0, 1]], CLASSES)
    ),
    "matrix has shape (3, 3) and type float64 for 3 classes; pass": (
        lambda: utils.most_confused(np.eye(3), CLASSES)
    ),
    "most is -1; choose a whole number": (
        lambda: utils.most_confused(np.eye(3, dtype=int), CLASSES, most=-1)
    ),
    "images has shape (4, 3, 8, 8) with 1 means and 1 deviations; pass": (
        lambda: utils.denormalize(TENSOR, [0.5], [0.5])
    ),
    "images has shape (4, 8, 8, 3) and type float32; pass the untouched uint8": (
        lambda: utils.plot_samples(
            TENSOR.permute(0, 2, 3, 1), [0] * 4, CLASSES, data=DATA
        )
    ),
    "images has shape (4, 3, 8, 8) and type float64; pass the untouched uint8": (
        lambda: utils.plot_samples(
            TENSOR.double().clip(0, 1), [0] * 4, CLASSES, data=DATA
        )
    ),
    "labels has 3 entries for 4; pass as many": (
        lambda: utils.plot_samples(IMAGES, [0] * 3, CLASSES, data=DATA)
    ),
    "per_class is 0; choose a whole number": lambda: samples(per_class=0),
    "classes is empty; pass the names": (
        lambda: utils.plot_samples(IMAGES, [], [], data=DATA)
    ),
    "views has shape (4, 3, 8, 8) for originals of (4, 8, 8, 3); pass (R, K, C, H, W)": (
        lambda: utils.plot_augmentations(IMAGES, TENSOR, MEAN, STD, data=DATA)
    ),
    "views has shape (4, 1, 3, 4, 8) for originals of (4, 8, 8, 3); pass": (
        lambda: utils.plot_augmentations(
            IMAGES, TENSOR[:, None, :, :4], MEAN, STD, data=DATA
        )
    ),
    "views has shape (4, 1, 3, 8, 4) for originals of (4, 8, 8, 3); pass": (
        lambda: utils.plot_augmentations(
            IMAGES, TENSOR[:, None, ..., :4], MEAN, STD, data=DATA
        )
    ),
    "views are uint8 and not normalized; of (R, K, H, W, C) pass np.moveaxis": (
        lambda: utils.plot_augmentations(IMAGES, IMAGES[:, None], MEAN, STD, data=DATA)
    ),
    "there are 0 records and 1 by the range test; pass at least one of each": (
        lambda: utils.plot_max_lr([], [{}], data=DATA)
    ),
    "planned has 2 steps and actual 3; pass the whole plan": (
        lambda: utils.plot_learning_rate([1, 2], [1, 2, 3], steps_per_epoch=1, data="")
    ),
    "planned has 0 steps": (
        lambda: utils.plot_learning_rate([], [], steps_per_epoch=1, data=DATA)
    ),
    "steps_per_epoch is 0; choose": (
        lambda: utils.plot_learning_rate([1], [], steps_per_epoch=0, data=DATA)
    ),
    "history.epochs is empty; train": lambda: utils.plot_history(history(), data=DATA),
    "rows is empty; pass": lambda: utils.plot_class_accuracy([], data=DATA),
    "matrix has shape (2, 2) and type int64 for 3 classes; pass": (
        lambda: utils.plot_confusion_matrix([[1, 0], [0, 1]], CLASSES, data=DATA)
    ),
    "mistakes names image 4 of 4; pass the images": (
        lambda: utils.plot_misclassified(IMAGES, mistakes(5), CLASSES, data=DATA)
    ),
    "mistakes holds 1, outside the 1 classes": (
        lambda: utils.plot_misclassified(IMAGES, mistakes(1), ["cat"], data=DATA)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named_with_its_remedy(message):
    with pytest.raises(ValueError) as caught:
        BAD[message]()
    assert str(caught.value).startswith(message)


def test_images_are_drawn_after_normalizing_too():
    normalized = (IMAGES / 255 - np.array(MEAN)) / np.array(STD)
    floats = utils.denormalize(normalized.transpose(0, 3, 1, 2), MEAN, STD)
    plain, again = (
        utils.plot_samples(images, [0] * len(IMAGES), CLASSES, data=DATA)
        for images in (IMAGES, floats)
    )
    for one, other in zip(plain.axes, again.axes, strict=True):
        for left, right in zip(one.images, other.images, strict=True):
            assert np.array_equal(left.get_array(), right.get_array())


def test_banner_keeps_every_word_inside_its_frame():
    words = "SYNTHETIC IMAGES, NOT CIFAR-10: " + "no such host " * 20
    lines = utils.banner(words).splitlines()
    assert {len(line) for line in lines} == {80}
    assert (
        " ".join(" ".join(line[1:-1] for line in lines[1:-1]).split()) == words.strip()
    )
