"""Records on the streams."""

from __future__ import annotations

import operator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mor_core.objectives import ObjectiveName, RequestedObjective
from mor_core.server_clock import SERVER_CLOCK
from mor_core.wire.base import Count, Documented, Finite, GroupId, JsonObject, RunId, Sha256, Wire
from mor_core.wire.contract import ModelRef
from mor_core.wire.messages import Messages
from mor_core.wire.weights import WeightsRef

StreamName = Literal["prompts", "rollouts", "rewards", "events", "dead"]
"""Streams of a run; the table in ``mor_core.wire`` names their records, producers and consumers."""
StageName = Literal["rollout", "router", "trainer"]
"""Consumers of the streams; each is a separate consumer group."""

LARGEST_REWARD = 1e12
"""Largest magnitude of a reward that is trained on, logits: above any mixture of scores, far below any overflow."""
Figure = Annotated[float, Field(ge=-LARGEST_REWARD, le=LARGEST_REWARD)]
"""Figure of a reward's explanation, bounded so that no sum over records can overflow."""
_LOGPROB = Annotated[float, Field(ge=-1e4, le=1e4)]
"""Log-probability in nats: far beyond any of a sampled token, and small enough for sums over a response."""
_UNIX_TIME = Annotated[float, Field(ge=0, le=1e11)]
"""Seconds: the years up to 5138."""


class Record(Wire):
    """Base of every stream record."""

    run: RunId
    group_id: GroupId
    """Identity of the group over every stage and every attempt."""
    trace: str | None = None
    """W3C ``traceparent`` of the group's span, which lasts from the issue of the group to its update; none where
    tracing is off."""
    stamps: dict[str, _UNIX_TIME] = Field(default_factory=dict, max_length=16)
    """Unix time in seconds at which each stage finished."""

    def stamped(self, stage: str) -> dict[str, float]:
        """Return the stamps with ``stage`` set to now, for the next stage's record."""
        return {**self.stamps, stage: SERVER_CLOCK.now()}


class Sampling(Wire):
    """Sampling parameters of a group. The same values and the same weights give the same group."""

    group_size: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = 0
    """Seed of the run; a response's seed is hashed from (seed, run, group, index)."""


class PromptRecord(Record):
    """A group to sample."""

    schema_: Literal["mor.prompt/1"] = Field("mor.prompt/1", alias="schema")
    prompt_id: str
    messages: Messages
    domain: str | None = None
    public: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Its source is marked as public. It is left out where false, for former versions."""
    objective: RequestedObjective | None = None
    sampling: Sampling
    weights: WeightsRef
    """The policy to sample from: this version or a newer one."""
    attempt: Count = 0
    """Number of times that this group was issued before."""
    run_attempt: Count = 0
    """Attempt at the run that issued the group; 0 in a record of an earlier release."""
    purpose: Literal["train", "evaluation"] = "train"
    """Evaluation groups are scored like any other and never trained on."""
    all_clients: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """The group waits until every client with weight has answered. It is left out where false, for former versions."""


class TokenBlock(Wire):
    """Token arrays of a group, sent once as a blob (``RolloutRecord.tokens``)."""

    prompt_token_ids: tuple[Count, ...]
    response_token_ids: tuple[tuple[Count, ...], ...]
    """G sequences of sampled ids, including the end-of-sequence token where it was sampled."""
    response_logprobs: tuple[tuple[_LOGPROB, ...], ...]
    """Log-probability of each sampled id under the sampling distribution, in nats."""

    @model_validator(mode="after")
    def _one_logprob_a_token(self) -> TokenBlock:
        if [len(ids) for ids in self.response_token_ids] != [len(lps) for lps in self.response_logprobs]:
            raise ValueError("every sampled token needs exactly one log-probability")
        return self


class RolloutRecord(Record):
    """A sampled group."""

    schema_: Literal["mor.rollout/1"] = Field("mor.rollout/1", alias="schema")
    prompt: PromptRecord
    responses: tuple[str, ...]
    """G decoded responses without special tokens: the texts that clients score."""
    finish_reasons: tuple[Literal["stop", "length"], ...]
    tokens: Sha256
    """Blob of the group's ``TokenBlock`` as JSON."""
    weights_version: Count
    """Oldest version that sampled a token of the group; its staleness counts from there."""
    newest_version: Count | None = None
    """Newest version that sampled a token of the group; another one where weights were swapped during sampling."""
    image_tokens: Count
    """Image placeholder tokens of the prompt, counted by the sampling engine."""
    pixels: Sha256 | None
    """Hash of the processed pixel values; the trainer compares it with its own."""

    @model_validator(mode="after")
    def _of_the_prompt(self) -> RolloutRecord:
        if (self.run, self.group_id) != (self.prompt.run, self.prompt.group_id):
            raise ValueError("run and group_id differ from those of the prompt")
        return self

    @property
    def versions(self) -> tuple[int, ...]:
        """Oldest and newest version; one where they are the same."""
        newest = self.weights_version if self.newest_version is None else self.newest_version
        return tuple(dict.fromkeys((self.weights_version, newest)))


LESS_TRUSTED = "others have more weight for this input, and MOR_MOST_CLIENTS limits how many are called"
"""Detail of the line of a client that has weight and was not called for one group."""
NOT_SENT = "may not be sent this prompt, "
"""Beginning of the detail of a client that has weight in other groups, and that a rule keeps from one group."""


class ClientScore(Wire):
    """One client's scores of a group, and their part in the reward."""

    client: str
    model: ModelRef | None = None
    status: Literal["ok", "unscorable", "error", "timeout", "circuit_open", "shadow", "not_asked"]
    detail: str | None = None
    raw: tuple[Figure, ...] | None = None
    """Scores as served."""
    standardised: tuple[Figure, ...] | None = None
    """Scores, winsorised and divided by the client's spread on the anchors; in anchor units."""
    calibrated: tuple[Figure, ...] | None = None
    """Standardised scores times the client's slope for this input, in logits."""
    weight: Figure = 0.0
    """Share in the mixture, renormalised over the clients that answered; sums to 1 over them."""
    gate_weight: Figure = 0.0
    """Share from the gate, before renormalising."""
    seconds: Figure | None = None
    """Time to answer, seconds."""


class ObjectiveShare(Wire):
    """One objective's part α_j R_j of a reward R = Σ_j α_j R_j."""

    name: ObjectiveName
    share: Figure
    """The shares of a reward sum to 1."""
    gate_version: int
    """Gate version behind R_j; 0: the objective has no fitted gate, and all active clients count the same."""


class RewardExplanation(Documented):
    """Everything that led to a group's reward, or to its absence."""

    clients: tuple[ClientScore, ...]
    """Each client's scores and weight; without weight, the reason."""
    objectives: tuple[ObjectiveShare, ...] = ()
    """Objectives of the reward, largest share first; empty where the group names none, or its text is unlike every
    known objective."""
    gate_version: int
    """Gate version of the first of ``objectives``; 0: none was fitted."""
    fusion: str


class GroupReward(RewardExplanation):
    """Reward of one group, and everything that led to it."""

    rewards: tuple[Finite, ...]
    """G fused rewards in logits."""
    entropy: Figure
    """Entropy of the mixture weights, nats."""


class RewardRecord(Record, GroupReward):
    """A scored group."""

    schema_: Literal["mor.group_reward/1"] = Field("mor.group_reward/1", alias="schema")
    rollout: RolloutRecord

    @model_validator(mode="after")
    def _of_the_rollout(self) -> RewardRecord:
        if (self.run, self.group_id) != (self.rollout.run, self.rollout.group_id):
            raise ValueError("run and group_id differ from those of the rollout")
        return self


class EventRecord(Record):
    """Event of a run, for its history. ``group_id`` is the event's identity."""

    schema_: Literal["mor.event/1"] = Field("mor.event/1", alias="schema")
    kind: Literal["step", "state", "samples", "evaluation", "weights", "checkpoint", "alert", "replay"]
    step: Count
    data: JsonObject


UNREADABLE = "unreadable"
"""Group in the dead letter of a record that cannot be read."""


class DeadLetter(Record):
    """Record that a stage gave up, with the reason and its whole content, so that it can be replayed."""

    schema_: Literal["mor.dead/1"] = Field("mor.dead/1", alias="schema")
    stage: StageName
    stream: StreamName
    """Stream of the record, where a replay goes."""
    reason: str
    attempts: Count
    run_attempt: Count = 0
    """Attempt at the run that issued the group; 0 for an unreadable record, and in a letter of an earlier release."""
    record: str
    """The record in JSON, as read from the stream."""
    weights_version: Count | None = None
    """Version of the policy whose published files an engine found damaged or gone; none for any other reason."""


def issuer_of(record: Record) -> int | None:
    """Return the attempt at the run that issued the group of a record; ``None`` for an event, which has no group."""
    match record:
        case PromptRecord() | DeadLetter():
            return record.run_attempt
        case RolloutRecord():
            return record.prompt.run_attempt
        case RewardRecord():
            return record.rollout.prompt.run_attempt
    return None
