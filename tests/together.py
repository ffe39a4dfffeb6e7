"""What test_processes starts under torchrun: python -m tests.together FOLDER [KIND].

KIND: killed or failing.

Each process trains its share and leaves what it saw in FOLDER/rankN.pt.
"""

import atexit
import os
import signal
import sys
from pathlib import Path

import torch

from helpers import train_test
from helpers.processes import Processes, connected
from tests.shared import CPU, loaders, network, recipe

RECIPE = recipe()  # neither its batches of 16 nor the last one of 8 divide by 3


def train(processes: Processes, *, batchnorm: bool, **options) -> dict:
    model, pair = network(norm=batchnorm), loaders(share=processes)
    if options.pop("killed", False):
        kill_once(pair.train, processes, options["checkpoint"])
    history = train_test.fit(model, pair, RECIPE, device=CPU, **options)
    predictions = train_test.predict(model, pair.test, device=CPU)
    return {
        "history": history.as_dict(),
        "model": model.state_dict(),
        "labels": predictions.labels,
        "logits": predictions.logits,
    }


class Own(list):
    """Somebody's batches, which tell that they are a share and nothing else."""

    def __init__(self, batches, share):
        super().__init__(batches)
        self.share = share


def own(processes: Processes) -> tuple[dict, list[int]]:
    """Weights after an epoch of equal shares of 12 images, and the sizes of its steps."""
    images, labels = next(iter(loaders().test))
    mine = slice(processes.rank, 12, processes.size)
    batches = Own([(images[mine], labels[mine])], processes)
    model, sizes = network(norm=False), []
    train_test.train_one_epoch(
        processes.wrap(model, CPU),
        batches,
        torch.optim.SGD(model.parameters(), 0.1),
        device=CPU,
        on_step=lambda images, rate: sizes.append(images),
    )
    return model.state_dict(), sizes


def kill_once(loader, processes: Processes, checkpoint: Path) -> None:
    """The last process dies at the beginning of its second epoch, the first time."""
    died, set_epoch = checkpoint.with_name("died"), loader.set_epoch

    def set_epoch_or_die(epoch: int) -> None:
        last = processes.rank == processes.size - 1
        if epoch == 1 and not died.exists():
            processes.broadcast(None)  # the first is here once it has saved
            if last:
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        set_epoch(epoch)

    loader.set_epoch = set_epoch_or_die


def refusals(processes: Processes) -> dict[str, str]:
    """What fit says to processes that don't belong together."""
    first = processes.rank == 0
    pair = loaders(share=processes)
    others = {
        "recipe": (pair, recipe(epochs=3 if first else 4)),
        "rate": (pair, recipe(max_lr=0.01 if first else 0.02)),
        "data": (pair, RECIPE),
        "share": (loaders(), RECIPE),
        "transform": (loaders(share=processes), RECIPE),
    }
    if not first:  # as of a loader with a transform of its own
        others["transform"][0].train.made_with = {}
    said = {}
    for name, (given, plan) in others.items():
        pair.train.fingerprint = str(processes.rank) if name == "data" else None
        try:
            train_test.fit(network(norm=False), given, plan, device=CPU)
        except ValueError as error:
            said[name] = str(error)
    return said


def fail(processes: Processes) -> None:
    """The first process raises, and the other waits for what it would have told."""
    if processes.first:
        print("said before")
        raise ValueError("what went wrong")
    processes.broadcast(None)


def threads() -> list[str]:
    """The names of this process's threads, where the system tells them."""
    return [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]


def main(folder: Path, *, killed: bool, failing: bool) -> None:
    if failing:
        atexit.register(print, "took leave", file=sys.stderr)
    with connected() as processes:
        if failing:
            fail(processes)
        if killed:
            found = train(
                processes,
                batchnorm=True,
                checkpoint=folder / "training.pt",
                resume=True,
                killed=True,
            )
        else:
            pair = loaders(share=processes)
            search = train_test.lr_range_test(
                network(norm=False), pair.train, RECIPE, device=CPU
            )
            found = {
                "plain": train(processes, batchnorm=False),
                "batchnorm": train(processes, batchnorm=True),
                "max_lr": search.max_lr,
                "own": own(processes),
                "refused": refusals(processes),
            }
        found["threads within"] = threads()
    found["threads"] = threads()
    torch.save(found, folder / f"rank{processes.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), killed="killed" in sys.argv, failing="failing" in sys.argv)
