"""Routes of dead letters."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Query
from mor_core.errors import Conflict
from mor_core.openapi import problems
from mor_core.run_status import DeadGroup, DeadGroupRecord
from mor_core.runs import RunState
from mor_core.visibility import visible

from mor_trainer.routes.dependencies import Admin, DeadLettersDep, Number, Reader, RunStoreDep

router = APIRouter(prefix="/v1/runs/{run}/dead", tags=["dead letters"])

audit = structlog.get_logger("audit")


@router.get("", summary="Groups that were given up, newest first")
async def list_dead(
    run: str,
    dead_letters: DeadLettersDep,
    runs: RunStoreDep,
    _: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[DeadGroup]:
    """List dead letters. The trainer issues a group that a stage gives up again, MOR_GROUP_ATTEMPTS times in all; a
    group that fails every time becomes a dead letter."""
    runs.revision(run)
    return dead_letters.list(run, limit)


@router.get("/{letter}", summary="One dead letter, with its record")
async def one(
    run: str, letter: Number, dead_letters: DeadLettersDep, runs: RunStoreDep, caller: Reader
) -> DeadGroupRecord:
    runs.revision(run)
    return visible(dead_letters.get(run, letter), caller.scope, caller.name)


@router.post("/{letter}/replay", status_code=202, summary="Issue the group again", responses=problems(409))
async def replay(run: str, letter: Number, dead_letters: DeadLettersDep, runs: RunStoreDep, caller: Admin) -> DeadGroup:
    """Request a replay. The training process issues the group at the beginning of its next step, with all its
    attempts; ``replay`` shows the progress. A stopped or failed run does it once it is resumed."""
    state = runs.snapshot(run).state
    if state is RunState.finished:
        raise Conflict(f"run {run} is finished and takes no group any more; create a new run to continue")
    found = dead_letters.request_replay(run, letter, caller.name)
    audit.info("dead letter replayed", run=run, letter=letter, group=found.group_id, by=caller.name)
    return found
