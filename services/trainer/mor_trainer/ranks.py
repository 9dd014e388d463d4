"""The processes that train one model together, as ``torchrun`` starts them, and the messages between them.

Rank 0 is the leader: it alone calls run control and the queue server, and sends orders to the others. Objects travel
over a separate gloo group, whatever the tensors travel over. ``torch.distributed`` pickles them; they come from
processes of the same job only.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from mor_core.errors import MorError
from mor_core.failures import describe_failure
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from mor_trainer.rank_watch import watched

T = TypeVar("T")

_ORDER_TIMEOUT = timedelta(days=365)
"""In effect none: a paused run keeps the other ranks waiting. A rank that ends closes its connections, which ends their
wait; ``watched`` ends it for one that is frozen."""
_JOIN_TIMEOUT = timedelta(minutes=10)
"""Longest wait for all ranks to start: nodes may pull an image first."""
_JOIN_POLL_S = 0.02
"""Seconds between checks for ranks that have not joined; the whole start takes seconds."""
_FAILURE = "failure"


class RanksBroken(MorError):
    """Failure of a rank in the middle of common work; all ranks must be started again.

    ``retryable``: the run may continue then; otherwise it failed.
    """

    def __init__(self, reason: str, *, retryable: bool) -> None:
        super().__init__(reason)
        self.retryable = retryable


class Abandoned(BaseException):
    """The process is to end, and the work in progress is worth nothing; like ``KeyboardInterrupt`` no ``Exception``."""


def world_size() -> int:
    """Return the number of ranks that ``torchrun`` started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_of(setting: str) -> torch.device:
    """Return the device that this process trains on: the accelerator of its local rank, or the CPU."""
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
        """True once an operator or the system requested the end of this process, or on rank 0 of any rank."""
        self._abandonable = False
        self.mesh: DeviceMesh | None = None
        self.group: dist.ProcessGroup | None = None
        """For objects; ``None`` in a single process."""
        self._store: Any = None

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Join the ranks that ``torchrun`` started, and wait for all of them. Tensors travel over NCCL on CUDA and over
        gloo on the CPU."""
        if world_size() == 1:
            return cls(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store, rank, size = next(rendezvous("env://"))
        store = dist.PrefixStore(f"mor/{_agree_on_prefix(store, rank, size)}", store)  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        ranks = cls(device, rank, size)
        ranks._store = store
        ranks.mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
        ranks.group = dist.new_group(backend="gloo", timeout=_ORDER_TIMEOUT)
        return ranks

    def end(self) -> None:
        """Request the end of this process. Called by a signal's handler, it ends abandonable work at once.

        Raises:
            Abandoned: the work in progress is abandonable.
        """
        self.ending = True
        if self._abandonable:
            self._abandonable = False
            raise Abandoned

    @contextlib.contextmanager
    def abandonable(self) -> Iterator[None]:
        """Have ``end`` raise ``Abandoned`` in the body, on the main thread, where signals are handled.

        The body must leave nothing half done, and keep no exception for later. Of several ranks none leaves the
        others.

        Raises:
            Abandoned: the process is to end.
        """
        alone = self.group is None and threading.current_thread() is threading.main_thread()
        if alone and self.ending:
            raise Abandoned
        self._abandonable = alone
        try:
            yield
        finally:
            self._abandonable = False

    def watched(self, longest_s: float) -> contextlib.AbstractContextManager[None]:
        """End this process, while the body runs, where another rank is silent for ``longest_s`` seconds."""
        if self._store is None:
            return contextlib.nullcontext()
        return watched(self._store, self.rank, self.size, longest_s)

    @property
    def leads(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    def leave(self) -> None:
        """End the process group."""
        if self.group is not None:
            dist.destroy_process_group()

    # --- orders -------------------------------------------------------------------------------------------------

    def broadcast(self, order: Any) -> None:
        """Send an order from rank 0 to all others, which ``receive`` it. Do nothing on another rank.

        Raises:
            RanksBroken: one of them has ended.
        """
        if self.group is None or not self.leads:
            return
        try:
            dist.broadcast_object_list([order], src=0, group=self.group)
        except RuntimeError as error:
            reason, retryable = self.reported_failure() or (describe_failure(error), True)
            raise RanksBroken(reason, retryable=retryable) from error

    def receive(self) -> Any:
        """Wait for the next order of rank 0 and return it."""
        orders = [None]
        dist.broadcast_object_list(orders, src=0, group=self.group)
        return orders[0]

    # --- exchange -----------------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in the order of the ranks, on every rank."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def raise_first(self, error: MorError | None) -> None:
        """Raise on every rank the error of the first rank that has one."""
        for raised in self.gather(error):
            if raised is not None:
                raise raised

    # --- failure ------------------------------------------------------------------------------------------------

    def report_failure(self, reason: str, *, retryable: bool) -> None:
        """Leave the reason for rank 0 before this rank ends in the middle of a step.

        ``retryable``: the run may continue after a restart.
        """
        if self._store is not None:
            self._store.set(_FAILURE, f"{'again' if retryable else 'failed'}:rank {self.rank}: {reason}")

    def reported_failure(self) -> tuple[str, bool] | None:
        """Return the reason that an ended rank left, and whether the run may continue; ``None`` if it left none."""
        if self._store is None or not self._store.check([_FAILURE]):
            return None
        kind, _, reason = self._store.get(_FAILURE).decode().partition(":")
        return reason, kind == "again"


def _agree_on_prefix(store: Any, rank: int, size: int) -> str:
    """Return a name that all ranks of this start share and that no earlier start has used.

    ``torchrun`` keeps its store when it starts all ranks again, and with it the addresses of those that ended. So each
    rank sends rank 0 a name that only it has, and rank 0 answers under that name with the name of this start.

    Raises:
        RanksBroken: a rank did not join in time.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"mor/hello/{rank}", own)
        store.wait([f"mor/welcome/{own}"], _JOIN_TIMEOUT)
        name = str(store.get(f"mor/welcome/{own}").decode())
        store.set(f"mor/came/{name}/{rank}", "")
        return name
    deadline = time.monotonic() + _JOIN_TIMEOUT.total_seconds()
    missing = set(range(1, size))
    while missing:
        if time.monotonic() > deadline:
            raise RanksBroken(f"ranks {sorted(missing)} of {size} did not join within {_JOIN_TIMEOUT}", retryable=True)
        for other in missing:
            if store.check([f"mor/hello/{other}"]):
                store.set(f"mor/welcome/{store.get(f'mor/hello/{other}').decode()}", own)
        missing = {other for other in missing if not store.check([f"mor/came/{own}/{other}"])}
        time.sleep(_JOIN_POLL_S)
    return own


def balanced_partition(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Divide items over ranks so that the sums of their sizes are nearly equal; items keep their order.

    Largest first, each to the rank with the smallest sum so far: at most 4/3 of the best (R. L. Graham, 1969). A
    function of the sizes alone.
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        least = loads.index(min(loads))
        parts[least].append(item)
        loads[least] += sizes[item]
    return [sorted(part) for part in parts]


def exit_rank(status: int) -> NoReturn:
    """End the process of one of several ranks whose work is done, without the interpreter's own shutdown.

    Threads of gloo may outlive the group for a moment, and C++ aborts a process that destroys them then.
    """
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
