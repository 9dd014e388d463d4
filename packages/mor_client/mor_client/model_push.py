"""Push of a run's model by run control, which has the files, to a hub or a registry."""

from __future__ import annotations

import time
from collections.abc import Callable

from mor_core.run_storage import ExportRequest, ModelPush, PushRequest

from mor_client.errors import ServiceError
from mor_client.model_download import prepare_export
from mor_client.transport import Transport

_POLL_S = 2.0
"""Pause between questions whether the model is there, seconds; a push takes minutes."""


def push_model(
    control: Transport, run: str, request: ExportRequest, push: PushRequest, told: Callable[[str], object]
) -> ModelPush:
    """Have run control export a model and push it, and return the push once it is done.

    Raises:
        ServiceError: run control refused, or the export or the push failed.
    """
    export = prepare_export(control, run, request, told)
    place = f"/v1/runs/{run}/exports/{export.name}/push"
    made: ModelPush = control.call("POST", place, ModelPush, json=push.model_dump(mode="json"), idempotent=True)
    told(f"run control pushes {export.name}, {sum(file.bytes for file in export.files):,} bytes, to {push.destination}")
    while made.state == "pushing":
        time.sleep(_POLL_S)
        made = control.get(place, ModelPush)
    if made.state == "failed":
        raise ServiceError("control", f"{export.name} of run {run} is not there: {made.error}", "push again")
    return made
