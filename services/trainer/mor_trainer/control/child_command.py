"""Commands of ``mor-trainer`` that run control runs as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

from mor_core.errors import Conflict

_KEPT_BYTES = 2000
"""Last bytes of what a command writes: the reason of a failure, or its result; warnings come before."""


class CommandKilled(Conflict):
    """A command was killed from outside."""


async def run_command(name: str, *arguments: str) -> str:
    """Run a command and return the last line that it printed. It is killed where the caller is cancelled.

    Raises:
        CommandKilled: it was killed, as by the kernel for want of memory.
        Conflict: it failed; the message has its reason.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mor_trainer", name, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        printed, said = await asyncio.gather(_last_line(process.stdout), _last_line(process.stderr))
        status = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if status == -signal.SIGKILL:
        raise CommandKilled(f"mor-trainer {name} was killed")
    if status:
        raise Conflict((said or f"exit status {status}").removeprefix("mor-trainer: "))
    return printed


async def _last_line(stream: asyncio.StreamReader) -> str:
    kept = b""
    while part := await stream.read(1 << 16):
        kept = (kept + part)[-_KEPT_BYTES:]
    lines = kept.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
