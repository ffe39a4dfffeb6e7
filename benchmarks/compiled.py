"""Does torch.compile pay back within one training? The step with and without, and its price."""

import os
import tempfile
from unittest.mock import patch

import torch

from benchmarks.rows import Row, Setup, compared, interleaved, median, seconds, versus
from benchmarks.steps import OURS, contender, our_epoch, random_batches
from helpers import models

GROUP = "torch.compile, CustomResNet"
COMPILED = "ours, compiled"
PRICE = "compiling, in the first step"
PAYS = "epochs of 50,000 images until it has paid back"
EPOCH = 50_000  # images of CIFAR-10's training set


def measure(setup: Setup) -> list[Row]:
    torch.set_num_threads(setup.threads)
    batches = random_batches(setup.batch_size, setup.steps, setup.device)
    plain, compiled = models.CustomResNet(), models.CustomResNet()
    # On CUDA also as CUDA graphs, which take the launches off the host.
    mode = "reduce-overhead" if setup.device.type == "cuda" else "default"
    compiled.compile(mode=mode, dynamic=False, backend=setup.compiler)
    works = {
        name: our_epoch(model, batches, setup.device)
        for name, model in ((OURS, plain), (COMPILED, compiled))
    }
    first = our_epoch(compiled, batches[:1], setup.device)
    # What an earlier process has compiled would make this one's price look lower.
    with (
        tempfile.TemporaryDirectory() as empty,
        patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=empty),
    ):
        try:
            price = seconds(first, setup.device)
        except RuntimeError as error:  # no compiler for its code, say
            why = " ".join(str(error).splitlines()[:2])
            return [
                Row(group=GROUP, name=COMPILED, unit="images/s", against=OURS, note=why)
            ]
        values = interleaved(
            {name: contender(work, batches, setup) for name, work in works.items()},
            setup.repeats,
        )
    rows = compared(GROUP, "images/s", values, against=OURS)
    return [
        *rows,
        Row(group=GROUP, name=PRICE, unit="s", values=[price]),
        pays(rows, price),
    ]


def pays(rows: list[Row], price: float) -> Row:
    """When what each epoch saves adds up to the price."""
    plain, compiled = rows
    saved = EPOCH / median(plain) * (1 - 1 / versus(rows, compiled))
    found = {"values": [price / saved]} if saved > 0 else {"note": "never: no faster"}
    return Row(group=GROUP, name=PAYS, unit="epochs", **found)
