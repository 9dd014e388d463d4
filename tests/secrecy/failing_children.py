"""Child processes that fail with marked secrets in hand, each started as the code starts its own."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import logging.config
import multiprocessing
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

from mor_core import logs

from tests.secrecy.marks import fail, quote_all


def say_and_fail() -> None:
    """Log as libraries do, lose a task's exception, and end with another."""
    try:
        fail()
    except Exception:
        for name in ("vllm.v1.engine.core", "transformers", "a.library", None):
            logging.getLogger(name).exception("work failed")

    async def lose() -> None:
        lost = asyncio.create_task(asyncio.to_thread(fail))
        await asyncio.wait([lost])

    asyncio.run(lose())
    gc.collect()
    warnings.warn(quote_all(), UserWarning, stacklevel=1)
    fail()


def in_a_pool() -> None:
    """As ``mor_core.prompt_check`` does."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=logs.for_children()) as pool, suppress(Exception):
        pool.submit(say_and_fail).result()


def in_an_engine() -> None:
    """As vLLM does in its own processes."""
    from mor_rollout.engines.vllm.error_log import ErrorLog

    errors = ErrorLog("info", "json")
    try:
        config = json.loads(Path(errors.open().pylogging_config_file).read_text())
        child = multiprocessing.get_context("spawn").Process(target=_configured, args=(config,))
        child.start()
        child.join()
        assert child.exitcode == 1
    finally:
        errors.close()


def _configured(config: dict[str, object]) -> None:
    logging.config.dictConfig(config)
    say_and_fail()


if __name__ == "__main__":
    logs.configure("info", "json")
    {"pool": in_a_pool, "engine": in_an_engine, "rank": say_and_fail}[sys.argv[1]]()
