"""What is measured: rows of values, their ratios, and the table that shows them."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Setup:
    """On what is measured, and how much.

    images: of a pass of the data path; loaders that augment whole batches pass over an
    epoch's. batch_size, small_batch: images per step. steps: of one measurement, at least 2
    for torch-lr-finder. repeats: of the quick rows; process_repeats: of those that start
    processes. threads: of the CPU in training steps; the data path has one. data: folder of
    CIFAR-10, or the word synthetic. compiler: torch.compile's backend.
    """

    device: torch.device
    data: str
    threads: int
    images: int = 2048
    batch_size: int = 512
    small_batch: int = 64
    steps: int = 2
    repeats: int = 3
    process_repeats: int = 3
    compiler: str = "inductor"
    smoke: bool = False
    rivals: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was measured: a value per round. Without values, `note` says why.

    against: the row of the same group that it is compared with. part: of the options of
    `--only`, the one that measures it.
    """

    group: str
    name: str
    unit: str
    values: Sequence[float] = ()
    against: str = ""
    note: str = ""
    part: str = ""


Contenders = dict[str, Callable[[], float]]


def interleaved(
    contenders: Contenders, repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Each contender's measurements, in turns: a slow minute of the machine slows all."""
    if warm_up:
        for measure in contenders.values():
            measure()
    rounds = [
        {name: measure() for name, measure in contenders.items()}
        for _ in range(repeats)
    ]
    return {name: [one[name] for one in rounds] for name in contenders}


def compared(
    group: str, unit: str, values: dict[str, list[float]], *, against: str
) -> list[Row]:
    return [
        Row(
            group=group,
            name=name,
            unit=unit,
            values=found,
            against="" if name == against else against,
        )
        for name, found in values.items()
    ]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long `work` takes, with all that it left the device to do."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def find(rows: Sequence[Row], group: str, name: str) -> Row | None:
    return next((row for row in rows if (row.group, row.name) == (group, name)), None)


def median(row: Row | None) -> float | None:
    return statistics.median(row.values) if row and row.values else None


def ratio(row: Row | None, base: Row | None) -> float | None:
    """The median over the rounds of row / base, each taken in the same minute.

    None where there is none, or one of the two has failed in some rounds.
    """
    if not (row and base and row.values and len(row.values) == len(base.values)):
        return None
    pairs = zip(row.values, base.values, strict=True)
    return statistics.median(value / other for value, other in pairs)


def versus(rows: Sequence[Row], row: Row) -> float | None:
    return ratio(row, find(rows, row.group, row.against)) if row.against else None


class Target(NamedTuple):
    """A promise about `value`, which is None where it wasn't measured."""

    text: str
    value: float | None
    sign: str  # ≥ or ≤
    bound: float

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        reached = (
            self.value >= self.bound if self.sign == "≥" else self.value <= self.bound
        )
        return "met" if reached else "missed"


def short(value: float | None) -> str:
    """Three digits, or a whole number: 0.0123, 4.56, 78,901."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """A line per row: median, range, unit, and the ratio to what it is compared with."""
    lines = [("", "median", "from – to", "unit", "ratio")]
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines += [("",) * 5, (group.upper(), "", "", "", "")]
        if row.values:
            middle = short(median(row))
            spread = f"{short(min(row.values))} – {short(max(row.values))}"
        else:
            middle, spread = "not measured", row.note
        times = versus(rows, row)
        relative = "" if times is None else f"{times:.2f} × {row.against}"
        lines.append((f"  {row.name}", middle, spread, row.unit, relative))
    return aligned(lines)


def target_table(targets: Sequence[Target]) -> str:
    lines = [("TARGETS", "found", "target", "")]
    for target in targets:
        bound = f"{target.sign} {short(target.bound)}"
        lines.append((f"  {target.text}", short(target.value), bound, target.verdict))
    return aligned(lines)


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(text.rstrip() for text in texts)
