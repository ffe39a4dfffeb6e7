"""One training by several processes, each with its share of every batch.

torchrun starts them, torch.distributed connects them, DistributedDataParallel averages
their gradients. A process alone is the case of size 1, in which nothing here does anything.
"""

import atexit
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from helpers.copies import copy_of

# Others may be importing torch from a slow disk still.
ARRIVAL = timedelta(minutes=5)
# The others wait while the first one runs the range test, on a CPU for hours. Where one
# dies, torchrun ends them all: no wait has to be cut short here.
PATIENCE = timedelta(days=1)


class Processes(NamedTuple):
    """This process's number, from 0, among how many."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """Those that torch.distributed has connected; one where it hasn't."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @classmethod
    def of(cls, loader) -> "Processes":
        """Those that share the loader's batches; one where it doesn't tell."""
        return cls(*getattr(loader, "share", ()))

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def print(self, line: object) -> None:
        """Print it, in the first of the processes alone; into a file too, at once."""
        if self.first:
            print(line, flush=True)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model to train, whose gradients are averaged over the processes.

        BatchNorm takes its statistics from the whole batch where torch can, on CUDA. On
        CPUs each process normalizes by its own share, as if the batch were that small,
        and the running statistics that evaluation uses are the first process's.
        """
        if self.size == 1:
            return model
        if device.type == "cuda":
            model = synchronized(model)
        return DistributedDataParallel(model)

    def warn_unless_averaging(self, model: nn.Module) -> None:
        """Warn where each process may train a model of its own."""
        averages = (isinstance(m, DistributedDataParallel) for m in model.modules())
        if self.size > 1 and not any(averages):
            warnings.warn(
                f"{self.size} processes train, each its own model unless something "
                "averages their gradients; wrap the model in "
                "torch.nn.parallel.DistributedDataParallel, or call fit, which does",
                stacklevel=3,
            )

    def align_buffers(self, model: nn.Module) -> None:
        """Give each process the first one's running statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over the processes, elementwise."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows (N, ...) on the CPU of all processes, in the order of their ranks."""
        return rows if self.size == 1 else torch.cat(self.all_gather_object(rows))

    def all_gather_object(self, value: Any) -> list[Any]:
        """Each process's value, in the order of their ranks, in each."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in each."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told)
        return told[0]


def synchronized(model: nn.Module) -> nn.Module:
    """Another module with the model's own tensors, whose BatchNorm is SyncBatchNorm.

    The model itself stays as it is, and so can be trained again, on a CPU too.
    """
    twin = copy_of(model, sharing=(*model.parameters(), *model.buffers()))
    return nn.SyncBatchNorm.convert_sync_batchnorm(twin)


@contextmanager
def connected() -> Iterator[Processes]:
    """A context in which the processes that torchrun started, if any, are connected.

    Gives (rank, size), (0, 1) without torchrun. On GPUs through NCCL, each process with
    its own GPU; else through gloo. Of several, one that raises an error ends with status 1
    without waiting for the others. Raises ConnectionError where they don't find each other
    in time or aren't told where, ValueError for a process without a GPU of its own.
    """
    if "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    cuda = torch.cuda.is_available()
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if cuda and local >= gpus:
        raise ValueError(
            f"process {local} (from 0) has no GPU of its own: this machine has {gpus}; "
            "start no more processes than that, hide the GPUs with CUDA_VISIBLE_DEVICES=, or "
            "set LOCAL_RANK=0 where each process sees one of its own"
        )
    if cuda:
        torch.cuda.set_device(local)
    # Its functions take the current group as a default argument. DistributedDataParallel
    # would import it once there is a group, and so keep that group's threads alive beyond
    # this function, to the interpreter's end: one that is late to drop a tensor then aborts
    # the process (torch 2.15). Imported here, the default is no group.
    from torch.distributed.nn import functional  # noqa: F401

    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    try:
        store, rank, size = next(distributed.rendezvous("env://", timeout=ARRIVAL))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # After a restart torchrun's store still has the dead processes' addresses
            # (torch 2.15). Machines count restarts each for themselves: not for several.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = distributed.PrefixStore(f"attempt {attempt}", store)
        distributed.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
            # So that NCCL connects here, and not within ARRIVAL of the first exchange.
            device_id=torch.device("cuda", local) if cuda else None,
        )
    except (distributed.DistError, ValueError) as error:
        raise ConnectionError(
            f"the {os.environ['WORLD_SIZE']} processes did not find each other at {where} "
            f"({str(error).splitlines()[0]}); start all of them by torchrun with a free "
            "--master-port, or unset WORLD_SIZE to train in one"
        ) from error
    try:
        yield Processes(rank, size)
    except BaseException as error:
        if size == 1 or (isinstance(error, SystemExit) and not error.code):
            distributed.destroy_process_group()
        else:
            atexit.register(leave_at_once)
        raise
    distributed.destroy_process_group()


def leave_at_once() -> None:
    """End a process that has failed and has said so, without taking leave of the others.

    They may be waiting for it, and NCCL's teardown for them: torchrun ends them all as soon
    as this one is gone.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also where nobody listens any more
        os._exit(1)
