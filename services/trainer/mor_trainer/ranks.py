"""The processes that train one model together, as ``torchrun`` starts them, and what they tell each other.

Rank 0 leads: it alone talks to run control and the queue server, and tells the others what to do. Objects travel over a
gloo group of their own, whatever the tensors travel over; they are pickled, as ``torch.distributed`` does it, and come
from processes of the same job only.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from mor_core.errors import MorError
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

_FOR_EVER = timedelta(days=365)
"""A paused run keeps the other ranks waiting. A rank that ends closes its connections, which ends their wait."""
_START = timedelta(minutes=10)
_FAILURE = "failure"


class RanksBroken(MorError):
    """Another rank ended, or this one left the others behind; all must be started again.

    ``again``: the run may go on then; otherwise it failed.
    """

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def launched() -> int:
    """Number of ranks that ``torchrun`` started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_of(setting: str) -> torch.device:
    """Where this process trains: the accelerator of its local rank, or the CPU."""
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


class Ranks:
    """All ranks, seen from one of them. A single process is rank 0 of 1 and needs no process group."""

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.size = size
        self.ending = False
        """Whether this process, or on rank 0 any, was asked to end."""
        self.mesh: DeviceMesh | None = None
        self.group: dist.ProcessGroup | None = None
        """For objects; ``None`` in a single process."""
        self._store: Any = None

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """The ranks that ``torchrun`` started; waits for all of them. Tensors travel over NCCL on CUDA and over gloo on
        the CPU."""
        if launched() == 1:
            return cls(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store, rank, size = next(rendezvous("env://"))
        store = dist.PrefixStore(f"mor/{_start(store, rank, size)}", store)  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        ranks = cls(device, rank, size)
        ranks._store = store
        ranks.mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
        ranks.group = dist.new_group(backend="gloo", timeout=_FOR_EVER)
        return ranks

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def leave(self) -> None:
        """End the process group."""
        if self.group is not None:
            dist.destroy_process_group()

    # --- orders -------------------------------------------------------------------------------------------------

    def tell(self, order: Any) -> None:
        """Rank 0 tells all others, which hear it; another rank that calls this has heard it.

        Raises:
            RanksBroken: one of them is not there any more.
        """
        if self.group is None or not self.leads:
            return
        try:
            dist.broadcast_object_list([order], src=0, group=self.group)
        except RuntimeError as error:
            reason, again = self.failure() or (str(error), True)
            raise RanksBroken(reason, again=again) from error

    def hear(self) -> Any:
        """What rank 0 tells next; waits for it."""
        orders = [None]
        dist.broadcast_object_list(orders, src=0, group=self.group)
        return orders[0]

    # --- agreement ----------------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def agree(self, error: MorError | None) -> None:
        """Raise on every rank what the first that failed met."""
        for met in self.gather(error):
            if met is not None:
                raise met

    # --- failure ------------------------------------------------------------------------------------------------

    def fail(self, reason: str, *, again: bool) -> None:
        """Leave word for rank 0 before this rank ends in the middle of a step. ``again``: the run may go on."""
        if self._store is not None:
            self._store.set(_FAILURE, f"{'again' if again else 'failed'}:rank {self.rank}: {reason}")

    def failure(self) -> tuple[str, bool] | None:
        """Why a rank ended, and whether the run may go on; nothing when it could not say."""
        if self._store is None or not self._store.check([_FAILURE]):
            return None
        kind, _, reason = self._store.get(_FAILURE).decode().partition(":")
        return reason, kind == "again"


def _start(store: Any, rank: int, size: int) -> str:
    """A name that the ranks of this start share, and no earlier one has.

    ``torchrun`` keeps its store when it starts all ranks again, and with it the addresses of those that ended. So each
    rank tells rank 0 a name that only it has, and is told the start's name by that.

    Raises:
        RanksBroken: not all ranks came.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"mor/hello/{rank}", own)
        store.wait([f"mor/welcome/{own}"], _START)
        name = str(store.get(f"mor/welcome/{own}").decode())
        store.set(f"mor/came/{name}/{rank}", "")
        return name
    deadline = time.monotonic() + _START.total_seconds()
    missing = set(range(1, size))
    while missing:
        if time.monotonic() > deadline:
            raise RanksBroken(f"ranks {sorted(missing)} of {size} did not come in {_START}", again=True)
        for other in missing:
            if store.check([f"mor/hello/{other}"]):
                store.set(f"mor/welcome/{store.get(f'mor/hello/{other}').decode()}", own)
        missing = {other for other in missing if not store.check([f"mor/came/{own}/{other}"])}
        time.sleep(0.02)
    return own


def divided(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Divide items over ranks so that the sums of their sizes are nearly alike: largest first, each to the rank with
    least so far (R. L. Graham, 1969: at most 4/3 of the best). A function of the sizes alone; items keep their order.
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        least = loads.index(min(loads))
        parts[least].append(item)
        loads[least] += sizes[item]
    return [sorted(part) for part in parts]


def depart(status: int) -> NoReturn:
    """End the process of one of several ranks whose work is done. Not by the interpreter's own way out: threads of gloo
    may outlive the group for a moment, and C++ aborts a process that destroys them then."""
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
