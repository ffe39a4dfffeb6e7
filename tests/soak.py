"""Kill a training again and again, resume it, and compare it with an undisturbed one.

    python -m tests.soak [KILLS [SEED]]

Every training runs in a process of its own and is killed with SIGKILL at a random moment;
the network is small and its checkpoint comparatively large, so that many kills hit while
one is being written. Exits with an error if any training ends with other weights, optimizer
state or history than the undisturbed one.
"""

import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from helpers import checkpoint, dataset, train_test

RECIPE = train_test.Recipe(
    epochs=6, batch_size=16, peak_epoch=2, max_lr=0.01, precision="float32"
)


def train(path: Path, augment_on: str) -> None:
    """Train from wherever the checkpoint is to the end."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = dataset.synthetic_cifar10(train=64, test=16)
    loaders = dataset.make_loaders(
        *images, batch_size=16, device="cpu", augment_on=augment_on, seed=0
    )
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8 * 8 * 8, 1000),
        nn.Linear(1000, 10),
    )
    with open(path.with_name("log"), "a") as log:
        sys.stdout = log
        train_test.fit(
            model, loaders, RECIPE, device="cpu", checkpoint=path, resume=True
        )


def start(path: Path, augment_on: str):
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(path, augment_on)
    )
    process.start()
    return process


def end_state(path: Path) -> dict:
    """What the finished training left, but for the times that it took."""
    state = checkpoint.read_checkpoint(path)
    for row in state["history"]["epochs"]:
        row["seconds"] = row["images_per_second"] = 0
    return state


def same(one, other) -> bool:
    """Bit by bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def main(kills: int = 100, seed: int = 0) -> None:
    draw = random.Random(seed)
    killed = writing = trainings = 0
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, seconds = {}, {}
        for augment_on in ("cpu", "device"):
            path = Path(folder, augment_on, "undisturbed.pt")
            path.parent.mkdir()
            began = time.perf_counter()
            start(path, augment_on).join()
            seconds[augment_on] = time.perf_counter() - began
            undisturbed[augment_on] = end_state(path)
        while killed < kills:
            augment_on = draw.choice(("cpu", "device"))
            path = Path(folder, f"{trainings}", "training.pt")
            path.parent.mkdir()
            trainings += 1
            done = False
            while not done:
                process = start(path, augment_on)
                # Once enough are killed, the last training is let go to its end.
                patience = (
                    draw.uniform(0, 1.5 * seconds[augment_on])
                    if killed < kills
                    else None
                )
                process.join(patience)
                done = process.exitcode == 0
                if process.exitcode is None:
                    process.kill()
                    process.join()
                    killed += 1
                    writing += path.with_name(path.name + ".new").exists()
                elif not done:
                    raise SystemExit(
                        f"training {trainings} failed: {path.parent / 'log'}"
                    )
            if not same(end_state(path), undisturbed[augment_on]):
                raise SystemExit(
                    f"training {trainings} ({augment_on}, seed {seed}) ended differently"
                )
    print(
        f"{killed} kills, {writing} of them while a checkpoint was being written; "
        f"{trainings} trainings, each as if undisturbed"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
