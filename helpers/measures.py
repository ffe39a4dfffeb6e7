"""Accuracy by class, calibration and mistakes, from labels and predictions."""

from __future__ import annotations  # else help() spells ArrayLike out, in 240 letters

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

Z_95 = 1.959963984540054  # 97.5% quantile of the standard normal distribution


class ClassAccuracy(NamedTuple):
    """One class: images right and in all, and fractions in [0, 1] with a 95% interval."""

    name: str
    correct: int
    count: int
    accuracy: float
    low: float
    high: float


class CalibrationBin(NamedTuple):
    """Answers of a confidence in (low, high]: count, mean confidence and accuracy.

    All but the count are fractions in [0, 1]; nan for the last two where there is none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Confusion(NamedTuple):
    """Two classes: images taken for the other, both ways; their share of all mistakes."""

    first: str
    second: str
    first_as_second: int
    second_as_first: int
    share: float

    def __str__(self) -> str:
        return (
            f"{self.first} taken for {self.second} {self.first_as_second:,} times, "
            f"{self.second} for {self.first} {self.second_as_first:,} times: "
            f"{self.share:.1%} of all mistakes"
        )


class Mistake(NamedTuple):
    """One wrong answer: both classes, and the wrong class's probability.

    index: its place among the labels, and among the images if they are in that order.
    """

    index: int
    label: int
    prediction: int
    probability: float


def class_accuracy(
    labels: ArrayLike, predictions: ArrayLike, classes: Sequence[str]
) -> list[ClassAccuracy]:
    """Return each class's accuracy with its 95% score interval, from two (N,) integers.

    Interval: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212; a class without images
    has accuracy nan and interval (0, 1). Raises ValueError as `confusion_matrix` does, and
    TypeError for classes that are no sequence.
    """
    require_names(classes)
    matrix = confusion_matrix(labels, predictions, len(classes))
    rows = []
    for index, name in enumerate(classes):
        correct, count = int(matrix[index, index]), int(matrix[index].sum())
        accuracy = correct / count if count else math.nan
        rows.append(
            ClassAccuracy(name, correct, count, accuracy, *wilson(correct, count))
        )
    return rows


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int
) -> np.ndarray:
    """Return the (C, C) int64 counts, rows true and columns predicted, from (N,) integers.

    Raises TypeError where num_classes is no integer, ValueError where lengths differ or a
    value is not a class number.
    """
    if not isinstance(num_classes, int | np.integer):
        raise TypeError(f"num_classes is {num_classes!r}; pass how many: len(classes)")
    true = class_numbers("labels", labels, num_classes)
    predicted = class_numbers("predictions", predictions, num_classes, len(true))
    count = int(num_classes)  # a uint8 would overflow
    cells = np.bincount(true * count + predicted, minlength=count**2)
    return cells.reshape(count, count).astype(np.int64)


def misclassified(
    labels: ArrayLike, probabilities: ArrayLike, *, most: int = 20
) -> list[Mistake]:
    """Return up to `most` wrong answers, most confident first, from (N,) and (N, C).

    Raises ValueError for wrong shapes, values outside [0, 1], labels outside the classes
    and a `most` that is no whole number from 1; that each row sums to 1 isn't checked.
    """
    require_positive("most", most)
    true, scores = labels_and_scores(labels, probabilities)
    predicted, confidence = scores.argmax(axis=1), scores.max(axis=1)
    wrong = np.flatnonzero(predicted != true)
    order = np.argsort(-confidence[wrong].astype(np.float64), kind="stable")
    first = wrong[order][:most]
    return [
        Mistake(int(i), int(true[i]), int(predicted[i]), float(confidence[i]))
        for i in first
    ]


def most_confused(
    matrix: ArrayLike, classes: Sequence[str], *, most: int = 5
) -> list[Confusion]:
    """Return up to `most` pairs of classes, most mistakes first, from (C, C) counts.

    matrix: of `confusion_matrix`, rows true and columns predicted. Mistakes in both
    directions count for a pair; a pair without any is left out.

    Raises ValueError where the matrix does not fit the classes and for a `most` that is no
    whole number from 1, TypeError for classes that are no sequence.
    """
    require_names(classes)
    counts = as_confusion_matrix(matrix, len(classes))
    require_positive("most", most)
    both = np.triu(counts + counts.T, k=1)  # each pair once
    firsts, seconds = np.nonzero(both)
    order = np.argsort(-both[firsts, seconds], kind="stable")[:most]
    return [
        Confusion(
            classes[a],
            classes[b],
            int(counts[a, b]),
            int(counts[b, a]),
            float(both[a, b] / both.sum()),
        )
        for a, b in zip(firsts[order], seconds[order])
    ]


def calibration(
    labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 15
) -> list[CalibrationBin]:
    """Return answers by confidence, in `bins` bins of equal width, from (N,) and (N, C).

    Confidence is the predicted class's probability. Of a calibrated network's answers with
    confidence 0.8, 80% are right. Bins: C. Guo et al., "On Calibration of Modern Neural
    Networks", ICML 2017; an edge belongs to the bin below it, in float64.

    Raises ValueError as `misclassified` does, for `bins` too.
    """
    require_positive("bins", bins)
    true, scores = labels_and_scores(labels, probabilities)
    right = scores.argmax(axis=1) == true
    confidence = scores.max(axis=1).astype(np.float64)
    edges = np.linspace(0, 1, bins + 1)
    # A rounding error above 1 belongs to the last one.
    places = np.searchsorted(edges[1:-1], confidence)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):  # of no answers the mean is nan
        means = [
            np.bincount(places, each, bins) / counts for each in (confidence, right)
        ]
    columns = (edges[:-1], edges[1:], counts, *means)
    return [CalibrationBin(*row) for row in zip(*map(np.ndarray.tolist, columns))]


def expected_calibration_error(rows: Sequence[CalibrationBin]) -> float:
    """Return by how much confidence and accuracy differ, a fraction in [0, 1].

    The mean over the images of the difference in their bin (Guo et al., 2017), which tends
    to get larger with more bins and, by chance, with fewer images.

    rows: what `calibration` returned. Raises ValueError where there are no images.
    """
    total = sum(row.count for row in rows)
    if not total:
        raise ValueError("calibration is of 0 images; pass at least one")
    filled = [row for row in rows if row.count]
    return sum(r.count * abs(r.accuracy - r.confidence) for r in filled) / total


def denormalize(images: ArrayLike, mean: ArrayLike, std: ArrayLike) -> np.ndarray:
    """Undo (x - mean) / std: normalized (N, C, H, W) to floats (N, H, W, C) in [0, 1].

    mean, std: one number per channel, in any shape, (C, 1, 1) say.

    Raises ValueError where the images have another shape or number of channels, are whole
    numbers, or where mean and std aren't in [0, 1].
    """
    pixels = as_array(images)
    mean, std = np.ravel(as_array(mean)), np.ravel(as_array(std))
    if pixels.ndim != 4 or not pixels.shape[1] == len(mean) == len(std):
        raise ValueError(
            f"images has shape {pixels.shape} with {len(mean)} means and {len(std)} "
            "deviations; pass (N, C, H, W) with one of each a channel"
        )
    within = ((mean >= 0) & (mean <= 1) & (std >= 0) & (std <= 1)).all()
    if pixels.dtype.kind != "f" or not within:
        raise ValueError(
            f"images are {pixels.dtype}, mean {mean.tolist()} and std {std.tolist()}; pass "
            "normalized floats, and mean and std on the scale from 0 to 1"
        )
    scale, shift = std.astype(np.float32), mean.astype(np.float32)
    return np.clip(pixels.transpose(0, 2, 3, 1) * scale + shift, 0.0, 1.0)


def wilson(correct: int, count: int) -> tuple[float, float]:
    if not count:
        return 0.0, 1.0
    share, z2 = correct / count, Z_95**2
    centre = share + z2 / (2 * count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def as_array(values: ArrayLike) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # NumPy has no such type
            values = values.float()
        return values.numpy()
    if isinstance(values, list | tuple):  # of tensors, perhaps on a GPU
        parts = torch.Tensor | list | tuple
        values = [as_array(v) if isinstance(v, parts) else v for v in values]
    try:
        return np.asarray(values)
    except ValueError as error:  # NumPy's, for parts of different lengths
        raise ValueError(
            f"the {len(values)} parts have different shapes; make one array of them, by "
            "torch.cat or np.concatenate"
        ) from error


def labels_and_scores(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and probabilities (N, C) as arrays, once they are found to be that."""
    scores = as_array(probabilities)
    if scores.ndim != 2:
        raise ValueError(
            f"probabilities has shape {scores.shape}; pass (N, C), as predict's are"
        )
    # Rounding can put the exponential of a log-softmax slightly above 1.
    if not ((scores >= 0) & (scores <= 1.001)).all():
        remedy = "apply softmax to the model's output first"
        if not np.isfinite(scores).all():
            remedy = "look for what is not finite in images or model"
        raise ValueError(
            f"probabilities holds values from {scores.min():.4g} to {scores.max():.4g}; "
            f"{remedy}"
        )
    return class_numbers("labels", labels, scores.shape[1], len(scores)), scores


def as_confusion_matrix(matrix: ArrayLike, size: int) -> np.ndarray:
    counts = as_array(matrix)
    if counts.shape != (size, size) or counts.dtype.kind not in "iu":
        raise ValueError(
            f"matrix has shape {counts.shape} and type {counts.dtype} for {size} "
            f"classes; pass the integers of confusion_matrix, shape ({size}, {size})"
        )
    return counts.astype(np.int64)


def class_numbers(
    name: str, values: ArrayLike, num_classes: int, length: int | None = None
) -> np.ndarray:
    numbers = as_array(values)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} has shape {numbers.shape} and type {numbers.dtype}; "
            "pass one integer per image, shape (N,)"
        )
    if length is not None and len(numbers) != length:
        raise ValueError(
            f"{name} has {len(numbers)} entries for {length}; pass as many"
        )
    outside = numbers[(numbers < 0) | (numbers >= num_classes)]
    if outside.size:
        raise ValueError(
            f"{name} holds {outside[0]}, outside the {num_classes} classes; "
            f"pass class numbers from 0 to {num_classes - 1}"
        )
    return numbers.astype(np.int64)


def require_names(classes: Sequence[str]) -> None:
    """Raise TypeError for what is no sequence, as a set, ValueError for an empty one."""
    if not isinstance(classes, Sequence | np.ndarray):
        raise TypeError(
            f"classes is {classes!r}; pass the names in the labels' order, as a list, or "
            "range(10) for ten that have none"
        )
    if not len(classes):
        raise ValueError("classes is empty; pass the names in the labels' order")


def require_positive(name: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value}; choose a whole number, 1 or more")


def as_rgb(name: str, images: ArrayLike, axes: str) -> np.ndarray:
    """Return images of 1 or 3 channels, uint8 or floats from 0 to 1, as RGB in uint8."""
    pixels = given = as_array(images)
    if pixels.dtype.kind == "f" and ((pixels >= 0) & (pixels <= 1)).all():
        pixels = np.rint(255 * pixels).astype(np.uint8)
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or pixels.dtype != np.uint8:
        raise ValueError(
            f"{name} has shape {given.shape} and type {given.dtype}; pass the "
            f"untouched uint8 images, or what denormalize gives of a loader's, shape "
            f"({axes}) with 1 or 3 channels"
        )
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))
