"""Sweeps of the shared folder of blobs, by run control, which knows the runs."""

from __future__ import annotations

import asyncio
import random

import structlog
from mor_core.blob_sweep import sweep
from mor_core.failures import describe_failure
from mor_core.tasks import in_thread

from mor_trainer.control.run_store import RunStore

_PAUSE_S = 3600.0
"""Mean seconds between sweeps: what they delete is a week old."""
_FIRST_S = 60.0
"""Seconds before the first sweep, so that run control has started by then."""
_LINGER_S = 86400.0
"""Seconds after a run's end in which it still counts as active."""

log = structlog.get_logger(__name__)


async def keep_sweeping(
    directory: str | None, runs: RunStore, *, pause_s: float = _PAUSE_S, linger_s: float = _LINGER_S
) -> None:
    """Delete what runs that vanished left in ``directory``, again and again, until cancelled."""
    if directory is None:
        return
    after = ""
    await asyncio.sleep(min(_FIRST_S, pause_s))
    while True:
        try:
            swept = await in_thread(sweep, directory, frozenset(runs.active(linger_s)), after)
            after = swept.last_run
            if swept.files:
                log.info("blobs of ended runs deleted", runs=swept.runs, files=swept.files, bytes=swept.bytes)
        except Exception as error:  # a store that is away now may be there at the next sweep
            log.warning("the folder of blobs cannot be swept", setting="MOR_BLOB_DIR", error=describe_failure(error))
        await asyncio.sleep(random.uniform(0.7, 1.3) * pause_s)
