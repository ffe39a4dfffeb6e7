"""Figures of a record: ratios to what one would write instead, and where a second goes."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks import data, epoch, steps
from benchmarks.rows import Row, find, median, short, versus
from helpers.figures import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    SKY_BLUE,
    SMALL,
    VERMILLION,
    dress,
    new_figure,
)

PART_COLOURS = dict(
    zip(epoch.PARTS, (GREEN, SKY_BLUE, BLUE, VERMILLION, ORANGE), strict=True)
)


def rows_of(record: dict[str, Any]) -> list[Row]:
    return [Row(**row) for row in record["rows"]]


def about(record: dict[str, Any]) -> str:
    """What every figure of the record says of it."""
    hardware, size = record["hardware"], record["setup"]
    rehearsal = "REHEARSAL, tiny sizes, no result\n" * size["smoke"]
    return (
        f"{rehearsal}{hardware['device']}, threads: {hardware['threads']}, "
        f"{hardware['precision']} | torch {record['versions']['torch']}"
    )


def plot_ratios(record: dict[str, Any]) -> Figure:
    """Draw the speed of each way to load and to train, what one would write being 1."""
    rows = rows_of(record)
    loading = [row for row in rows if row.group == data.GROUP]
    training = [row for row in rows if row.group.startswith("training step")]
    title = "Speed compared with the usual code (medians of ratios)"
    figure, panels = new_figure(title, about(record), 8.5, 8.4, lines=2)
    for axes, shown, names, base in (
        (panels[0], loading, [row.name for row in loading], data.ALBUMENTATIONS),
        (panels[1], training, [step_name(row) for row in training], steps.STUDENTS),
    ):
        bars(axes, rows, shown, names)
        dress(axes, f"times the images/s of “{base}”", "")
    panels[0].set_title("Loading and augmenting, one core", size=11)
    panels[1].set_title("Training step", size=11)
    heights = [len(loading) + 2, len(training) + 2]
    panels[0].get_gridspec().set_height_ratios(heights)
    return figure


def step_name(row: Row) -> str:
    """CustomResNet, batch 512: ours, as fit calls it."""
    return f"{row.group.removeprefix('training step, ')}: {row.name}"


def bars(axes, rows: Sequence[Row], shown: Sequence[Row], names: Sequence[str]) -> None:
    """One bar per row, the first on top: its ratio, and beside it that and images/s."""
    longest, box = 1.0, {"boxstyle": "square,pad=0", "color": "white"}  # over the line
    for place, row in enumerate(shown):
        times = versus(rows, row) if row.against else 1.0 if row.values else None
        if times is None:
            text = f" not measured: {row.note}"
            axes.text(0, place, text, va="center", size=SMALL, bbox=box)
            continue
        longest = max(longest, times)
        ours = row.name.startswith("ours")
        axes.barh(place, times, height=0.7, color=BLUE if ours else ORANGE)
        # Of a few rounds: a second decimal would be chance.
        text = f" {times:.1f} ×   {short(median(row))} images/s"
        axes.text(times, place, text, va="center", size=SMALL, bbox=box)
    axes.axvline(1, color=BLACK, ls="--", lw=1, zorder=0.5)
    axes.set_yticks(range(len(shown)), names, size=SMALL)
    axes.set(xlim=(0, 1.75 * longest), ylim=(len(shown) - 0.4, -0.6))


def plot_second(record: dict[str, Any]) -> Figure:
    """Draw which share (%) of an epoch's time goes into what."""
    rows = rows_of(record)
    shares = {part: median(find(rows, epoch.GROUP, part)) for part in PART_COLOURS}
    title = "Where training time goes: CustomResNet, synthetic images"
    figure, axes = new_figure(title, about(record), 8.5, 2.9)
    left = 0.0
    for part, share in shares.items():
        label = f"{part} {share:.1f}%"
        axes.barh(0, share, left=left, color=PART_COLOURS[part], label=label)
        left += share
    axes.set(xlim=(0, 100))
    dress(axes, "share of the time (%)", "")
    axes.set_yticks([])
    # Closer than elsewhere, so that all are in one row, in their order.
    look = {"ncols": len(shares), "columnspacing": 1.2, "frameon": False}
    figure.legend(loc="outside lower center", **look)
    return figure
