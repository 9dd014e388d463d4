"""Faults, each a class with ``inject`` and ``heal``. Its docstring says what happens, for the table of the guide."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError

from tests.chaos.cluster import RUN_LEASE_S, Cluster
from tests.chaos.link_proxy import Mode
from tests.chaos.service_process import ServiceProcess
from tests.ports import free_port


@dataclass
class Fault(ABC):
    """One fault of the plan. The plan follows from the seed alone; ``pick`` chooses among what exists by then."""

    what: str
    """Role, link or thing that breaks."""
    seconds: float
    """Time until ``heal``."""
    pick: int
    """Number that chooses the process, link or file."""

    @property
    def kind(self) -> str:
        return f"{type(self).__name__} {self.what}"

    @abstractmethod
    def inject(self, cluster: Cluster) -> str:
        """Break it and return what was broken."""

    def heal(self, cluster: Cluster) -> None:
        """Mend what the network or a colleague mends in time; by default nothing. MoR itself is left alone."""
        del cluster

    def _one(self, names: list[str]) -> str:
        return names[self.pick % len(names)]

    def _process(self, cluster: Cluster) -> ServiceProcess:
        """Choose a process of the role; of the workers one that holds a run."""
        names = cluster.roles()[self.what]
        if self.what == "worker":
            names = sorted(cluster.held_runs()) or names
        return cluster.services[self._one(names)]


class Killed(Fault):
    """SIGKILL. The process starts again; another worker, or the same one, resumes the run from its checkpoint."""

    def inject(self, cluster: Cluster) -> str:
        process = self._process(cluster)
        process.signal(signal.SIGKILL)
        return process.name


class Frozen(Fault):
    """SIGSTOP, then SIGCONT. Others take over; what wakes up finds its lease lost and touches nothing."""

    def inject(self, cluster: Cluster) -> str:
        self._frozen = self._process(cluster)
        self._frozen.signal(signal.SIGSTOP)
        return self._frozen.name

    def heal(self, cluster: Cluster) -> None:
        self._frozen.signal(signal.SIGCONT)


class Upgraded(Fault):
    """SIGTERM of one process after the other, as at a rolling upgrade. Each hands back its work and starts again."""

    def inject(self, cluster: Cluster) -> str:
        names = cluster.roles()[self.what]
        for name in names:
            starts = cluster.services[name].starts
            cluster.services[name].signal(signal.SIGTERM)
            deadline = time.monotonic() + 45
            while cluster.services[name].starts == starts and time.monotonic() < deadline:
                time.sleep(0.1)
        return ", ".join(names)


class Broken(Fault):
    """A link is refused, hangs, passes one way, is slow, half open, reset, garbled, or of a newer release."""

    def inject(self, cluster: Cluster) -> str:
        mode: Mode = self.what.partition(" ")[2]  # type: ignore[assignment]
        names = sorted(cluster.links)
        if mode in ("newer", "garbled"):
            names = [name for name in names if not name.endswith(">queue") and name != "user>control"]
        self._link = cluster.links[self._one(names)]
        self._link.set(mode)
        return f"{self._link.name} {mode}"

    def heal(self, cluster: Cluster) -> None:
        self._link.set("pass")


class Queue(Fault):
    """The queue server is killed, hangs, comes back empty, or has no memory left. Work waits and is issued again."""

    def inject(self, cluster: Cluster) -> str:
        queue = cluster.services["queue"]
        match self.what:
            case "killed":
                queue.signal(signal.SIGKILL)
            case "hung":
                queue.signal(signal.SIGSTOP)
            case "emptied":
                with contextlib.suppress(RedisError):
                    cluster.redis.flushall()
            case "back empty":
                queue.held = True
                queue.signal(signal.SIGKILL)
                time.sleep(0.3)
                shutil.rmtree(cluster.folder / "queue", ignore_errors=True)
                (cluster.folder / "queue").mkdir()
                queue.held = False
            case "out of memory":
                with contextlib.suppress(RedisError):
                    cluster.redis.config_set("maxmemory", "1mb")
        return f"queue server {self.what}"

    def heal(self, cluster: Cluster) -> None:
        if self.what == "hung":
            cluster.services["queue"].signal(signal.SIGCONT)
        if self.what == "out of memory":
            with contextlib.suppress(RedisError):
                cluster.redis.config_set("maxmemory", "0")


class Disk(Fault):
    """The disk of runs is full. Steps wait, with an alert, and go on when there is room."""

    def inject(self, cluster: Cluster) -> str:
        if cluster.disk is None:
            return "nothing: no right to mount"
        self._ballast = cluster.disk / "ballast"
        left = shutil.disk_usage(cluster.disk).free
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, left - (1 << 20)))
            file.seek(0, os.SEEK_END)
            while True:
                file.write(bytes(4096))
        return "disk of runs full"

    def heal(self, cluster: Cluster) -> None:
        if cluster.disk is not None:
            self._ballast.unlink(missing_ok=True)


class Clock(Fault):
    """The system clock of one process jumps by a minute or an hour, ahead or back. Nothing happens."""

    def inject(self, cluster: Cluster) -> str:
        if cluster.clock_library is None:
            return "nothing: no compiler"
        names = sorted(cluster.services)
        jump = {"skewed": 60, "jumps": 3600}[self.what] * (1 if self.pick % 2 else -1)
        self._shifted = cluster.services["queue" if self.pick % 5 == 0 else self._one(names)]
        self._shifted.set_clock(jump)
        return f"{self._shifted.name} {jump:+d} s"

    def heal(self, cluster: Cluster) -> None:
        if cluster.clock_library is not None:
            self._shifted.set_clock(0)


class Damaged(Fault):
    """A file is truncated, flipped or deleted. It is named and set aside; the run goes on from the newest good one."""

    def inject(self, cluster: Cluster) -> str:
        held = cluster.held_runs()
        folders = [cluster.runs / run for run in sorted(held.values())]
        patterns = {
            "weights": ["weights/[0-9]*/*"],
            "weights folder": ["weights"],
            "checkpoint": ["checkpoints/step-*/*"],
            "index": ["../_prompt_index/*/*", "../_prompt_index/*"],
        }[self.what]
        for folder in folders:
            for pattern in patterns:
                found = [path for path in folder.glob(pattern) if path.is_file() or self.what == "weights folder"]
                if found:
                    newest = max(found, key=lambda path: (path.parent.name, path.stat().st_size))
                    how = self._damage(newest)
                    if self.what != "weights":  # what is read at a start only
                        for name, run in held.items():
                            if run == folder.name:
                                cluster.services[name].signal(signal.SIGKILL)
                    return f"{newest.relative_to(cluster.runs)} {how}"
        return "nothing: no such file yet"

    def _damage(self, path: Path) -> str:
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                return "deleted"
            size, how = path.stat().st_size, ("truncated", "flipped", "deleted")[self.pick % 3]
            path.chmod(0o644)
            if how == "deleted":
                path.unlink()
            else:
                with path.open("r+b") as file:
                    if how == "truncated":
                        file.truncate(size // 2)
                    else:
                        file.seek(size // 2)
                        byte = file.read(1) or b"\0"
                        file.seek(size // 2)
                        file.write(bytes([byte[0] ^ 0xFF]))
            return how
        return "gone before"


class Client(Fault):
    """A client is slow, fails, or sends no numbers, too few, or extreme ones. Groups wait for it; only it is harmed."""

    def inject(self, cluster: Cluster) -> str:
        self._client = self._one(cluster.clients)
        lies = ("not a number", "too few", "extreme")
        how = self.what if self.what in ("slow", "failing") else lies[self.pick % len(lies)]
        cluster.behaviour(self._client).write_text(how)
        return f"{self._client} {how}"

    def heal(self, cluster: Cluster) -> None:
        cluster.behaviour(self._client).unlink(missing_ok=True)


class Second(Fault):
    """A second run control starts on the same folder. It takes no run from the first, and leaves no trace."""

    def inject(self, cluster: Cluster) -> str:
        command, environment = cluster.control_command(MOR_PORT=str(free_port()))
        self._second = ServiceProcess("control-second", command, environment, cluster.folder)
        self._second.tick()
        return "a second run control"

    def heal(self, cluster: Cluster) -> None:
        self._second.end(15)


LONG_S = RUN_LEASE_S + 3
"""Longer than a lease, so that a frozen worker is superseded."""
_DECK: list[tuple[type[Fault], str, Callable[[random.Random], float]]] = [
    *((Killed, role, lambda dice: 0.0) for role in ("worker", "engine", "router", "control", "client")),
    *((Frozen, role, lambda dice: dice.uniform(2, LONG_S)) for role in ("engine", "router", "control", "client")),
    (Frozen, "worker", lambda dice: LONG_S),
    *((Upgraded, role, lambda dice: 0.0) for role in ("worker", "engine", "router", "control")),
    *(
        (Broken, f"link {mode}", lambda dice: dice.uniform(2, 6))
        for mode in ("refuse", "hang", "one_way", "slow", "half_open", "cut", "newer", "garbled")
    ),
    (Broken, "link hang", lambda dice: LONG_S),
    *((Queue, what, lambda dice: 0.0) for what in ("killed", "emptied", "back empty")),
    *((Queue, what, lambda dice: dice.uniform(2, 6)) for what in ("hung", "out of memory")),
    (Disk, "full", lambda dice: dice.uniform(3, 8)),
    *((Clock, what, lambda dice: dice.uniform(2, 6)) for what in ("skewed", "jumps")),
    *((Damaged, what, lambda dice: 0.0) for what in ("weights", "weights folder", "checkpoint", "index")),
    *((Client, what, lambda dice: dice.uniform(2, 6)) for what in ("slow", "failing", "lying")),
    (Second, "control", lambda dice: 6.0),
]
"""Every kind once, with its duration. A seed goes through the deck, shuffled, as often as it needs to."""


def plan(seed: int, count: int, *, only: str = "") -> list[Fault]:
    """Return the faults of a seed; the regular expression ``only`` keeps the kinds in which it occurs."""
    dice = random.Random(seed)
    deck = [card for card in _DECK if re.search(only, f"{card[0].__name__} {card[1]}")]
    found: list[Fault] = []
    while len(found) < count:
        hand = deck.copy()
        dice.shuffle(hand)
        found += [kind(what, seconds(dice), dice.randrange(1 << 16)) for kind, what, seconds in hand]
    return found[:count]
