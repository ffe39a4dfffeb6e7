"""What is promised, most of it as ratios within one run, and what was found."""

import torch

from benchmarks import data, epoch, fresh, steps, whole
from benchmarks.rows import Row, Setup, Target, find, median, versus
from helpers import train_test


def targets(rows: list[Row], setup: Setup) -> list[Target]:
    def times(group: str, name: str) -> float | None:
        row = find(rows, group, name)
        return versus(rows, row) if row else None

    def value(group: str, name: str) -> float | None:
        return median(find(rows, group, name))

    cuda = setup.device.type == "cuda"
    bfloat16 = not cuda and (
        train_test.choose_dtype("auto", setup.device) == torch.bfloat16
    )
    step = times(steps.group("CustomResNet", setup.batch_size), steps.OURS)
    small = times(steps.group("CustomResNet", setup.small_batch), steps.OURS)
    per_image = times(data.GROUP, data.OURS_PER_IMAGE)
    batched = times(data.GROUP, data.OURS_BATCHED)
    step_parts = [value(epoch.GROUP, p) for p in epoch.PARTS if p != "evaluation"]
    loading = 100 * step_parts[0] / sum(step_parts) if None not in step_parts else None
    share = value(whole.GROUP, whole.SHARE)
    # Its two rows are named after how memory is counted.
    compared = (row for row in rows if row.group == fresh.MEMORY and row.against)
    memory = next((versus(rows, row) for row in compared), None)
    page = times(whole.GROUP, whole.CLOCK.format("cifar10-fast"))
    own = value(fresh.IMPORTS, "helpers.models, after torch")
    return [
        Target("data path per image, × Albumentations", per_image, "≥", 1.5),
        Target("data path in batches, one core, × Albumentations", batched, "≥", 8),
        Target("data's share on a GPU, %", loading if cuda else None, "≤", 3),
        Target(
            "CPU step in bfloat16, × the usual loop",
            step if bfloat16 else None,
            "≥",
            2.5,
        ),
        Target(
            "CPU step in float32, × the usual loop",
            step if not (bfloat16 or cuda) else None,
            "≥",
            1.2,
        ),
        Target(f"step of {setup.small_batch}, × the usual loop", small, "≥", 1),
        Target("24 epochs, share of the matmul peak, %", share, "≥", 45),
        Target("24 epochs, share of the matmul peak, later goal, %", share, "≥", 55),
        Target("seconds of cifar10-fast by airbench's clock, × ours", page, "≥", 1),
        Target("waits within an epoch", value(epoch.GROUP, epoch.SYNCS), "≤", 0),
        Target("peak memory, × the usual loop", memory, "≤", 1),
        Target("import helpers, ms", value(fresh.IMPORTS, "helpers"), "≤", 50),
        Target("import helpers.models beyond torch, ms", own, "≤", 50),
        Target(
            "the notebook's smoke test, s", value(fresh.NBVAL, fresh.CELLS), "≤", 60
        ),
    ]
