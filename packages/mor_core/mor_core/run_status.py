"""Answers of the trainer's status API besides the snapshot. A value that is not known is null, never 0."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from mor_core.step_metrics import ClientFigures, StepPoint
from mor_core.visibility import OWN_ROWS, Scope, hidden_from
from mor_core.wire import Documented, Finite, JsonObject, Sha256


class GateChange(Documented):
    """Change of the gate version between two points of a history: rewards before and after are not comparable."""

    step: int
    """First step of the new version among the points."""
    before: int
    """Gate version of the point before."""
    after: int
    """Gate version from this step on."""


class MetricsHistory(Documented):
    """Metrics by step, oldest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run": "three-domains-1a2b3c",
                    "points": [{"step": 40, "at": 1767225600.0, "reward_mean": 0.42, "kl": 0.011, "step_seconds": 3.1}],
                    "evaluations": [{"step": 40, "reward": 0.5, "gate_version": 2, "gate_versions": [2]}],
                    "gate_changes": [],
                    "stride": 1,
                }
            ]
        }
    )

    run: str
    points: tuple[StepPoint, ...]
    """Step, time, and the metrics of the step."""
    evaluations: tuple[JsonObject, ...]
    """Finished evaluations after ``since_step``; each has the gate version that scored it."""
    gate_changes: tuple[GateChange, ...] = ()
    """Steps from which on the rewards of the points are by another gate version, and not comparable with earlier ones.
    An evaluation is comparable with those of the same ``gate_version``."""
    stride: int
    """Steps between points: 1, or more where the history is down-sampled. The last step is always included."""


class ClientHistoryPoint(ClientFigures):
    """A client's figures in one step."""

    step: int
    at: float
    gate_version: int | None = None
    """Gate version that scored the step; rewards of different ones are not comparable."""


class ClientHistory(Documented):
    """A client's figures over the steps of a run."""

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
    """Figures of the last step; null before the first, or where the client took no part."""
    weight_by_domain: dict[str, Finite | None]
    """Mean weight in the last step by domain label of the prompts."""
    points: tuple[ClientHistoryPoint, ...]
    """By step, oldest first."""
    stride: int
    """Steps between points."""


class RunClients(Documented):
    """Clients of the last step; empty before the first."""

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
    clients: Annotated[dict[str, ClientFigures], OWN_ROWS]


class SampleScore(Documented):
    """A client's scores of a sample group."""

    client: str
    status: str
    detail: Annotated[str | None, hidden_from(Scope.viewer)] = None
    """Reason of a failure or of a missing weight; null for a viewer."""
    weight: Finite
    """Share in the mixture."""
    raw: tuple[Finite, ...] | None = None
    """Scores as served, one for each response."""
    calibrated: tuple[Finite, ...] | None = None
    """Logits."""


class SampleGroup(Documented):
    """A sample group with everything that led to its advantages."""

    step: int
    group_id: str
    prompt_id: str
    domain: str | None
    prompt: str
    """Text of the prompt, cut at 2,000 characters."""
    images: tuple[Sha256, ...]
    """Hashes of the prompt's pictures; ``/images/{sha256}`` serves a thumbnail of each."""
    weights_version: int
    gate_version: int
    fusion: str
    responses: tuple[str, ...]
    rewards: Annotated[tuple[Finite, ...] | None, hidden_from(Scope.client)]
    """Fused, in logits; null for a client's token, because they reveal the scores of others."""
    advantages: Annotated[tuple[Finite, ...] | None, hidden_from(Scope.client)]
    """Null for a client's token."""
    clients: Annotated[tuple[SampleScore, ...], OWN_ROWS]
    """Scores and weight of each client; for a client's token, of that client alone."""


class SampleGroups(Documented):
    """Sample groups, newest first."""

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
    samples: tuple[SampleGroup, ...]


class RunCheckpoint(Documented):
    """A checkpoint of a run."""

    step: int
    at: float
    """Unix time, seconds."""
    path: str
    seconds: float | None = None
    """Time to write it; null where the history has no report of it."""
    bytes: int | None = None
    """Size of its files."""


class RunCheckpoints(Documented):
    """Checkpoints that are on the disk, oldest first."""

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
                            "bytes": 1207959552,
                        }
                    ],
                }
            ]
        }
    )

    run: str
    checkpoints: tuple[RunCheckpoint, ...]


class Event(Documented):
    """An event of a run, as readers of the stream receive it."""

    id: int
    kind: str
    """``step``, ``state``, ``samples``, ``evaluation``, ``weights``, ``checkpoint``, ``alert``, ``replay``,
    ``preflight``, ``change`` of tags or note; or ``gap``: events after the cursor are no longer kept; read ``/metrics``
    again."""
    step: int | None
    at: float
    """Unix time, seconds."""
    data: JsonObject


class DeadGroup(Documented):
    """A dead letter: a group that was given up because a stage failed on it in every attempt."""

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
    """Stage that gave the group up; null where it never came back."""
    stream: str | None
    reason: str
    attempts: int | None
    step: int
    at: float
    """Unix time, seconds."""
    replay: Literal["no", "asked", "issued", "not dropped"]
    """``asked``: the training process issues the group again at its next step. ``issued``: it was issued again.
    ``not dropped``: the group is under way or applied in this lineage."""
    replay_asked_by: str | None


class DeadGroupRecord(DeadGroup):
    """A dead letter with its record."""

    record: Annotated[str | None, hidden_from(Scope.viewer)]
    """Record of the group as it was in the stream (JSON), cut at 64,000 characters; null where none came back, and for
    a viewer."""


class WorkerStatus(Documented):
    """A training process, as of its last request to run control."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "worker-0-41",
                    "version": "0.1.0",
                    "device": "NVIDIA H100 80GB HBM3",
                    "seen_at": 1767225600.0,
                    "run": "three-domains-1a2b3c",
                    "state": "training",
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
    """The run that it holds; null while it waits for one, and once it is gone."""
    state: Literal["waiting", "training", "gone"] | None = None
    """``gone``: it has not called for as long as a lease lasts, so that another process may have its run. Null from a
    run control of an earlier release."""


class EngineLimits(Documented):
    """Limits of a rollout service on prompts, as it reports them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "rollout-0-17",
                    "model": "/models/base",
                    "max_model_len": 4096,
                    "max_images": 4,
                    "max_image_bytes": 67108864,
                    "dtype": "bfloat16",
                    "weights_bytes": 32212254720,
                    "weights_format": 2,
                }
            ]
        }
    )

    name: Annotated[str, Field(max_length=200)]
    """Name of the process."""
    model: Annotated[str, Field(max_length=4096)]
    """Base checkpoint: path or hub name."""
    max_model_len: Annotated[int, Field(ge=1)]
    """Tokens of prompt and response together."""
    max_images: Annotated[int, Field(ge=0)]
    """Images of a prompt."""
    max_image_bytes: Annotated[int, Field(ge=1)]
    """Encoded bytes of all images of a prompt."""
    dtype: Annotated[str | None, Field(max_length=40)] = None
    """Number format in which it computes; null from a service of an earlier release."""
    weights_bytes: Annotated[int | None, Field(ge=0)] = None
    """Bytes of the volume for pulled weights, what is on it included; null from a service of an earlier release."""
    weights_format: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Newest format of published weights that it reads; 1 from a service of an earlier release."""


class KubeflowMetric(Documented):
    """A metric in Kubeflow's shape."""

    name: str
    value: str


class TrainerStatus(Documented):
    """Status of a run in the shape of Kubeflow Trainer's ``status.trainerStatus`` (KEP-2779), for its tools."""

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
    """Finished steps, 0 to 100."""
    estimatedRemainingSeconds: int | None  # noqa: N815
    metrics: Annotated[tuple[KubeflowMetric, ...] | None, hidden_from(Scope.client)]
    """Plain numbers of the last step; null for a client."""
    lastUpdatedTime: str  # noqa: N815
    """RFC 3339, UTC."""
