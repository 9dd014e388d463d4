"""Check of an event before it enters the history: what is stored must be served by every route."""

from __future__ import annotations

from base64 import b64decode
from typing import Annotated, Any

from mor_core.errors import Invalid
from mor_core.run_alerts import AlertName
from mor_core.run_status import RunCheckpoint, SampleGroup
from mor_core.step_metrics import StepMetrics
from mor_core.wire import Count, EventRecord, Finite, GroupId, Sha256
from pydantic import BaseModel, ConfigDict, Field

from mor_trainer.event_log import event_number

_LONGEST_THUMBNAIL = 1 << 20
"""Characters of a thumbnail in base64; one has a few kilobytes."""


class _Data(BaseModel):
    """Fields of an event's data that run control reads; it may have others."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _State(_Data):
    from_step: Count = 0


class _Step(_Data):
    gate_version: Count | None = None


class _Evaluation(_Data):
    reward: Finite | None


class _Weights(_Data):
    version: Count
    seconds: Annotated[Finite, Field(ge=0)]


class _Replay(_Data):
    letter: Count
    issued: bool


class _Letter(_Data):
    stage: str | None = None
    stream: str | None = None
    attempts: Count | None = None
    record: str | None = None


class _Alert(_Data):
    name: AlertName
    reason: str
    over: bool = False
    """True where the alert's cause is over."""
    group_id: GroupId | None = None
    letter: _Letter | None = None


class _Samples(_Data):
    groups: tuple[dict[str, Any], ...]
    thumbnails: dict[Sha256, Annotated[str, Field(max_length=_LONGEST_THUMBNAIL)]] = {}


_KINDS: dict[str, type[_Data]] = {
    "state": _State,
    "step": _Step,
    "evaluation": _Evaluation,
    "weights": _Weights,
    "replay": _Replay,
    "alert": _Alert,
    "samples": _Samples,
}


def check_event(event: EventRecord, *, attempts: int, steps: int) -> None:
    """Check an event of a run that was claimed ``attempts`` times and has ``steps`` steps.

    Raises:
        Exception: the event does not fit; the history must not take it.
    """
    attempt, _ = event_number(event)
    if not 1 <= attempt <= attempts:
        raise Invalid(f"the event is of attempt {attempt}; the run has had {attempts}")
    if event.step > steps:
        raise Invalid(f"the event is of step {event.step}; the run has {steps}")
    if "trainer" not in event.stamps:
        raise Invalid("the event has no time, stamps.trainer")
    data = event.data
    if event.kind in _KINDS:
        _KINDS[event.kind].model_validate(data, extra="ignore")
    if event.kind == "step":
        StepMetrics.read(data)
    elif event.kind == "checkpoint":
        RunCheckpoint.model_validate({"step": event.step, "at": event.stamps["trainer"], **data}, extra="ignore")
    elif event.kind == "samples":
        for group in data["groups"]:
            SampleGroup.model_validate({"step": event.step, **group}, extra="ignore")
        for content in data.get("thumbnails", {}).values():
            b64decode(content, validate=True)
    elif event.kind == "alert" and data["name"] in ("group_dropped", "unreadable_record") and "group_id" not in data:
        raise Invalid(f"an alert {data['name']} names no group")
