"""What the machine can do at most, and what the network asks of it."""

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import steps
from benchmarks.rows import Row, Setup, find, median
from helpers import models, train_test

GROUP = "limits"


def measure(setup: Setup, rows: list[Row]) -> list[Row]:
    """rows: of the training steps, whose share of the peak is told."""
    dtype = train_test.choose_dtype("auto", setup.device)
    size = 256 if setup.smoke else 8192 if setup.device.type == "cuda" else 2048
    found, peaks = {}, {}
    for kind in dict.fromkeys((dtype, torch.float32)):
        peaks[kind] = matmul_peak(kind, size, setup)
        name = f"matmul peak, {str(kind).removeprefix('torch.')}"
        found[name, "TFLOP/s"] = peaks[kind] / 1e12
    found["copy, read and written", "GB/s"] = copy_bandwidth(16 * size**2, setup) / 1e9
    for name, network in models.MODELS.items():
        flops = flops_per_image(network)
        found[f"{name}, forward and backward", "GFLOP/image"] = flops / 1e9
        step = find(rows, steps.group(name, setup.batch_size), steps.OURS)
        if rate := median(step):
            share = 100 * rate * flops / peaks[dtype]
            found[f"{name}, our step's share of the matmul peak", "%"] = share
    return [
        Row(group=GROUP, name=name, unit=unit, values=[value])
        for (name, unit), value in found.items()
    ]


def matmul_peak(dtype: torch.dtype, size: int, setup: Setup) -> float:
    """FLOP a second of the product of two square matrices."""
    a, b = (torch.randn(size, size, device=setup.device).to(dtype) for _ in range(2))
    return 2 * size**3 / timed("a @ b", {"a": a, "b": b}, setup)


def copy_bandwidth(count: int, setup: Setup) -> float:
    """Bytes a second of a copy of `count` bytes, each read once and written once."""
    a = torch.randint(256, (count,), dtype=torch.uint8, device=setup.device)
    b = torch.empty_like(a)
    return 2 * count / timed("b.copy_(a)", {"a": a, "b": b}, setup)


def timed(statement: str, names: dict[str, torch.Tensor], setup: Setup) -> float:
    """The fewest seconds that it took."""
    timer = Timer(statement, globals=names, num_threads=setup.threads)
    return min(timer.blocked_autorange(min_run_time=0.2 if setup.smoke else 2).times)


def flops_per_image(network: type[torch.nn.Module]) -> int:
    """Of forward and backward pass; on the meta device, where nothing is computed.

    Convolutions and matrix products only, as is usual; all else is a percent of them.
    """
    with torch.device("meta"):
        model, images = network(), torch.empty(2, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            model(images).sum().backward()
    return counter.get_total_flops() // len(images)
