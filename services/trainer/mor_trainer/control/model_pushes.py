"""Pushes of exported models to a hub or a registry, each by a process of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from mor_core.errors import Conflict, NotFound, Unavailable
from mor_core.failures import describe_failure
from mor_core.run_storage import ModelPush, PushRequest
from mor_core.tasks import stop

from mor_trainer.config import ControlSettings
from mor_trainer.control.child_command import run_command
from mor_trainer.control.model_exports import ModelExports
from mor_trainer.results.destination import check_allowed

_AT_ONCE = 4
"""Pushes at a time: they share the network with the services."""
_REMEMBERED = 100
"""Pushes whose outcome is remembered, newest last."""
_RETRY_S = 60.0

log = structlog.get_logger(__name__)
audit = structlog.get_logger("audit")


class ModelPushes:
    """Pushes of all runs. What became of them is remembered until run control ends."""

    def __init__(self, settings: ControlSettings, exports: ModelExports) -> None:
        self._settings, self._exports = settings, exports
        self._pushes: dict[tuple[str, str], ModelPush] = {}
        """Run and export -> its latest push."""
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._requests: dict[tuple[str, str], PushRequest] = {}
        """Run and export -> what is being done."""

    async def close(self) -> None:
        """End the pushes; the next ones continue them."""
        await stop(self._tasks.values())

    async def begin(self, run: str, export: str, request: PushRequest, by: str) -> ModelPush:
        """Begin to push an export that is ready, unless that is under way.

        Raises:
            Forbidden: run control's operator does not allow the destination.
            NotFound: no such run, or no such export.
            Conflict: the export is not ready, or is being pushed elsewhere.
            Unavailable: too many models are being pushed.
        """
        check_allowed(request.destination, self._settings.push_destinations)
        folder = await self._exports.ready_folder(run, export)
        key = (run, export)
        if key in self._tasks:
            under_way = self._requests[key]
            if under_way != request:
                visibility = "public" if under_way.public else "private"
                raise Conflict(
                    f"{export} of run {run} is being pushed to {under_way.destination} as {visibility}; wait for that"
                )
            return self._pushes[key]
        if len(self._tasks) >= _AT_ONCE:
            raise Unavailable(f"{_AT_ONCE} models are being pushed; try again when one of them is done", _RETRY_S)
        self._remember(key, ModelPush(run=run, export=export, destination=request.destination, state="pushing"))
        self._requests[key] = request
        self._tasks[key] = asyncio.create_task(self._push(key, folder, request), name="model push")
        audit.info("run pushed", run=run, by=by, export=export, to=request.destination, public=request.public)
        return self._pushes[key]

    async def get(self, run: str, export: str) -> ModelPush:
        """Return the latest push of an export.

        Raises:
            NotFound: no such run or export, or run control knows of no push.
        """
        await self._exports.get(run, export)
        found = self._pushes.get((run, export))
        if found is None:
            raise NotFound(
                f"run control knows of no push of {export} of run {run}: it was restarted, or there was none; "
                f"push again ('mor run push', or POST /v1/runs/{run}/exports/{export}/push): it continues"
            )
        return found

    async def _push(self, key: tuple[str, str], folder: Path, request: PushRequest) -> None:
        run, export = key
        try:
            async with asyncio.timeout(self._settings.push_timeout_s):
                public = ["--public"] if request.public else []
                address = await run_command("push", str(folder), request.destination, *public)
            outcome = {"state": "done", "address": address}
            log.info("model pushed", run=run, export=export, to=request.destination)
        except TimeoutError:
            limit = f"{self._settings.push_timeout_s:g} s (MOR_PUSH_TIMEOUT_S)"
            outcome = {"state": "failed", "error": f"the push took over {limit}; push again, and it continues"}
        except Exception as error:  # whoever asked for it reads the reason
            outcome = {"state": "failed", "error": describe_failure(error)}
            log.warning("the model could not be pushed", run=run, export=export, error=outcome["error"])
        finally:
            del self._tasks[key], self._requests[key]
        self._remember(key, self._pushes[key].model_copy(update=outcome))

    def _remember(self, key: tuple[str, str], push: ModelPush) -> None:
        self._pushes.pop(key, None)
        self._pushes[key] = push
        for old in [known for known in self._pushes if known not in self._tasks and known != key][:-_REMEMBERED]:
            del self._pushes[old]
