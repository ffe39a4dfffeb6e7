"""python -m benchmarks: everything side by side, as a table, a JSON record and figures."""

import argparse
import dataclasses
import gc
import json
import os
import re
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    data,
    epoch,
    figures,
    fresh,
    limits,
    steps,
    together,
    variants,
    whole,
)
from benchmarks.rows import PROJECT, Row, Setup, find, table, target_table
from benchmarks.targets import targets
from helpers import dataset, train_test, utils
from helpers.loaders import usable_cores
from helpers.results import unmarked

FORMAT = 1  # of the record
# In this order: limits needs steps, whole needs limits; what matters least is last. After
# epoch, whose profiler stays attached to the GPU, this process may be up to 20% slower:
# https://github.com/pytorch/pytorch/issues/144455
GROUPS = {
    "data": lambda setup, rows: data.measure(setup),
    "steps": lambda setup, rows: steps.measure(setup),
    "limits": limits.measure,
    "whole": whole.measure,
    "variants": lambda setup, rows: variants.measure(setup),
    "epoch": lambda setup, rows: epoch.measure(setup),
    "fresh": lambda setup, rows: fresh.measure(setup),
    "together": lambda setup, rows: together.measure(setup),
}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    setup = make_setup(options)
    if setup.data != "synthetic" and {"whole", "fresh"} & {*options.only}:
        try:  # before anything is measured
            dataset.load_once(setup.data)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            raise SystemExit(f"error: {error}") from error
    records, images = PROJECT / "results", PROJECT / "Images"
    if options.out or setup.smoke:
        records = images = options.out or PROJECT / "build" / "bench"
    for folder in (records, images):
        folder.mkdir(parents=True, exist_ok=True)
    record = described(setup)  # before it begins: the checkout may move on meanwhile
    kind = kind_of(record["hardware"])
    path = records / f"bench-{kind}.json"
    begun, before = time.perf_counter(), kept_from(path, record, options.only)
    rows, spent = before["rows"], before["seconds"]
    chosen = [group for group in GROUPS if group in options.only]
    failed = []
    for name in chosen:
        try:
            if setup.device.type == "cuda":  # a group's processes need it all
                gc.collect()
                torch.cuda.empty_cache()
            new = [replace(row, part=name) for row in GROUPS[name](setup, rows)]
        except Exception:  # noqa: BLE001 - the others' rows are worth having all the same
            traceback.print_exc()
            failed.append(name)
            continue  # with the group's rows of an earlier call, if there are any
        rows = [row for row in rows if row.part != name] + new
        rows.sort(key=lambda row: list(GROUPS).index(row.part))
        print(f"{name}: done after {time.perf_counter() - begun:.0f} s", flush=True)
        found = targets(rows, setup)
        # Each time: a later group that is interrupted takes nothing along.
        record |= {
            "seconds": spent + time.perf_counter() - begun,
            "rows": [dataclasses.asdict(row) for row in rows],
            "targets": [
                {**target._asdict(), "verdict": target.verdict} for target in found
            ],
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
    if failed == chosen:  # a record that is there is left as it is
        raise SystemExit("nothing was measured, for the reasons above")
    print(f"\n{figures.about(record)}\n\n{table(rows)}")
    print(f"\n{target_table(found)}\n\nrecord {path}")
    drawn = {"bench": figures.plot_ratios}
    if find(rows, epoch.GROUP, "data"):
        drawn["bench-second"] = figures.plot_second
    for name, plot in drawn.items():
        plot(record).savefig(images / f"{name}-{kind}.png", dpi=100)
    if failed:
        raise SystemExit(f"not measured, for the reasons above: {', '.join(failed)}")


def kind_of(hardware: dict[str, Any]) -> str:
    """What has a record of its own: a processor, and what it computes in."""
    name = f"{unmarked(hardware['device'])} {hardware['precision']}"
    words = re.findall("[a-z0-9]+", name.lower())
    return "-".join(words)


def kept_from(path: Path, record: dict[str, Any], anew: list[str]) -> dict[str, Any]:
    """What an earlier call measured, of the same code on the same machine."""
    nothing = {"rows": [], "seconds": 0.0}
    if set(anew) == set(GROUPS) or not path.exists():
        return nothing
    earlier = json.loads(path.read_text())
    # Changed or unknown code can't be matched.
    changed = record["commit"].endswith("-dirty") or record["commit"] == "unknown"
    if changed or any(earlier.get(name) != value for name, value in record.items()):
        print(
            f"{path} is of other code or another machine: it is replaced, not added to"
        )
        return nothing
    return {**earlier, "rows": [Row(**row) for row in earlier["rows"]]}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure speed and memory side by side with what one would write "
        "instead. Nothing else should run on the machine meanwhile.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("CIFAR10_ROOT") or "data",
        help="folder of the dataset, or the word synthetic",
    )
    parser.add_argument(
        "--rivals",
        type=Path,
        help="folder with checkouts of cifar10-fast and cifar10-airbench, for whole "
        "trainings on a GPU",
    )
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups of rows"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="a rehearsal with tiny sizes on synthetic images; its numbers mean nothing",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for record and figures, instead of results and Images",
    )
    return parser.parse_args(arguments)


def make_setup(options: argparse.Namespace) -> Setup:
    device = utils.get_device()
    if options.smoke:
        return Setup(
            device=device,
            data="synthetic",
            threads=1,
            images=64,
            batch_size=4,
            small_batch=2,
            repeats=1,
            process_repeats=1,
            compiler="eager",  # inductor takes half a minute
            smoke=True,
        )
    # GPUs have many more steps in a second than CPUs, and less of a warm-up in each.
    quick = {"steps": 30, "repeats": 7} if device.type == "cuda" else {}
    return Setup(
        device=device,
        data=options.data,
        # Other threads' settings are not ours: all cores that this process may use.
        threads=usable_cores(),
        rivals=options.rivals,
        **quick,
    )


def described(setup: Setup) -> dict[str, Any]:
    torch.set_num_threads(setup.threads)
    dtype = train_test.choose_dtype("auto", setup.device)
    # Of the data's folder its name alone, as the rest is this machine's.
    size = {**dataclasses.asdict(setup), "data": Path(setup.data).name}
    del size["rivals"]  # the rows tell
    return {
        "format": FORMAT,
        "commit": utils.commit(),
        "versions": utils.versions(),
        "hardware": utils.hardware(setup.device, dtype),
        "setup": {**size, "device": setup.device.type},
    }


if __name__ == "__main__":
    main()
