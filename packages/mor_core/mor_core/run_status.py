"""What the trainer's status API tells of a run besides its snapshot. What is not known is null, never 0."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from mor_core.wire import Documented, Finite, Sha256


class ClientFigures(Documented):
    """A client in one step."""

    reward_mean: Finite | None = None
    """Mean of its calibrated scores, logits; null where it answered nothing."""
    raw_mean: Finite | None = None
    """Mean of its scores as served."""
    weight: Finite | None = None
    """Mean share in the mixture."""
    seconds: Finite | None = None
    """Mean time in which it answered the router."""
    failures: dict[str, int] = Field(default_factory=dict)
    """Groups of the step that it failed, by status."""
    failures_total: dict[str, int] = Field(default_factory=dict)
    """The same since the run began."""


class MetricsHistory(Documented):
    """Metrics by step, oldest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run": "three-domains-1a2b3c",
                    "points": [{"step": 40, "at": 1767225600.0, "reward_mean": 0.42, "kl": 0.011, "step_seconds": 3.1}],
                    "evaluations": [{"step": 40, "reward": 0.5, "detail": "as the evaluation reported it"}],
                    "stride": 1,
                }
            ]
        }
    )

    run: str
    points: tuple[dict[str, Any], ...]
    """``step``, ``at`` (Unix time) and the metrics of the step."""
    evaluations: tuple[dict[str, Any], ...]
    """Finished evaluations after the step that was asked for."""
    stride: int
    """Steps between points: 1, or more where the history was down-sampled. The last step is always there."""


class ClientHistoryPoint(ClientFigures):
    step: int
    at: float


class ClientHistory(Documented):
    """One client in a run."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run": "three-domains-1a2b3c",
                    "client": "st-mary",
                    "latest": {"reward_mean": 0.3, "weight": 0.41, "failures": {}, "failures_total": {"timeout": 2}},
                    "weight_by_domain": {"medical": 0.82, "chart": 0.1},
                    "points": [{"step": 40, "at": 1767225600.0, "reward_mean": 0.3, "weight": 0.41}],
                    "stride": 1,
                }
            ]
        }
    )

    run: str
    client: str
    latest: ClientFigures | None
    """In the last step; null before the first, or where the client took no part."""
    weight_by_domain: dict[str, Finite | None]
    """Mean weight in the last step by domain label of the prompts."""
    points: tuple[ClientHistoryPoint, ...]
    """By step, oldest first."""
    stride: int
    """Steps between points."""


class RunClients(Documented):
    """The clients in the last step; empty before the first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run": "three-domains-1a2b3c",
                    "clients": {"st-mary": {"reward_mean": 0.3, "weight": 0.41, "failures": {}}},
                }
            ]
        }
    )

    run: str
    clients: dict[str, ClientFigures]


class SampleScore(Documented):
    """What one client said of a sample group."""

    client: str
    status: str
    detail: str | None = None
    weight: Finite
    """Share in the mixture."""
    raw: tuple[Finite, ...] | None = None
    """Scores as served, one for each response."""
    calibrated: tuple[Finite, ...] | None = None
    """Logits."""


class Sample(Documented):
    """A group with everything that led to its advantages."""

    step: int
    group_id: str
    prompt_id: str
    domain: str | None
    prompt: str
    """Text of the prompt, cut at 2,000 characters."""
    images: tuple[Sha256, ...]
    """Pictures of the prompt; ``/images/{sha256}`` has a thumbnail of each."""
    weights_version: int
    gate_version: int
    fusion: str
    responses: tuple[str, ...]
    rewards: tuple[Finite, ...] | None
    """Fused, in logits; null for a client's token."""
    advantages: tuple[Finite, ...] | None
    """Null for a client's token."""
    clients: tuple[SampleScore, ...]
    """Each client's scores and weight; its own only for a client's token."""


class Samples(Documented):
    """Newest sample groups first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run": "three-domains-1a2b3c",
                    "samples": [
                        {
                            "step": 40,
                            "group_id": "6f1c",
                            "prompt_id": "q17",
                            "domain": "chart",
                            "prompt": "user: How many bars are there?",
                            "images": [],
                            "weights_version": 39,
                            "gate_version": 2,
                            "fusion": "weighted",
                            "responses": ["Four.", "It is a chart."],
                            "rewards": [0.9, -0.4],
                            "advantages": [1.0, -1.0],
                            "clients": [
                                {
                                    "client": "st-mary",
                                    "status": "ok",
                                    "weight": 0.4,
                                    "raw": [2.0, -1.0],
                                    "calibrated": [0.8, -0.4],
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    )

    run: str
    samples: tuple[Sample, ...]


class Checkpoint(Documented):
    step: int
    at: float
    """Unix time, seconds."""
    path: str
    seconds: float | None = None
    """Time to write it."""


class Checkpoints(Documented):
    """Checkpoints written so far, oldest first; older ones may have been deleted since."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run": "three-domains-1a2b3c",
                    "checkpoints": [
                        {
                            "step": 20,
                            "at": 1767225600.0,
                            "path": "/runs/three-domains-1a2b3c/checkpoints/step-00000020",
                            "seconds": 1.4,
                        }
                    ],
                }
            ]
        }
    )

    run: str
    checkpoints: tuple[Checkpoint, ...]


class Event(Documented):
    """An event as readers of the stream get it."""

    id: int
    kind: str
    """``step``, ``state``, ``samples``, ``evaluation``, ``weights``, ``checkpoint``, ``alert``, ``replay``; or ``gap``:
    events after the cursor are no longer kept, read ``/metrics`` again."""
    step: int | None
    at: float
    """Unix time, seconds."""
    data: dict[str, Any]


AlertName = Literal[
    "group_dropped",
    "unreadable_record",
    "non_finite",
    "out_of_memory",
    "group_divided",
    "weight_transfer_failed",
    "queue_lost",
    "worker_lost",
    "run_failed",
    "tracker_failed",
]
"""What a run may raise; docs/status.md says when."""


class Alert(Documented):
    """Something that a person should look at. The same alert of the same run is one entry until it is acknowledged."""

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
    """Of the latest occurrence."""
    step: int | None
    first_at: float
    """Unix time, seconds."""
    last_at: float
    count: int
    """Occurrences until it was acknowledged."""
    acknowledged_at: float | None
    acknowledged_by: str | None
    note: str | None
    webhook: Literal["off", "waiting", "sent", "given up"]
    """Whether the webhook was told; ``off`` where none was set when the alert was raised."""


class Acknowledgement(Documented):
    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "the client's certificate was renewed"}]})

    note: str | None = None
    """What was done, for colleagues."""


class DeadGroup(Documented):
    """A group that was given up: no stage could do its work in all attempts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": 3,
                    "run": "three-domains-1a2b3c",
                    "group_id": "6f1c",
                    "stage": "router",
                    "stream": "rollouts",
                    "reason": "the clients that answered held 0.31 of the gate weight, 0.5 is wanted",
                    "attempts": 5,
                    "step": 40,
                    "at": 1767225600.0,
                    "replay": "asked",
                    "replay_asked_by": "ops",
                }
            ]
        }
    )

    id: int
    run: str
    group_id: str
    """``unreadable`` where the record could not be parsed."""
    stage: str | None
    """Where it was given up; null where it never came back."""
    stream: str | None
    reason: str
    attempts: int | None
    step: int
    at: float
    """Unix time, seconds."""
    replay: Literal["no", "asked", "issued", "not dropped"]
    """``asked``: the training process issues it again at its next step. ``issued``: it did. ``not dropped``: the group
    was under way or applied in this lineage."""
    replay_asked_by: str | None


class DeadGroupRecord(DeadGroup):
    record: str | None
    """The record as it stood in the stream (JSON), cut at 64,000 characters; null where none came back."""


class WorkerStatus(Documented):
    """A training process, as it last asked run control."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "worker-0-41",
                    "version": "0.1.0",
                    "device": "NVIDIA H100 80GB HBM3",
                    "seen_at": 1767225600.0,
                    "run": "three-domains-1a2b3c",
                }
            ]
        }
    )

    name: str
    version: str | None
    device: str | None
    seen_at: float
    """Unix time, seconds."""
    run: str | None
    """The run that it has; null while it asks for one."""


class KubeflowMetric(Documented):
    name: str
    value: str


class TrainerStatus(Documented):
    """The run in the shape of Kubeflow Trainer's ``status.trainerStatus`` (KEP-2779), for tools that read that."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "progressPercentage": 40,
                    "estimatedRemainingSeconds": 186,
                    "metrics": [{"name": "reward_mean", "value": "0.42"}],
                    "lastUpdatedTime": "2026-01-01T00:00:00Z",
                }
            ]
        }
    )

    progressPercentage: int | None  # noqa: N815 - Kubeflow's names
    """0 to 100."""
    estimatedRemainingSeconds: int | None  # noqa: N815
    metrics: tuple[KubeflowMetric, ...]
    """The numbers of the last step."""
    lastUpdatedTime: str  # noqa: N815
    """RFC 3339, UTC."""
