"""Whole trainings by one clock: ours, and scripts of two projects known for their speed.

The clock is that of Jordan's airbench: it runs while images are normalized and augmented,
while the network is trained and at last tested with test-time augmentation; it stands
while the images go to the GPU, during a warm-up, and during the tests after each epoch.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.rows import PROJECT, Row, Setup, find, median, seconds
from helpers import dataset, models, train_test

GROUP = "a whole training"
TRAINING = "ours, 24 epochs, training alone"
EVALUATED = "ours, 24 epochs, with a test after each"
CLOCK = "{}, airbench's clock"
COLD = "{}, from process start to the last accuracy"
ACCURACY = "{}, accuracy on the test images"
FLIP_TTA = "ours, accuracy with flip TTA"
SHARE = "ours, share of the matmul peak over 24 epochs"
OURS = "ours"
LIMIT = 1_800  # seconds, after which a process is taken to hang and ended
# The rate is given: no range test belongs to what the others do.
RECIPE = train_test.Recipe(max_lr=3e-3)
REHEARSED = train_test.Recipe(
    max_lr=3e-3, epochs=2, batch_size=8, train_images=24, test_images=10, peak_epoch=1
)


@dataclass(frozen=True)
class Rival:
    """Another project's script, which prints accuracy (a fraction) and seconds at its end.

    ends: how many of the lines that match `end` are waited for. The first one tells the
    cold time; it is a warm-up for the clock where others follow.
    """

    script: str
    end: str
    ends: int


RIVALS = {
    # One run. Its own clock leaves out warm-up and every test, also the last.
    "cifar10-fast": Rival(
        "cifar10-fast/dawn.py", r"^\s*24\s.*\s([\d.]+)\s+([\d.]+)\s*$", 1
    ),
    # The uncompiled script trains 25 times; two after the warm-up are enough.
    "airbench94": Rival(
        "cifar10-airbench/legacy/airbench94.py",
        r"\beval\b.*\|\s*([\d.]+)\s*\|\s*([\d.]+)\s*\|",
        3,
    ),
}


def measure(setup: Setup, rows: list[Row]) -> list[Row]:
    """rows: of the limits, to tell the share of the peak."""
    against = dict.fromkeys((TRAINING, EVALUATED, FLIP_TTA, SHARE), "")
    for text in (CLOCK, COLD, ACCURACY):
        compared = "" if text == ACCURACY else text.format(OURS)
        against[text.format(OURS)] = ""
        against |= {text.format(name): compared for name in RIVALS}
    torch.set_num_threads(setup.threads)
    found, failures = {label: [] for label in against}, {}
    if setup.device.type == "cuda" or setup.smoke:
        for _ in range(1 if setup.smoke else 2):
            for done in (ours(setup), cold(setup, failures), rivals(setup, failures)):
                for label, value in done:
                    found[label].append(value)
        dtype = str(train_test.choose_dtype("auto", setup.device))
        name = f"matmul peak, {dtype.removeprefix('torch.')}"
        peak = median(find(rows, "limits", name))
        flops = median(find(rows, "limits", "CustomResNet, forward and backward"))
        if peak and flops and not setup.smoke:
            work = 24 * 50_000 * flops / 1e3  # TFLOP
            found[SHARE] = [100 * work / took / peak for took in found[TRAINING]]
    return [
        Row(
            group=GROUP,
            name=label,
            unit="%" if label == SHARE or ", accuracy" in label else "s",
            values=values,
            against=against[label],
            note="" if values else failures.get(label) or why_not(label, setup),
        )
        for label, values in found.items()
    ]


def why_not(label: str, setup: Setup) -> str:
    if setup.device.type != "cuda":
        return "needs a CUDA device"
    if setup.smoke:
        return "not in a rehearsal"
    return (
        "needs the group limits" if label == SHARE else "needs --rivals and the dataset"
    )


def ours(setup: Setup) -> list[tuple[str, float]]:
    recipe = REHEARSED if setup.smoke else RECIPE
    sizes = {"train_images": recipe.train_images, "test_images": recipe.test_images}
    train, test = dataset.images_of(setup.data, **sizes, holdout=0)
    loaders = dataset.make_loaders(
        train, test, batch_size=recipe.batch_size, device=setup.device
    )
    with contextlib.redirect_stdout(io.StringIO()):
        short = replace(recipe, epochs=1, peak_epoch=0.5)
        train_test.fit(models.CustomResNet(), loaders, short, device=setup.device)
        model = models.CustomResNet()
        history = train_test.fit(model, loaders, recipe, device=setup.device)
    trained = sum(len(train) / row.images_per_second for row in history.epochs)
    said = []
    last = seconds(
        lambda: said.append(
            train_test.predict(model, loaders.test, device=setup.device, flip_tta=True)
        ),
        setup.device,
    )
    return [
        (TRAINING, trained),
        (EVALUATED, sum(row.seconds for row in history.epochs)),
        (CLOCK.format(OURS), trained + last),
        (ACCURACY.format(OURS), 100 * history.last.test_accuracy),
        (FLIP_TTA, 100 * said[0].metrics.accuracy),
    ]


def cold(setup: Setup, failures: dict[str, str]) -> list[tuple[str, float]]:
    """Seconds of `python -m helpers`, all it does included.

    failures: takes by row why it has no value, as one's failure is not the others'.
    """
    label, profile = COLD.format(OURS), "smoke" if setup.smoke else "full"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "helpers", "--data", setup.data]
        command += [f"--profile={profile}", f"--max-lr={RECIPE.max_lr}"]
        command += ["--no-checkpoint", f"--out={folder}"]  # the others write none
        start = time.perf_counter()
        try:
            subprocess.run(
                command, cwd=PROJECT, stdout=subprocess.PIPE, check=True, timeout=LIMIT
            )
            return [(label, time.perf_counter() - start)]
        except subprocess.CalledProcessError as error:
            failures[label] = f"exit status {error.returncode}"
        except subprocess.TimeoutExpired:
            failures[label] = f"ended after {LIMIT} s"
    print(f"{label}: {failures[label]}")
    return []


def rivals(setup: Setup, failures: dict[str, str]) -> list[tuple[str, float]]:
    """failures: as above."""
    if not setup.rivals or setup.smoke or setup.data == "synthetic":
        return []
    found = []
    for name, rival in RIVALS.items():
        script = (setup.rivals / rival.script).resolve()
        labels = [text.format(name) for text in (COLD, CLOCK, ACCURACY)]
        try:
            first, clocks, accuracies = run_rival(rival, script, setup.data)
        except RuntimeError as error:
            print(error)
            failures |= dict.fromkeys(labels, str(error))
            continue
        values = first, np.median(clocks), 100 * np.median(accuracies)
        found += zip(labels, map(float, values), strict=True)
    return found


def run_rival(
    rival: Rival, script: Path, data: str
) -> tuple[float, list[float], list[float]]:
    """Seconds to its first end; then each run's clock and accuracy after the warm-up."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.adapter"]
    command += [str(Path(data).resolve()), str(script)]
    places = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(places)
    start, ends = time.perf_counter(), []
    with (
        tempfile.TemporaryDirectory() as folder,  # they write files where they stand
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        stopper = threading.Timer(LIMIT, process.kill)
        stopper.start()
        try:
            for line in process.stdout:
                if match := re.search(rival.end, line):
                    accuracy, clock = map(float, match.groups())
                    ends.append((time.perf_counter() - start, clock, accuracy))
                if len(ends) == rival.ends:
                    process.terminate()
                    break
        finally:
            stopper.cancel()
    if len(ends) < rival.ends:
        how = f"ended with status {process.returncode} after"
        if time.perf_counter() - start >= LIMIT:
            how = f"was ended after {LIMIT} s and"
        raise RuntimeError(
            f"{script} {how} {len(ends)} of {rival.ends} trainings; its messages are above"
        )
    counted = ends[1:] or ends
    return ends[0][0], [clock for _, clock, _ in counted], [acc for *_, acc in counted]
