"""Specification and snapshot of a run, and the messages between run control and a worker."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from mor_core.algorithms import Algorithm, OverlongPenalty
from mor_core.guards import Guards
from mor_core.objectives import RequestedObjective
from mor_core.optimisation import FullTuning, Optimiser, Tuning
from mor_core.patterns import matching, plain_name
from mor_core.preflight_status import PreflightStatus
from mor_core.prompt_sources import MOST_SOURCES, PromptFile, PromptSource, check_sources
from mor_core.run_status import TrainerStatus
from mor_core.step_metrics import StepMetrics
from mor_core.visibility import Scope, hidden_from
from mor_core.wire import Count, Documented, JsonObject

License = Annotated[
    str, matching(r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$", plain_name(63, "'.', '-'") + ", such as apache-2.0")
]
RunName = Annotated[str, matching(r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", plain_name(40, "'-'"))]


class SamplingSpec(Documented):
    """Sampling of responses for training."""

    temperature: float = Field(1.0, gt=0, le=5)
    """Divisor of the logits. The policy is trained at this temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass. Under 1 the engine samples from a truncated distribution, so importance ratios differ from 1."""
    max_tokens: int = Field(64, ge=1)
    """Most tokens of a response; a longer one is cut and counted as truncated."""


class RunSpec(Documented):
    """Specification of a run. Paths are those of the trainer's machines."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "three-domains",
                    "model": "/models/base",
                    "prompts": "/data/server/prompts.jsonl",
                    "steps": 120,
                    "sampling": {"max_tokens": 24},
                    "optimiser": {"lr": 1e-4},
                },
                {
                    "name": "by-weight",
                    "model": "/models/base",
                    "sources": [
                        {"name": "charts", "prompts": "/data/charts.jsonl", "weight": 3},
                        {
                            "name": "scans",
                            "prompts": "/data/all.jsonl",
                            "domain": "medical",
                            "schedule": [{"step": 0, "weight": 1}, {"step": 100, "weight": 3}],
                        },
                    ],
                },
            ]
        }
    )

    name: RunName
    """Lower-case name; the run's id is the name with a random suffix."""
    model: Annotated[str, Field(min_length=1)]
    """Image-text-to-text checkpoint to align: local folder or hub name."""
    prompts: str | None = None
    """Prompts to train on, a ``mor.prompts/1`` file; null where ``sources`` are given."""
    sources: tuple[PromptSource, ...] = Field((), max_length=MOST_SOURCES)
    """Several files or domains of prompts, drawn by weight, instead of ``prompts``. After any number of draws, each
    source has been drawn from as often as its weights say, rounded down or up to a whole group. Within a source, each
    row is drawn once before any is drawn again. The weights of step t hold for the groups numbered
    ``t * groups_per_step`` and up in the order of drawing; ``max_staleness`` and ``dynamic_sampling`` issue groups
    ahead, so that these may be trained on a little earlier or later."""
    prompt_columns: str = ""
    """Other names of the columns in the files of prompts, as ``prompt=question,images=image``; ``ignore=source`` leaves
    a column out."""
    public_prompts: bool = False
    """True: all pictures and texts of all its prompts are public, as ``public`` says it of one source. Clients whose
    ``asks`` rule wants public prompts are sent no others."""
    objective: RequestedObjective | None = None
    """Objective that the router aligns to: its name (``name@3``: with gate version 3, whichever version is active), a
    text that describes it, or a blend ``{name: share}`` with shares that sum to 1. All clients count the same when
    null."""
    evaluation_prompts: str | None = None
    """Prompts that are answered greedily and scored at intervals, and never trained on."""
    steps: int = Field(100, ge=1)
    """Training steps."""
    groups_per_step: int = Field(16, ge=1)
    """Prompts in a step."""
    group_size: int = Field(8, ge=2)
    """Responses to a prompt."""
    sampling: SamplingSpec = SamplingSpec()
    """Sampling of responses."""
    algorithm: Algorithm = Algorithm()
    """Loss, advantage, KL penalty and corrections."""
    optimiser: Optimiser = Optimiser()
    """Optimiser and learning rate."""
    tuning: Tuning = FullTuning()
    """Trained parameters: all, or low-rank adapters."""
    freeze_vision: bool = True
    """Do not train vision tower and connector; image features are then computed once for each image."""
    shared_prompt: Literal["auto", "off"] = "auto"
    """``auto``: compute a prompt once for all its responses, wherever that is exact for the model; ``off``: once for
    each response."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    max_staleness: int = Field(0, ge=0)
    """Most updates between the version that samples a group and the version that the group updates. 0: strictly
    on-policy. More: prompts are issued ahead, so that sampling and training overlap."""
    max_bad_prompts: float = Field(0.05, ge=0, le=1)
    """Share of the prompts whose groups may be dropped, each after all its attempts; beyond it the run fails, with the
    ids of these rows. Rounded up to whole prompts; 0 allows none."""
    max_engine_difference: float | None = Field(0.1, gt=0)
    """Largest mean absolute difference between the log-probabilities of engine and trainer, nats a token. Beyond it on
    the first groups of an attempt, the run fails before its first update; later there is an alert. Only groups that
    the newest weights sampled are compared. Null turns both off."""
    seed: int = 0
    """Seed of prompt order and sampling."""
    deterministic: bool = False
    """Reach final weights that equal those of an undisturbed run bit for bit, whatever interrupts the training: a
    step's groups are recorded before they are trained on, and a lost step is computed from its record. Needs
    ``max_staleness`` 0; all clients must score each group, by one gate version; ranks, threads, device and versions
    must not change."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Most tokens, padding included, that go through the model at once. A larger group is divided into parts, each with
    the prompt; where memory runs out, the limit is halved for the rest of the attempt."""
    checkpoint_every: int = Field(20, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints that are kept. That of the best evaluation stays, too."""
    evaluation_every: int = Field(20, ge=1)
    """Steps between evaluations, if there are evaluation prompts."""
    keep_weights: int = Field(4, ge=2)
    """Number of newest published weights versions that are kept."""
    control_rewards: Literal["fused", "shuffled"] = "fused"
    """``shuffled`` permutes the rewards over all responses of a step: a control run, which must not improve."""
    license: License | None = None
    """Licence of the aligned model, as the Hugging Face hub names it (``apache-2.0``, ``cc-by-nc-4.0``, ``other``), for
    its model card. Null: the card says ``unknown``."""
    guards: Guards = Guards()
    """Guards against a collapse: what run control does when KL, entropy, responses or rewards leave their bounds."""

    def training_files(self) -> tuple[PromptFile, ...]:
        """Return the files whose prompts the run is trained on, each once."""
        if self.prompts is not None:
            return (PromptFile(self.prompts, self.prompt_columns),)
        return tuple(dict.fromkeys(source.file(self.prompt_columns) for source in self.sources))

    def evaluation_file(self) -> PromptFile | None:
        """Return the file of the evaluation prompts, if there is one."""
        return None if self.evaluation_prompts is None else PromptFile(self.evaluation_prompts, self.prompt_columns)

    def warnings(self) -> tuple[str, ...]:
        """Return what a person should know before the run begins."""
        if self.evaluation_prompts is not None:
            return ()
        return (
            "the run has no evaluation: nothing tells a rising reward from a better policy, and no checkpoint is known "
            "as the best. Give evaluation_prompts, prompts that are never trained on",
        )

    def is_public(self, prompt_id: str, *, evaluation: bool) -> bool:
        """Return whether a prompt is marked as public; the id of a source's prompt begins with the source's name."""
        source = "" if evaluation else prompt_id.partition("/")[0]
        return self.public_prompts or any(one.public and one.name == source for one in self.sources)

    def prompt_files(self) -> tuple[PromptFile, ...]:
        """Return all files of prompts, each once."""
        evaluation = self.evaluation_file()
        return tuple(dict.fromkeys((*self.training_files(), *(() if evaluation is None else (evaluation,)))))

    @model_validator(mode="after")
    def _prompts_or_sources(self) -> RunSpec:
        if (self.prompts is None) == (not self.sources):
            given = "both prompts and sources" if self.sources else "neither prompts nor sources"
            raise ValueError(
                f"got {given}; give one of them: prompts for one file, or [[sources]] for several files or domains"
            )
        check_sources(self.sources)
        return self

    @model_validator(mode="after")
    def _updates_divide_the_step(self) -> RunSpec:
        if self.groups_per_step % self.optimiser.updates_per_step:
            raise ValueError(
                f"optimiser.updates_per_step={self.optimiser.updates_per_step} does not divide "
                f"groups_per_step={self.groups_per_step}; choose a divisor"
            )
        dynamic = self.algorithm.dynamic_sampling
        if dynamic is not None and dynamic.most_groups(self.groups_per_step) == self.groups_per_step:
            raise ValueError(
                f"algorithm.dynamic_sampling.max_factor={dynamic.max_factor:g} leaves no group to replace one of "
                f"groups_per_step={self.groups_per_step}; set it to {1 + 1 / self.groups_per_step:g} or more"
            )
        overlong = self.algorithm.overlong
        if isinstance(overlong, OverlongPenalty) and overlong.buffer >= self.sampling.max_tokens:
            raise ValueError(
                f"algorithm.overlong.buffer={overlong.buffer} penalises every response of "
                f"sampling.max_tokens={self.sampling.max_tokens}; choose a smaller buffer, such as a quarter of it"
            )
        if self.deterministic and self.max_staleness:
            raise ValueError(
                f"deterministic needs strictly on-policy groups, and max_staleness={self.max_staleness} lets timing "
                "decide what a step is trained on; set max_staleness=0"
            )
        if self.keep_weights < self.max_staleness + 2:
            raise ValueError(
                f"keep_weights={self.keep_weights} is too few for max_staleness={self.max_staleness}; "
                f"set it to {self.max_staleness + 2} or more"
            )
        return self


class RunState(enum.StrEnum):
    """State of a run."""

    queued = "queued"
    running = "running"
    paused = "paused"
    finished = "finished"
    failed = "failed"
    stopped = "stopped"

    @property
    def over(self) -> bool:
        return self in (RunState.finished, RunState.failed, RunState.stopped)


Desired = Literal["run", "pause", "stop"]
"""State that run control wants of the worker that holds the run."""


class RunSnapshot(Documented):
    """State of a run. A value that is not known yet is null, never 0."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "three-domains-1a2b3c",
                    "name": "three-domains",
                    "tags": ["baseline"],
                    "note": None,
                    "state": "running",
                    "desired": "run",
                    "step": 40,
                    "total": 100,
                    "progress": 0.4,
                    "eta_s": 186.0,
                    "created_at": 1767225000.0,
                    "started_at": 1767225010.0,
                    "updated_at": 1767225600.0,
                    "finished_at": None,
                    "model": "/models/base",
                    "weights_version": 40,
                    "gate_version": 2,
                    "control_rewards": "fused",
                    "warnings": [],
                    "preflight": {"state": "done", "rows": 6000, "total": 6000, "bad": 0, "found": []},
                    "metrics": {"reward_mean": 0.42, "kl": 0.011, "step_seconds": 3.1},
                    "evaluation": None,
                    "final": None,
                    "archived": False,
                    "error": None,
                    "disk_full": None,
                    "cursor": "three-domains-1a2b3c/173",
                    "trainer_status": {
                        "progressPercentage": 40,
                        "estimatedRemainingSeconds": 186,
                        "metrics": [{"name": "reward_mean", "value": "0.42"}],
                        "lastUpdatedTime": "2026-01-01T00:00:00Z",
                    },
                }
            ]
        }
    )

    id: str
    """Id of the run."""
    name: str
    """Name that the run was created with."""
    tags: Annotated[tuple[str, ...] | None, hidden_from(Scope.client)] = ()
    """Words by which people find the run, in order; null for a client."""
    note: Annotated[str | None, hidden_from(Scope.client)] = None
    """Remark of people about the run; null without one, and for a client."""
    state: RunState
    """queued, running, paused, finished, failed or stopped."""
    desired: Desired
    """Last request; the state follows at the end of a step."""
    step: int | None
    """Last finished training step; null before the first."""
    total: int
    """Total steps."""
    progress: float | None
    """Share of the steps that are finished, 0 to 1."""
    eta_s: float | None
    """Estimated seconds to the end, from the pace of the latest steps; null unless running."""
    created_at: float
    """Unix time, seconds."""
    started_at: float | None
    """Unix time at which a worker first claimed the run."""
    updated_at: float
    """Unix time of the last change."""
    finished_at: float | None
    """Unix time at which the run ended."""
    model: Annotated[str | None, hidden_from(Scope.client)]
    """Checkpoint that the run aligns; null for a client."""
    weights_version: int | None
    """Newest published version of the policy."""
    gate_version: int | None
    """Version of the router's gate that scored the last step."""
    control_rewards: Literal["fused", "shuffled"]
    """``shuffled`` marks a control run."""
    warnings: tuple[str, ...] = ()
    """Parts that the specification lacks, such as an evaluation."""
    preflight: Annotated[PreflightStatus | None, hidden_from(Scope.client)] = None
    """Check of the prompts before the first step; null before it begins, and for a client."""
    metrics: Annotated[StepMetrics | None, hidden_from(Scope.client, but=("clients",))]
    """Metrics of the last step; for a client its own figures."""
    evaluation: Annotated[JsonObject | None, hidden_from(Scope.client)]
    """Last finished evaluation; null for a client."""
    final: Annotated[str | None, hidden_from(Scope.client)]
    """Folder of the exported checkpoint once the run is finished; null for a client."""
    archived: bool = False
    """True if the run is left out of the lists."""
    error: Annotated[str | None, hidden_from(Scope.client)]
    """Reason why the run failed or waits; null for a client."""
    disk_full: Annotated[str | None, hidden_from(Scope.client)] = None
    """Write for which the worker waits until a disk has room; null while it does not wait, and for a client."""
    cursor: str
    """``Last-Event-ID`` from which ``/events`` continues after this snapshot, without a gap."""
    trainer_status: TrainerStatus
    """The same status in Kubeflow Trainer's shape."""


class ClaimRequest(Documented):
    """Request of a training process for a run."""

    worker: str
    """Name of the process."""
    version: str | None = None
    """Version of its distribution."""
    device: str | None = None
    """Device that it trains on: ``cpu``, or the accelerator's name."""


class Claim(Documented):
    """Lease on a run for a worker."""

    run: str
    """Id of the run."""
    spec: RunSpec
    """Specification of the run."""
    attempt: int
    """Number of workers that have claimed the run, this one included."""
    lease_s: float
    """Seconds without a heartbeat after which the run goes to another worker."""
    weights_version: Count | None = None
    """Newest version of the policy that the history knows; null before the first."""


class Heartbeat(Documented):
    """Report of a worker on its run, sent every few seconds and at every change of state."""

    attempt: int
    """Attempt of the claim."""
    state: RunState
    """``queued`` hands the run back."""
    error: str | None = None
    """Reason, with ``failed``."""
    final: str | None = None
    """Folder of the exported checkpoint, with ``finished``."""
    preflight: PreflightStatus | None = None
    """Progress of the check of the prompts, where it changed since the last heartbeat."""
    disk_full: str | None = Field(None, max_length=1000)
    """Write for which the worker waits until a disk has room; each heartbeat has it while the worker waits."""
    events_lost: Count | None = None
    """Number of the last event of this attempt that the worker keeps no longer and the history may lack: it stops
    waiting for the events up to there."""


class HeartbeatReply(Documented):
    """Answer of run control to a heartbeat."""

    desired: Desired
    """State that the worker is to bring the run to."""
    events_seen: int
    """Number of events of this attempt that the history holds without a gap; the worker may send later ones again."""
    replay: dict[int, str] = Field(default_factory=dict)
    """Dropped groups that an operator wants issued again: dead letter -> group."""
