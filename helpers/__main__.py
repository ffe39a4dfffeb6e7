"""python -m helpers: the notebook's experiment without its narrative.

Trains once per seed and writes a JSON record of each run, with its last checkpoint beside
it. Under torchrun, all its processes train one network.
"""

import argparse
import dataclasses
import inspect
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from helpers import dataset, models, train_test, utils, weights
from helpers.checkpoint import kept_checkpoints, require_free, require_writable
from helpers.optional import optional
from helpers.processes import Processes
from helpers.resume import require_resumable

COMMIT = utils.commit()  # of the code that runs: its checkout may move on meanwhile


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        with train_test.connected() as processes:
            require_startable(options, processes)
            for seed in options.seeds:
                run(options, seed, processes)
    except (
        ValueError,
        OSError,
        MemoryError,
        ModuleNotFoundError,
        train_test.NonFiniteLoss,
    ) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:  # in an epoch, fit has said what is kept
        raise SystemExit(130) from None  # the shell's number for it


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers",
        description="Train on CIFAR-10 and write a JSON record of each run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = "full" if torch.cuda.is_available() else "quick"
    parser.add_argument(
        "--profile",
        choices=train_test.PROFILES,
        default=default,
        help="how much: epochs and images, batch size, peak epoch, length of the range test",
    )
    parser.add_argument(
        "--recipe",
        choices=train_test.RECIPES,
        default="assignment",
        help="how: what the profile doesn't decide; see helpers/recipe.py",
    )
    parser.add_argument(
        "--model",
        choices=models.MODELS,
        default="CustomResNet",
        help="network to train",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="one run for each"
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("CIFAR10_ROOT") or "data",
        help="folder the dataset is in or goes to, or the word synthetic; the profile "
        "smoke is always synthetic",
    )
    parser.add_argument(
        "--holdout",
        type=int,
        default=0,
        help="evaluate on this many training images held out, not on the test set, "
        "whatever test_images is: for choosing hyperparameters",
    )
    parser.add_argument(
        "--augment-on",
        choices=("auto", "cpu", "device"),
        default="auto",
        help="cpu by Albumentations, device in whole batches; auto is device on a GPU, else "
        "cpu",
    )
    parser.add_argument(
        "--out",
        type=lambda text: Path(text).expanduser(),  # of --out=~/runs no shell does it
        default=Path("runs"),
        help="folder of records; runs at the same time need one each",
    )
    parser.add_argument(
        "--save-weights",
        action="store_true",
        help="also write the network beside its record, as safetensors in float16",
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument(
        "--no-checkpoint",
        action="store_true",
        help="write no checkpoint, for a run that is repeated faster than 79 MB "
        "(CustomResNet with Adam) are written after each epoch",
    )
    kept.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint that an interrupted run left in --out; seeds that "
        "have a record of the same run there are skipped",
    )
    recipe = parser.add_argument_group(
        "hyperparameters", "What isn't given is the recipe's and the profile's."
    )
    meaning = meanings(train_test.Recipe.__doc__)
    for field in dataclasses.fields(train_test.Recipe):
        recipe.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=str if isinstance(field.default, str) else number,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=meaning[field.name],
        )
    return parser.parse_args(arguments)


def number(text: str) -> int | float | None:
    """1e-2, 24 or none; Recipe says whether it fits."""
    if text.lower() == "none":
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)


def meanings(docstring: str) -> dict[str, str]:
    """The fields' explanations, from the one place where they are written."""
    entry = r"^([\w, ]+): (.*?)(?=^\w|^$)"
    # Python 3.13 takes the indentation away by itself.
    text = inspect.cleandoc(docstring) + "\n"
    entries = re.findall(entry, text, re.MULTILINE | re.DOTALL)
    return {
        name: " ".join(text.split())
        for names, text in entries
        for name in names.split(", ")
    }


def checkpoint_of(options: argparse.Namespace, seed: int) -> Path:
    name = f"{options.model}-{options.profile}-{options.recipe}-seed{seed}"
    return options.out / f"{name}.pt"


def require_startable(options: argparse.Namespace, processes: Processes) -> None:
    """Raise any seed's foreseeable errors, before hours of training."""
    if options.holdout < 0:
        raise ValueError(
            f"holdout is {options.holdout}; give a number of training images, or 0"
        )
    for seed in options.seeds:
        utils.set_seed(seed)
        if processes.first and not options.resume and not options.no_checkpoint:
            require_free(checkpoint_of(options, seed))
    require_writable(options.out)
    if options.save_weights:
        with optional("safetensors", ", or leave out --save-weights"):
            import safetensors  # noqa: F401
    begun = [checkpoint_of(options, seed) for seed in options.seeds]
    if processes.first and options.resume and any(map(kept_checkpoints, begun)):
        images = [data.fingerprint() for data in data_of(options)]
        for path in begun:
            require_resumable(path, recipe_of(options), images)


def data_of(options: argparse.Namespace) -> tuple[dataset.ImageSet, dataset.ImageSet]:
    """What is trained on, and what is evaluated on."""
    recipe = recipe_of(options)
    return dataset.images_of(
        "synthetic" if options.profile == "smoke" else options.data,
        train_images=recipe.train_images,
        test_images=recipe.test_images,
        holdout=options.holdout,
    )


def run(options: argparse.Namespace, seed: int, processes: Processes) -> None:
    """Train once; the first of the processes writes what came of it."""
    recipe = recipe_of(options)
    train, test = data_of(options)
    device = utils.get_device()
    utils.set_seed(seed)
    model = models.MODELS[options.model](
        num_classes=len(train.classes),
        in_channels=train.images.shape[-1],
        logit_scale=recipe.logit_scale,
    )
    loaders = dataset.make_loaders(
        train,
        test,
        batch_size=recipe.batch_size,
        device=device,
        augment_on=options.augment_on,
        seed=seed,
        share=processes,
        **recipe.augmentation,
    )
    record = setting(options, seed, recipe, model, (train, test), device)
    record["hardware"]["processes"] = processes.size
    record["augment_on"] = loaders.train.augment_on  # what "auto" meant here
    checkpoint = None if options.no_checkpoint else checkpoint_of(options, seed)
    if options.resume and processes.broadcast(
        processes.first and is_done(record, checkpoint, options)
    ):
        return
    if options.resume and processes.first and kept_checkpoints(checkpoint):
        # What else the record says of code and machine is of this start.
        record["resumed_after"] = len(train_test.read_history(checkpoint).epochs)
    processes.print(utils.describe_run(options.profile, train.source, device))
    processes.print(
        f"{options.model}, {record['parameters']:,} parameters, "
        f"recipe {options.recipe}, seed {seed}, processes: {processes.size}"
    )
    history = train_test.fit(
        model,
        loaders,
        recipe,
        device=device,
        checkpoint=checkpoint,
        resume=options.resume,
    )
    plain, mirrored = (
        train_test.predict(model, loaders.test, device=device, flip_tta=flip)
        for flip in (False, True)
    )
    if not processes.first:
        return
    record |= outcome(history, plain, mirrored, test.classes)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{checkpoint_of(options, seed).stem}"
    path = options.out / f"{name}.json"
    utils.write_record(path, record)
    if checkpoint and checkpoint.exists():
        checkpoint.replace(path.with_suffix(".pt"))  # and its name is free again
    if options.save_weights:  # after the record, which a full disk then doesn't cost
        file = path.with_suffix(".safetensors")
        try:
            record["weights"] = weights.save_scored(
                model, file, test, data=train.source, device=device
            )
        except ValueError as error:  # of a training that went wrong
            warnings.warn(f"{path} has no weights: {error}", stacklevel=1)
        utils.write_record(path, record)
    print(
        f"{train.source}, seed {seed}: last epoch {history.last.test_accuracy:.2%}, "
        f"maximum {history.best.test_accuracy:.2%} in epoch {history.best.epoch} on the "
        f"{record['data']['evaluated_on']}; record {path}"
    )


def recipe_of(options: argparse.Namespace) -> train_test.Recipe:
    """The profile's, altered by the recipe's name and then by single fields."""
    fields = {field.name for field in dataclasses.fields(train_test.Recipe)}
    given = {name: value for name, value in vars(options).items() if name in fields}
    altered = {**train_test.RECIPES[options.recipe], **given}
    return dataclasses.replace(train_test.PROFILES[options.profile], **altered)


def is_done(
    record: dict[str, Any], checkpoint: Path, options: argparse.Namespace
) -> bool:
    """Whether this run has a record and no checkpoint since; prints which record."""
    if kept_checkpoints(checkpoint):
        return False
    found = []
    for path in sorted(checkpoint.parent.glob(f"*-{checkpoint.stem}.json")):
        try:
            past = utils.read_record(path)
        except ValueError as error:
            warnings.warn(f"{error}; it doesn't count as done", stacklevel=2)
            continue
        if all(
            past.get(part) == record[part] for part in ("recipe", "augment_on", "data")
        ):
            found.append((path, past))
    if not found:
        return False
    # One may have been trained again for its weights.
    path, past = max(found, key=lambda one: "weights" in one[1])
    print(
        f"{path} is the record of seed {past['seed']}, max_lr {past['max_lr']:.2e}; "
        "this seed is skipped"
    )
    if options.save_weights and "weights" not in past:
        remedy = "without --resume it is trained again"
        if (kept := path.with_suffix(".pt")).exists():
            remedy = f"rename {kept.name} to {checkpoint.name} and repeat this"
        print(f"it has no weights: {remedy}, for them")
    return True


def setting(
    options: argparse.Namespace,
    seed: int,
    recipe: train_test.Recipe,
    model: torch.nn.Module,
    data: tuple[dataset.ImageSet, dataset.ImageSet],
    device: torch.device,
) -> dict[str, Any]:
    """The part of a record that is known before the training."""
    train, test = data
    dtype = train_test.choose_dtype(recipe.precision, device)
    evaluated_on = "held-out training images" if options.holdout else "test set"
    return {
        "profile": options.profile,
        "recipe_name": options.recipe,
        "model": options.model,
        "parameters": models.count_parameters(model),
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "commit": COMMIT,
        "versions": utils.versions(),
        "hardware": utils.hardware(device, dtype),
        "data": {
            "source": train.source,
            "train_images": len(train),
            "test_images": len(test),
            "evaluated_on": evaluated_on,
            "train_fingerprint": train.fingerprint(),
            "test_fingerprint": test.fingerprint(),
        },
    }


def outcome(
    history: train_test.History,
    predictions: train_test.Predictions,
    mirrored: train_test.Predictions,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """The part of a record that the training decides."""
    answers = predictions.answers
    by_class = utils.class_accuracy(predictions.labels, answers, classes)
    return {
        "max_lr": history.max_lr,
        "last_epoch_accuracy": history.last.test_accuracy,
        "flip_tta_accuracy": mirrored.metrics.accuracy,
        "maximum_accuracy": history.best.test_accuracy,
        "maximum_epoch": history.best.epoch,
        "class_accuracy": {row.name: row.accuracy for row in by_class},
        "seconds": sum(row.seconds for row in history.epochs),
        "history": history.as_dict()["epochs"],
    }


if __name__ == "__main__":
    main()
