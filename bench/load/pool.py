"""CPU time of a call by the number of calls that wait for one client: httpx's pool alone, and the router's limit first.

httpx looks through all waiting requests whenever a connection comes free, so that the work grows with their square.
The router lets only as many calls at the pool as a client takes at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx
from mor_router.clients.call_limit import CallLimit
from mor_router.clients.caller import RUNS

from load.reward_clients import TOKEN
from load.router_load import reward_clients

CONCURRENCY = 4
"""Calls that a client takes at a time: the router's default."""
_DEADLINE_S = 600.0
_LEAST_CALLS = 512
"""Calls of a measurement, at least: few of them at once are repeated."""


async def measure(waiting: Sequence[int]) -> dict[str, Any]:
    """Measure both ways at each number of calls."""
    found: dict[str, Any] = {"concurrency": CONCURRENCY, "cpu_ms_per_call": {}}
    with reward_clients() as address:
        for title, limited in (("httpx's pool alone", False), ("the router's limit before it", True)):
            found["cpu_ms_per_call"][title] = {
                str(count): await _cpu_ms(f"{address}/0/v1/card", count, limited=limited) for count in waiting
            }
            print(title, found["cpu_ms_per_call"][title], flush=True)
    return found


async def _cpu_ms(url: str, at_once: int, *, limited: bool) -> float:
    """Return the milliseconds of this process's CPU time for a call, of ``at_once`` that are made together."""
    limit = CallLimit(CONCURRENCY)
    limits = httpx.Limits(max_connections=CONCURRENCY + 1)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(limits=limits, headers=headers, timeout=_DEADLINE_S, trust_env=False) as http:

        async def call() -> None:
            if not limited:
                (await http.get(url)).raise_for_status()
                return
            async with limit.hold(RUNS, asyncio.get_running_loop().time() + _DEADLINE_S):
                (await http.get(url)).raise_for_status()

        await call()
        rounds = max(1, _LEAST_CALLS // at_once)
        begun = time.process_time()
        for _ in range(rounds):
            await asyncio.gather(*(call() for _ in range(at_once)))
        return 1e3 * (time.process_time() - begun) / (rounds * at_once)
