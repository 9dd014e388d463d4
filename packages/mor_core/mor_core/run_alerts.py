"""Alerts of runs: their names, and what run control tells about each."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from mor_core.wire import Documented

AlertName = Literal[
    "group_dropped",
    "prompts_left_out",
    "unreadable_record",
    "checkpoint_unreadable",
    "weights_republished",
    "engine_disagrees",
    "non_finite",
    "out_of_memory",
    "group_divided",
    "weight_transfer_failed",
    "queue_lost",
    "waiting_for_clients",
    "waiting_for_engine",
    "worker_lost",
    "run_failed",
    "tracker_failed",
    "disk_low",
    "disk_full",
    "kl_over_bound",
    "entropy_collapse",
    "identical_responses",
    "reward_diverges",
    "groups_without_signal",
    "responses_truncated",
]
"""Names of alerts; docs/status.md lists their causes."""


class Alert(Documented):
    """An alert for a person. The same alert of the same run is one entry until somebody acknowledges it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": 7,
                    "run": "three-domains-1a2b3c",
                    "name": "group_dropped",
                    "reason": "the clients that answered held 0.31 of the gate weight, 0.5 is wanted",
                    "step": 40,
                    "first_at": 1767225600.0,
                    "last_at": 1767225660.0,
                    "count": 3,
                    "acknowledged_at": 1767225900.0,
                    "acknowledged_by": "ops",
                    "note": "the client's certificate was renewed",
                    "webhook": "sent",
                }
            ]
        }
    )

    id: int
    run: str
    name: str
    reason: str
    """Reason of the latest occurrence."""
    step: int | None
    first_at: float
    """Unix time, seconds."""
    last_at: float
    count: int
    """Occurrences until somebody acknowledged it."""
    acknowledged_at: float | None
    acknowledged_by: str | None
    note: str | None
    webhook: Literal["off", "waiting", "sent", "given up"]
    """Delivery to the webhook; ``off`` where none was set when the alert was raised."""


class Acknowledgement(Documented):
    """Request to acknowledge an alert."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "the client's certificate was renewed"}]})

    note: str | None = None
    """Remark for colleagues, such as the action taken."""
