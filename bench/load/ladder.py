"""Steps of rising load, until the slowest of a hundred calls takes longer than its bound."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np

Call = Callable[[int], Awaitable[None]]
"""Makes one call; its argument numbers the calls."""


@dataclass(frozen=True)
class Step:
    """Figures of one level of load."""

    at_once: int
    """Calls in flight."""
    calls: int
    per_second: float
    p50_s: float
    p99_s: float
    cores: float
    """Cores that the measured processes were busy on."""


async def climb(call: Call, processes: Sequence[int], *, seconds: float, bound_s: float, most: int) -> list[Step]:
    """Double the calls in flight from 1 until ``most``, or until their 99th percentile is over its bound."""
    numbers, steps = count(), list[Step]()
    at_once = 1
    while at_once <= most:
        steps.append(await _step(call, numbers, at_once, processes, seconds))
        if steps[-1].p99_s > bound_s:
            break
        at_once *= 2
    return steps


def summary(steps: Sequence[Step], bound_s: float) -> dict[str, object]:
    """Return all steps, and the one with most calls a second of those within the bound."""
    within = [step for step in steps if step.p99_s <= bound_s]
    best = max(within, key=lambda step: step.per_second, default=None)
    return {"steps": [asdict(step) for step in steps], "best": None if best is None else asdict(best)}


async def _step(call: Call, numbers: count[int], at_once: int, processes: Sequence[int], seconds: float) -> Step:
    taken: list[float] = []
    begun, busy = time.monotonic(), cpu_seconds(processes)

    async def caller() -> None:
        while time.monotonic() - begun < seconds:
            started = time.monotonic()
            await call(next(numbers))
            taken.append(time.monotonic() - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(caller())
    spent = time.monotonic() - begun
    p50, p99 = np.quantile(taken, (0.5, 0.99))
    cores = (cpu_seconds(processes) - busy) / spent
    return Step(at_once, len(taken), len(taken) / spent, float(p50), float(p99), cores)


def cpu_seconds(processes: Sequence[int]) -> float:
    """Return the CPU seconds that processes have used, of all their threads."""
    tick = os.sysconf("SC_CLK_TCK")
    used = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / tick
