"""python -m helpers.weights RECORD: are a run's weights worth what its record says?"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from helpers import dataset, models, train_test, utils
from helpers.files import place_of

__all__ = ["load_run"]

BATCH = 512  # images; of another size, the last digits of the logits may differ
# Images, of 10,000 say, that may be answered otherwise on another processor or with another
# number of threads: their two best classes are so close that rounding decides. On the same
# machine there are none.
TOLERANCE = 3


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        check(options.record, options.data)
    except (ValueError, OSError, MemoryError, ModuleNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.weights",
        description="Evaluate weights again and compare with what their record says.",
    )
    parser.add_argument(
        "record", type=Path, help="JSON record of a run, with its weights beside it"
    )
    parser.add_argument(
        "--data",
        help="folder the dataset is in or goes to, or the word synthetic (default: "
        "synthetic for a record of such images, else data, or what CIFAR10_ROOT says)",
    )
    return parser.parse_args(arguments)


def load_run(path: str | os.PathLike) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return the network of a run, in evaluation mode on the CPU, and the run's record.

    path: of a record that names its weights, which lie beside it. Raises as
    `utils.read_record` and `models.load_pretrained` do, and ValueError for a record
    without weights.
    """
    record = utils.read_record(path)
    if "weights" not in record:
        raise ValueError(
            f"{path} is a record of a run without weights; name one that python -m helpers "
            "--save-weights wrote"
        )
    said = record["weights"]
    file = Path(path).expanduser().with_name(said["file"])
    if not file.exists():  # beside a link, say, which leads to the record
        file = place_of(path).with_name(said["file"])
    return models.load_pretrained(file, sha256=said["sha256"]), record


def check(path: Path, data: str | None) -> None:
    """Print the accuracy and the record's.

    Raises ValueError where they should agree and don't.
    """
    model, record = load_run(path)
    said, used = record["weights"], record["data"]
    count = used["test_images"]
    if not data and used["source"] == dataset.SYNTHETIC:
        data = "synthetic"
    data = data or os.environ.get("CIFAR10_ROOT") or "data"
    _, images = dataset.images_of(
        data,
        # A dataset's aren't needed; synthetic ones are drawn together.
        train_images=used["train_images"] if data == "synthetic" else None,
        test_images=count,
        holdout=0 if used["evaluated_on"] == "test set" else count,
    )
    there, here = used["test_fingerprint"], images.fingerprint()
    accuracy = score(model, images, device=utils.get_device())
    print(
        f"{said['file']}: {record['model']}, trained on {model.trained_on}, SHA-256 as recorded"
    )
    found, recorded = round(accuracy * count), round(said["accuracy"] * count)
    for where, right, source, fingerprint in (
        ("here:  ", found, images.source, here),
        ("record:", recorded, used["source"], there),
    ):
        print(
            f"{where} {right:,} of {count:,} right, {right / count:.2%}; {source}, {fingerprint}"
        )
    if there != here:
        print("These are other images, or in another order: the two needn't agree.")
        return
    if abs(found - recorded) > TOLERANCE:
        raise ValueError(
            f"{found:,} images are right and the record says {recorded:,}: rounding explains "
            f"{TOLERANCE} at most; the record, or this code, isn't that of these weights"
        )
    print(f"They agree: {found:,} images are right, {recorded:,} in the record.")


def score(
    model: torch.nn.Module, images: dataset.ImageSet, *, device: torch.device
) -> float:
    """Accuracy in float32, a fraction in [0, 1]; the same bits on the same machine."""
    loaders = dataset.make_loaders(
        images,
        images,
        batch_size=min(BATCH, len(images)),
        device=device,
        augment_on="device",  # needs no albumentations, and nothing is augmented
    )
    model = model.to(device, memory_format=torch.channels_last)
    # By default a newer GPU rounds what it convolves to TF32's 10 bits, a CPU doesn't.
    exact = torch.backends.cudnn.flags(
        enabled=True, deterministic=True, allow_tf32=False
    )
    with exact:
        return train_test.evaluate(model, loaders.test, device=device).accuracy


def save_scored(
    model: torch.nn.Module,
    path: Path,
    images: dataset.ImageSet,
    *,
    data: str,
    device: torch.device,
) -> dict[str, Any]:
    """Write the weights to `path`; return what a record says of them.

    images: to evaluate on. data: what the model was trained on. The accuracy is that of the
    file: rounded to float16, the model may answer an image otherwise than in memory.
    """
    digest = models.save_weights(model, path, classes=images.classes, data=data)
    reread = models.load_pretrained(path, sha256=digest)
    accuracy = score(reread, images, device=device)
    return {"file": path.name, "sha256": digest, "accuracy": accuracy}


if __name__ == "__main__":
    main()
