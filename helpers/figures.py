"""Every figure of the experiment; the only module of this package that knows matplotlib."""

from __future__ import annotations  # else help() spells ArrayLike out, in 240 letters

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from helpers.measures import (
    CalibrationBin,
    ClassAccuracy,
    Mistake,
    as_array,
    as_confusion_matrix,
    as_rgb,
    class_numbers,
    denormalize,
    expected_calibration_error,
    require_names,
    require_positive,
    wilson,
)
from helpers.results import accuracy_by_rate, flat_top

# Okabe and Ito's colours (Color Universal Design, 2008): the colour-blind see them apart.
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION = "#0072B2", "#D55E00"
PALE_ORANGE = "#F5D999"  # 40% of it on white, which black numbers are legible on
SMALL = 9  # points; the smallest text that is legible in a README column 800 px wide
PLAIN = {"parse_math": False}  # a name may hold two dollars, and mean no mathematics
MOST_SAMPLED, MOST_BARS = 12, 30  # classes in a figure; more would fill several screens


def plot_samples(
    images: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    data: str,
    per_class: int = 8,
) -> Figure:
    """Draw the first images of each class, one row per class, from (N, H, W, C).

    images: uint8, or floats in [0, 1]; grey or RGB, C 1 or 3.
    data: what the figure is about, for its title.

    Of more than 12 classes, up to 12 evenly spaced ones, as the title then says.

    Raises ValueError for wrong shapes, labels outside the classes, or a per_class that is
    no whole number from 1, TypeError for classes in no order, as a set.
    """
    require_names(classes)
    pixels = as_rgb("images", images, "N, H, W, C")
    numbers = class_numbers("labels", labels, len(classes), len(pixels))
    require_positive("per_class", per_class)
    drawn = range(0, len(classes), math.ceil(len(classes) / MOST_SAMPLED))
    rows = [np.flatnonzero(numbers == number)[:per_class] for number in drawn]
    width = max(1, *map(len, rows))
    grid = np.full((len(drawn), width, *pixels.shape[1:]), 255, np.uint8)
    for row, chosen in enumerate(rows):
        grid[row, : len(chosen)] = pixels[chosen]
    whole = len(drawn) == len(classes)
    of = "each class" if whole else f"{len(drawn)} of {len(classes)} classes"
    names = [classes[number] for number in drawn]
    return image_grid(f"Sample images of {of}", data, grid, names)


def plot_augmentations(
    originals: ArrayLike,
    views: ArrayLike,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    data: str,
) -> Figure:
    """Draw originals (R, H, W, C) beside normalized views (R, K, C, H, W) of them.

    originals: uint8, or floats in [0, 1]; grey or RGB, C 1 or 3.
    views: what a training transform makes of each original, K times.
    data: what the figure is about, for its title.

    Raises ValueError for wrong shapes, a mean and std of another number of channels, and
    views of uint8, which aren't normalized.
    """
    first = as_rgb("originals", originals, "R, H, W, C")
    changed = as_array(views)
    if changed.dtype == np.uint8:  # as a transform of one's own gives them
        raise ValueError(
            "views are uint8 and not normalized; of (R, K, H, W, C) pass "
            "np.moveaxis(np.asarray(views), -1, 2) / 255, with (0,) * C as mean and (1,) * C "
            "as std"
        )
    if changed.ndim != 5 or changed.shape[:1] + changed.shape[3:] != first.shape[:3]:
        raise ValueError(
            f"views has shape {changed.shape} for originals of {first.shape}; "
            "pass (R, K, C, H, W) with the originals' R, H and W"
        )
    flat = denormalize(changed.reshape(-1, *changed.shape[2:]), mean, std)
    flat = as_rgb("views", flat, "R, K, C, H, W")
    grid = flat.reshape(*changed.shape[:2], *flat.shape[1:])
    grid = np.concatenate([first[:, None], grid], axis=1)
    heads = ["unchanged", *(f"view {number}" for number in range(1, grid.shape[1]))]
    title = "Augmented views, as the network sees them in training"
    return image_grid(title, data, grid, column_names=heads)


def plot_lr_range_test(search: Any, *, data: str) -> Figure:
    """Draw loss (nats per example) against learning rate, and what the rule read off it.

    search: what `lr_range_test` gives.
    data: what the figure is about, for its title.

    Range test: after L. N. Smith, "Cyclical Learning Rates for Training Neural Networks",
    2015.
    """
    rates = np.asarray(search.learning_rates, float)
    raw = [np.asarray(losses, float) for losses in search.losses]
    smoothed = [np.asarray(losses, float) for losses in search.smoothed]
    bottom, top = loss_limits(raw, smoothed)
    figure, axes = new_figure("Learning rate range test", data, 8.5, 4.8)
    tests = f"{len(raw)} test" + "s" * (len(raw) != 1)
    # A loss that explodes, even to inf, is drawn leaving through the top.
    ceiling = top + 10 * (top - bottom)
    for curves, label, look in (
        (raw, "loss of each batch", {"color": SKY_BLUE, "alpha": 0.5, "lw": 1}),
        (smoothed, f"smoothed, {tests}", {"color": BLUE, "lw": 1.4}),
        ([np.asarray(search.median, float)], "median", {"color": ink(), "lw": 2}),
    ):
        for losses in curves:
            shown = np.minimum(losses, ceiling)
            axes.plot(rates[: len(losses)], shown, label=label, **look)
            label = None  # one entry in the legend for all the tests
    look = {"color": ink(), "ls": ":", "lw": 1.4}
    axes.axhline(search.rim, label="climbed back by a quarter", **look)
    axes.set_xscale("log")
    axes.set_ylim(bottom, top)
    mark_rates(axes, search.max_lr, search.divergence_lr)
    dress(axes, "learning rate", "loss (nats per example)")
    legend_below(figure)
    return figure


def plot_max_lr(
    records: Sequence[dict[str, Any]],
    chosen: Sequence[dict[str, Any]],
    *,
    data: str,
) -> Figure:
    """Draw the last epoch's accuracy (%) against max_lr, and what the range test chose.

    records: of runs that differ in max_lr and seed alone. chosen: of runs like them whose
    max_lr the range test chose. Shaded are the rates that do as well as the best one; with
    fewer than two seeds in common the figure says that they can't be told. Raises
    ValueError where nothing is given.

    data: what the figure is about, for its title.
    """
    if not records or not chosen:
        raise ValueError(
            f"there are {len(records)} records and {len(chosen)} by the range test; pass "
            "at least one of each"
        )
    found, alike = accuracy_by_rate(records), flat_top(records)
    figure, axes = new_figure("Accuracy against the peak learning rate", data, 8.5, 4.8)
    if alike:
        low, high = alike
        text = f"not shown to be worse: {low:.2g} to {high:.2g}"
        # Its edges' width (points) shows a single rate too.
        axes.axvspan(low, high, color=SKY_BLUE, alpha=0.3, lw=4, label=text)
    else:
        axes.set_title("too few seeds yet to tell which rates do as well", size=SMALL)
    label = "one seed"
    by_rate = sorted([*records, *chosen], key=lambda run: run["max_lr"])
    for seed in sorted({run["seed"] for run in by_rate}):
        own = [run for run in by_rate if run["seed"] == seed]
        points = [(run["max_lr"], 100 * run["last_epoch_accuracy"]) for run in own]
        look = {"color": BLUE, "alpha": 0.5, "ms": 4, "lw": 0.8, "marker": "o"}
        axes.plot(*zip(*points, strict=True), **look, label=label)
        label = None  # one line of the legend for all
    means = [100 * np.mean(list(seeds.values())) for seeds in found.values()]
    axes.plot(list(found), means, color=BLUE, marker="o", label="mean over seeds")
    rates = [run["max_lr"] for run in chosen]
    accuracies = [100 * run["last_epoch_accuracy"] for run in chosen]
    look = {"color": VERMILLION, "ls": "", "marker": "D", "ms": 7, "mec": "white"}
    axes.plot(rates, accuracies, label="range test's choice", **look)
    axes.set_xscale("log")
    axes.set_xticks(list(found), [f"{rate:.2g}" for rate in found])
    axes.minorticks_off()
    dress(axes, "peak learning rate (max_lr)", "last-epoch accuracy (%)")
    floor = max(means) - 10  # what fails altogether would flatten the rest
    if min(means) < floor:
        axes.set_ylim(bottom=floor)
        for rate, mean in zip(found, means):
            if mean < floor:
                text = f"↓ {mean:.1f}%"
                axes.text(rate, floor + 0.2, text, ha="center", size=SMALL)
    legend_below(figure, columns=2)
    return figure


def plot_learning_rate(
    planned: Sequence[float],
    actual: Sequence[float],
    *,
    steps_per_epoch: int,
    data: str,
) -> Figure:
    """Draw the learning rates planned and used, one value per step, against epochs done.

    data: what the figure is about, for its title.

    Raises ValueError for an empty plan, more actual steps than planned, or a
    steps_per_epoch that is no whole number from 1.
    """
    plan, used = np.asarray(planned, float), np.asarray(actual, float)
    if len(plan) == 0 or len(used) > len(plan):
        raise ValueError(
            f"planned has {len(plan)} steps and actual {len(used)}; "
            "pass the whole plan, which is at least as long as the run"
        )
    require_positive("steps_per_epoch", steps_per_epoch)
    epochs = np.arange(1, len(plan) + 1) / steps_per_epoch
    figure, axes = new_figure("Learning rate at each step", data, 8.5, 4.2)
    axes.plot(epochs, plan, color=SKY_BLUE, lw=6, alpha=0.6, label="planned")
    if len(used):
        text = f"actual ({len(used)} of {len(plan)} steps)"
        axes.plot(epochs[: len(used)], used, "--", color=ink(), lw=1.4, label=text)
    peak = int(plan.argmax())
    text = f"peak {plan[peak]:.3g} after epoch {epochs[peak]:g}"
    axes.plot(epochs[peak], plan[peak], "o", color=VERMILLION, label=text)
    dress(axes, "epochs done", "learning rate")
    legend_below(figure)
    return figure


def plot_history(history: Any, *, data: str) -> Figure:
    """Draw loss (nats per example) and accuracy (%), train and test, against epoch.

    history: what `fit` gives, or a History of Epochs of your own.
    data: what the figure is about, for its title.

    Raises ValueError for one without epochs.
    """
    rows = history.epochs
    if not rows:
        raise ValueError("history.epochs is empty; train for at least one epoch")
    epochs = [row.epoch for row in rows]
    figure, panels = new_figure("Loss and accuracy", data, 8.5, 4.4, columns=2)
    for axes, name, scale, unit in (
        (panels[0], "loss", 1, "nats per example"),
        (panels[1], "accuracy", 100, "%"),
    ):
        for part, colour, style in (("train", ORANGE, "--"), ("test", BLUE, "-")):
            values = [scale * getattr(row, f"{part}_{name}") for row in rows]
            label = part if name == "accuracy" else None  # one legend for both panels
            axes.plot(epochs, values, style, color=colour, marker=".", label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        dress(axes, "epoch", f"{name} ({unit})")
    # The maximum is chosen by the test set and so flatters: a small, hollow mark.
    for row, name, size, fill in (
        (history.last, "last", 8, BLUE),
        (history.best, "maximum", 5, "white"),
    ):
        percent = 100 * row.test_accuracy
        text = f"test, {name} (epoch {row.epoch}): {percent:.2f}%"
        look = {"ls": "", "mec": BLUE, "mfc": fill, "ms": size}
        panels[1].plot(row.epoch, percent, "o", label=text, **look)
    legend_below(figure)
    return figure


def plot_class_accuracy(rows: list[ClassAccuracy], *, data: str) -> Figure:
    """Draw each class's accuracy (%) as a bar, best on top, with its 95% interval.

    Of more than 30 classes, those that have images, and if these are more than 30 too, the
    12 best and the 12 worst, as the title then says.

    data: what the figure is about, for its title.

    Raises ValueError for an empty list.
    """
    if not rows:
        raise ValueError("rows is empty; pass what class_accuracy returns")
    ranked = sorted(rows, key=lambda row: row.accuracy if row.count else -1.0)
    title, most, gap = "Accuracy by class", 12, 0
    if len(rows) > MOST_BARS:
        # Of those without images nothing is known.
        ranked = [row for row in ranked if row.count] or ranked
        which = f"the {len(ranked)} of {len(rows)} that have images"
        if len(ranked) > MOST_BARS:
            which = f"the {most} best and the {most} worst of {len(ranked)}"
            ranked, gap = ranked[:most] + ranked[-most:], 1
        title += f", {which}"
    places = np.arange(len(ranked))
    places[most:] += gap  # for those left out
    figure, axes = new_figure(title, data, 8.5, 1.8 + 0.34 * len(ranked))
    accuracies = [100 * row.accuracy if row.count else 0.0 for row in ranked]
    axes.barh(places, accuracies, height=0.7, color=SKY_BLUE, label="accuracy")
    low, high = 100 * np.array([(row.low, row.high) for row in ranked]).T
    middle, half = (low + high) / 2, (high - low) / 2
    look = {"fmt": "none", "ecolor": ink(), "capsize": 3}
    axes.errorbar(middle, places, xerr=half, label="95% Wilson interval", **look)
    total = sum(row.count for row in rows)
    if total:
        mean = 100 * sum(row.correct for row in rows) / total
        axes.axvline(mean, color=VERMILLION, ls="--", label=f"all images: {mean:.2f}%")
    for place, row in zip(places, ranked):
        axes.text(101.5, place, f"{row.correct} / {row.count}", va="center", size=SMALL)
    names = [textwrap.fill(str(row.name), 48) for row in ranked]
    axes.set_yticks(places, names, **PLAIN)
    axes.set(xlim=(0, 100), ylim=(-0.6, places[-1] + 0.6))
    dress(axes, "accuracy (%), with correct / count at the right", "")  # names say it
    legend_below(figure)
    return figure


def plot_confusion_matrix(
    matrix: ArrayLike, classes: Sequence[str], *, data: str
) -> Figure:
    """Draw (C, C) counts; mistakes are coloured by their share (%) of the true class.

    The diagonal has one colour of its own, as its shares would drown the mistakes. Of more
    than 20 classes, numbers and diagonal are left out, and the middle of names longer than
    24 letters; numbers also where they don't fit. Of more than 48 classes, or 36 with a
    name longer than 12 letters, only some names are written.

    data: what the figure is about, for its title.

    Raises ValueError where the matrix does not fit the classes, TypeError for classes that
    are no sequence.
    """
    require_names(classes)
    size = len(classes)
    counts = as_confusion_matrix(matrix, size)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mistakes = np.ma.masked_array(shares, np.eye(size, dtype=bool))
    highest = float(mistakes.filled(0).max()) or 1.0
    numbered = size <= 20
    what = "correct answers on the diagonal" if numbered else "mistakes alone"
    title = f"Confusion matrix, {what}"
    figure, axes = new_figure(title, data, 8.5, 7.6)
    colours = matplotlib.colormaps["Blues"].with_extremes(
        bad=PALE_ORANGE if numbered else "white"
    )
    picture = axes.imshow(mistakes, cmap=colours, vmin=0, vmax=highest)
    figure.colorbar(picture, label="mistakes (% of the true class)", shrink=0.8)
    written = []
    for row, column in zip(*np.nonzero(counts)) if numbered else ():
        dark = row != column and shares[row, column] > 0.55 * highest
        look = {"color": "white" if dark else BLACK, "size": SMALL}
        look["weight"] = "bold" if row == column else "normal"
        number = counts[row, column]
        written.append(axes.text(column, row, number, ha="center", va="center", **look))
    names = [str(name) for name in classes]
    # More names would overlap: long ones leave the matrix less room.
    fitting = 48 if max(map(len, names)) <= 12 else 36
    shown = range(0, size, math.ceil(size / fitting))
    if numbered:
        names, points = [textwrap.fill(name, 24) for name in names], None
    else:
        # Often names differ at their end alone.
        names = [n if len(n) <= 24 else f"{n[:11]}…{n[-12:]}" for n in names]
        points = SMALL
    names = [names[index] for index in shown]
    upright = not numbered or any("\n" in name for name in names)
    look = {"rotation": 90 if upright else 45, "rotation_mode": "anchor"}
    axes.set_xticks(shown, names, ha="right", va="center", size=points, **look, **PLAIN)
    axes.set_yticks(shown, names, size=points, **PLAIN)
    axes.set(xlabel="predicted class", ylabel="true class")
    if written:
        figure.draw_without_rendering()  # which gives the fields their size
        field = axes.get_window_extent().width / size
        if max(text.get_window_extent().width for text in written) > 0.9 * field:
            for text in written:  # neighbours would read as one number
                text.remove()
    return figure


def plot_calibration(rows: Sequence[CalibrationBin], *, data: str) -> Figure:
    """Draw accuracy (%) against confidence (%) by bin, with counts and 95% intervals.

    A reliability diagram as in Guo et al. (2017), from the rows of `calibration`; their
    expected calibration error, in points, is in the title. Raises ValueError where the rows
    hold no image.

    data: what the figure is about, for its title.
    """
    title = "Calibration, with an expected calibration error of "
    title += f"{100 * expected_calibration_error(rows):.1f} points"
    figure, axes = new_figure(title, data, 8.5, 5.6)
    filled = [row for row in rows if row.count]
    middles = np.array([50 * (row.low + row.high) for row in filled])
    width = 100 * (rows[0].high - rows[0].low)
    accuracies, confidences = (
        np.array([100 * getattr(row, name) for row in filled])
        for name in ("accuracy", "confidence")
    )
    look = {"width": 0.94 * width, "color": SKY_BLUE, "label": "accuracy"}
    axes.bar(middles, accuracies, **look)
    limits = [wilson(round(row.accuracy * row.count), row.count) for row in filled]
    low, high = 100 * np.array(limits).T
    look = {"fmt": "none", "ecolor": ink(), "capsize": 3, "lw": 1}
    text = "95% Wilson interval"
    axes.errorbar(middles, (low + high) / 2, (high - low) / 2, label=text, **look)
    axes.plot([0, 100], [0, 100], "--", color=ink(), lw=1, label="calibrated")
    look = {"ls": "", "marker": "D", "ms": 6, "color": VERMILLION, "mec": "white"}
    axes.plot(confidences, confidences, label="mean confidence", clip_on=False, **look)
    look = {"ha": "center", "va": "bottom", "size": SMALL}
    look["rotation"] = 90 if len(rows) > 16 else 0  # else they would overlap
    for middle, row in zip(middles, filled):
        axes.text(middle, 102, f"{row.count:,}", **look)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    x_label = (
        "confidence: probability of the predicted class (%), number of images on top"
    )
    dress(axes, x_label, "accuracy (%)")
    legend_below(figure)
    return figure


def plot_misclassified(
    images: ArrayLike,
    mistakes: Sequence[Mistake],
    classes: Sequence[str],
    *,
    data: str,
) -> Figure:
    """Draw mistakes on images (N, H, W, C) as "true → predicted", probability (%).

    images: as they were before augmenting: uint8, or floats in [0, 1]; C 1 or 3.
    data: what the figure is about, for its title.

    Raises ValueError for wrong shapes, and where a mistake is not one of the images or
    classes, TypeError for classes in no order, as a set.
    """
    require_names(classes)
    pixels = as_rgb("images", images, "N, H, W, C")
    for mistake in mistakes:
        class_numbers("mistakes", [mistake.label, mistake.prediction], len(classes))
        if not 0 <= mistake.index < len(pixels):
            raise ValueError(
                f"mistakes names image {mistake.index} of {len(pixels)}; "
                "pass the images that were predicted, in the same order"
            )
    lines = max(1, math.ceil(len(mistakes) / 4))
    title = "Misclassified images: true → predicted class and its probability"
    figure, cells = new_figure(title, data, 8.5, 0.8 + 2.1 * lines, lines, 4)
    for axes in cells.flat:
        axes.axis("off")
    if not mistakes:
        cells.flat[1].text(0.5, 0.5, "There are no misclassified images.", ha="center")
    for axes, mistake in zip(cells.flat, mistakes):
        axes.imshow(pixels[mistake.index], interpolation="nearest")
        # Long names would run into their neighbours'.
        names = f"{classes[mistake.label]} → {classes[mistake.prediction]}"
        names = textwrap.fill(names, 24)
        sure = f"{100 * mistake.probability:.2f}%"
        sure = "> 99.99%" if sure == "100.00%" else sure  # no softmax is certain
        axes.set_title(f"{names}\n{sure}", size=SMALL, **PLAIN)
    return figure


class Picture(Figure):
    """A figure that a notebook shows once, with or without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(
    title: str, data: str, width: float, height: float, lines: int = 1, columns: int = 1
) -> tuple[Figure, Any]:
    """Return a figure of that size in inches, outside pyplot's global state, and axes."""
    figure = Picture(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # inches
    about = textwrap.fill(str(data), int(11.2 * width))  # letters in an inch
    figure.suptitle(f"{title}\n{about}", **PLAIN)
    return figure, figure.subplots(lines, columns)


def ink() -> str:
    """Of lines on the background: black, in a dark style white."""
    return matplotlib.rcParams["text.color"]


def dress(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Figure, *, columns: int = 4) -> None:
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def image_grid(
    title: str,
    data: str,
    grid: np.ndarray,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> Figure:
    """Draw uint8 (R, K, H, W, 3) as one picture, with names at its rows and columns."""
    rows, columns, height, width, _ = grid.shape
    gap = max(1, height // 16)  # pixels of white after each image
    margins = ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0))
    sheet = np.pad(grid, margins, constant_values=255).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * (height + gap), columns * (width + gap), 3)
    names = 1.2 if row_names else 0.2  # inches, as the next three
    cell = min(1.1, (8.5 - names) / columns)
    width_inches = max(6.0, names + columns * cell)
    height_inches = 0.9 + rows * cell * height / width
    figure, axes = new_figure(title, data, width_inches, height_inches)
    axes.imshow(sheet, interpolation="nearest")
    # Were it centred, the layout would leave too little room for the rows' names.
    axes.set_anchor("NW" if row_names else "N")
    for axis, labels, side in (
        (axes.yaxis, row_names, height),
        (axes.xaxis, column_names, width),
    ):
        centres = np.arange(len(labels)) * (side + gap) + (side - 1) / 2
        axis.set_ticks(centres, labels, **PLAIN)
    axes.tick_params(length=0, top=True, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def loss_limits(
    raw: list[np.ndarray], smoothed: list[np.ndarray]
) -> tuple[float, float]:
    """Return y limits that show the fall and the first part of an explosion."""
    starts = [row[0] for row in smoothed]
    values = np.concatenate([*raw, *smoothed])
    values = values[np.isfinite(values)]
    start, low = float(np.median(starts)), float(values.min())
    span = max(start - low, 0.2 * abs(start), 1e-3)
    top = min(float(values.max()), start + 0.8 * span)
    return low - 0.1 * span, top + 0.1 * span


def mark_rates(axes: Axes, max_lr: float, divergence_lr: float | None) -> None:
    marks = [(max_lr, "the rule's choice", GREEN, "-")]
    if divergence_lr is not None:
        marks.append((divergence_lr, "divergence", VERMILLION, "--"))
    # Written above the axes and away from one another, close lines stay legible.
    for (rate, name, colour, style), side in zip(sorted(marks), ("right", "left")):
        axes.axvline(rate, color=colour, ls=style, lw=1.8)
        look = {"transform": axes.get_xaxis_transform(), "color": colour, "ha": side}
        axes.text(rate, 1.02, f" {name} {rate:.3g} ", **look)
