"""Route of a run's events as they happen, as server-sent events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header
from mor_core.auth import Principal
from mor_core.errors import NotFound, Unavailable
from mor_core.run_status import Event
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse

from mor_trainer.control import redaction
from mor_trainer.control.cursors import event_cursor, parse_cursor
from mor_trainer.control.database import HistoryUnavailable
from mor_trainer.control.history import History
from mor_trainer.control.ingest import Watchers
from mor_trainer.control.run_store import RunStore
from mor_trainer.routes.dependencies import HistoryDep, Reader, RunStoreDep, SettingsDep, WatchersDep

router = APIRouter(prefix="/v1/runs/{run}", tags=["status"])

_LONGEST_SILENCE_S = 5.0
"""Longest wait before the history is read again, so that a missed wake-up delays an event by no more."""
_SEND_TIMEOUT_S = 30.0
"""A reader that takes nothing for this long is gone."""
_RETRY_S = 10.0
"""``Retry-After`` of a refused reader; a page that was closed frees its stream by then."""
_EXAMPLE = (
    'id: first-1a2b3c/41\nevent: step\ndata: {"id": 41, "kind": "step", "step": 7, "at": 1767225600.0, "data": {}}'
)


@router.get(
    "/events",
    summary="Events as they happen (SSE)",
    response_class=EventSourceResponse,
    responses={200: {"content": {"text/event-stream": {"example": _EXAMPLE}}}},
)
async def events(
    run: str,
    *,
    runs: RunStoreDep,
    history: HistoryDep,
    watchers: WatchersDep,
    settings: SettingsDep,
    caller: Reader,
    last_event_id: Annotated[str | None, Header(description="Continue after this event.")] = None,
) -> EventSourceResponse:
    """Follow a run. The ``id`` of an event is the cursor; without ``Last-Event-ID`` the stream starts from now. When
    events after the cursor are no longer kept, the first event is a ``gap``: read ``/metrics`` again. Comments keep an
    idle stream open. It ends within seconds of the caller's token."""
    runs.revision(run)
    after = runs.last_event(run) if last_event_id is None else parse_cursor(run, last_event_id)
    reader = _reader(caller)
    if not watchers.readers.take(reader):
        raise Unavailable(
            f"{watchers.readers.total} event streams are open, MOR_MAX_EVENT_READERS allows no more; close one, or "
            "raise it",
            _RETRY_S,
        )
    watchers.readers.give_back(reader)
    return EventSourceResponse(
        _follow(run, after, runs, history, watchers, caller),
        ping=max(1, round(settings.sse_heartbeat_s)),
        send_timeout=_SEND_TIMEOUT_S,
    )


async def _follow(  # noqa: PLR0917 - FastAPI's parts, as the route has them
    run: str, after: int, runs: RunStore, history: History, watchers: Watchers, caller: Principal
) -> AsyncIterator[ServerSentEvent]:
    reader = _reader(caller)
    if not watchers.readers.take(reader):  # another took the last one between the check and the first byte
        return
    try:
        pruned = history.pruned(run)
        if after < pruned:
            after = pruned
            yield _sent(run, Event(id=pruned, kind="gap", step=None, at=time.time(), data={}))
        while True:
            found = history.events(run, after)
            for event in found:
                after = event.id
                yield _sent(run, redaction.event(event, caller))
            if not found:
                await watchers.wait(run, _LONGEST_SILENCE_S)
                runs.revision(run)
    except (HistoryUnavailable, NotFound):  # the reader comes again with its cursor, and gets the reason
        return
    finally:
        watchers.readers.give_back(reader)


def _reader(caller: Principal) -> str:
    return f"{caller.scope}:{caller.name}"


def _sent(run: str, event: Event) -> ServerSentEvent:
    # In ASCII, because many readers take the other line separators of Unicode, which responses may have, for line ends.
    data = event.model_dump_json(ensure_ascii=True)
    return ServerSentEvent(data=data, event=event.kind, id=event_cursor(run, event.id))
