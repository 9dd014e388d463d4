"""The types that cross a process boundary, once for HTTP and for streams.

========================  ============================================  =======================
reward contract           ``ScoreRequest`` -> ``ScoreResponse``          router -> client, HTTP
client card               ``Card``                                      client -> router, HTTP
stream ``prompts``        ``PromptRecord``      (``mor.prompt/1``)       trainer -> rollout
stream ``rollouts``       ``RolloutRecord``     (``mor.rollout/1``)      rollout -> router
stream ``rewards``        ``RewardRecord``      (``mor.group_reward/1``) router  -> trainer
stream ``events``         ``EventRecord``       (``mor.event/1``)        trainer -> run control
stream ``dead``           ``DeadLetter``        (``mor.dead/1``)         any     -> trainer
========================  ============================================  =======================

Every type forbids unknown fields, so that a misspelt one is an error with a name instead of a silent default.
Numbers that cross the wire are finite: NaN and infinity are refused by the type, not by each reader.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Base64Bytes, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from mor_core.objectives import AskedObjective, ObjectiveName

Contract = Literal["mor.reward/1"]
CONTRACT: Contract = "mor.reward/1"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""Lower-case hexadecimal SHA-256 of a blob's bytes: its identity everywhere."""

Finite = Annotated[float, Field(allow_inf_nan=False)]

_IMAGE_SCHEME = "sha256:"


class Wire(BaseModel):
    """Base of everything on the wire: immutable, no unknown fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


# --- messages (OpenAI chat shape) ---------------------------------------------------------------------------------


class TextPart(Wire):
    type: Literal["text"] = "text"
    text: str


def _check_image_url(url: str) -> str:
    digest = url.removeprefix(_IMAGE_SCHEME)
    if digest == url or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"an image is named by 'sha256:<64 hex digits>', got {url[:80]!r}; send its bytes in 'images'")
    return url


class ImageUrl(Wire):
    url: Annotated[str, AfterValidator(_check_image_url)]


class ImagePart(Wire):
    """OpenAI's image part; the URL is ``sha256:<hex>`` and the bytes travel apart, once."""

    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl

    @classmethod
    def of(cls, sha256: str) -> ImagePart:
        return cls(image_url=ImageUrl(url=_IMAGE_SCHEME + sha256))

    @property
    def sha256(self) -> str:
        return self.image_url.url.removeprefix(_IMAGE_SCHEME)


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Wire):
    role: Literal["system", "user", "assistant"]
    content: str | tuple[Part, ...]

    @property
    def image_hashes(self) -> tuple[str, ...]:
        if isinstance(self.content, str):
            return ()
        return tuple(part.sha256 for part in self.content if isinstance(part, ImagePart))

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


Messages = Annotated[tuple[Message, ...], Field(min_length=1)]


def image_hashes(messages: tuple[Message, ...]) -> tuple[str, ...]:
    """Hashes of the images of a conversation, in the order in which they are shown; repeats kept."""
    return tuple(digest for message in messages for digest in message.image_hashes)


def chat_template_messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The same conversation as Hugging Face chat templates take it (``{"type": "image"}`` for each image)."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message.content, str):
            content = [{"type": "text", "text": message.content}]
        else:
            content = [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                for part in message.content
            ]
        turns.append({"role": message.role, "content": content})
    return turns


# --- the reward contract ------------------------------------------------------------------------------------------


class RewardItem(Wire):
    """One prompt and the group of responses to reward."""

    item_id: Annotated[str, Field(min_length=1, max_length=200)]
    messages: Messages
    responses: Annotated[tuple[str, ...], Field(min_length=1)]
    objective: AskedObjective | None = None


class ScoreItem(RewardItem):
    """The same as a client is asked to score it, with the objective in words."""

    objective: str | None = None


class ScoreRequest(Wire):
    contract: Contract = CONTRACT
    items: Annotated[tuple[ScoreItem, ...], Field(min_length=1)]
    images: dict[Sha256, Base64Bytes] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _item_ids_are_distinct(self) -> ScoreRequest:
        ids = [item.item_id for item in self.items]
        if len(set(ids)) != len(ids):
            raise ValueError("item_id must be distinct within a request")
        return self


class ModelRef(Wire):
    name: str
    version: str


class ItemScores(Wire):
    """Scores of one item in calibrated logits, one for each response; ``None`` unless ``status`` is ``ok``."""

    item_id: str
    status: Literal["ok", "unscorable", "error"]
    scores: tuple[Finite, ...] | None = None
    detail: str | None = None

    @model_validator(mode="after")
    def _scores_belong_to_ok(self) -> ItemScores:
        if (self.status == "ok") != (self.scores is not None):
            raise ValueError(f"item {self.item_id!r}: 'scores' go with status 'ok' and with no other")
        return self


class ScoreResponse(Wire):
    model: ModelRef
    items: tuple[ItemScores, ...]


class Calibration(Wire):
    """How well a reward model's logits predict held-out preferences of its own client."""

    temperature: Finite
    """Divisor of the raw score differences, fitted on held-out pairs."""
    ece: Finite
    """Expected calibration error of the calibrated pair probabilities, 0 to 1."""
    pair_accuracy: Finite
    """Share of held-out pairs ranked as labelled, 0 to 1."""
    pair_accuracy_interval: tuple[Finite, Finite]
    """95 % Wilson interval of ``pair_accuracy``."""
    pairs: int
    """Number of held-out pairs."""


class Privacy(Wire):
    epsilon: Finite
    delta: Finite


_AtLeastOne = Annotated[int, Field(ge=1)]


class Limits(Wire):
    """What a client takes. Its service refuses what is over a limit; the router keeps to them and does not try."""

    items: _AtLeastOne
    """Most items per request. The router cuts its batches to it; the service answers more with 413."""
    responses: _AtLeastOne
    """Most responses per item, however many items a request has. The router cannot cut a group, so it does not ask the
    client about one that has more and counts it as failed there; the service answers 413."""
    request_bytes: _AtLeastOne
    """Most bytes per request body, images in base64 included. The router cuts its batches so that they fit with all
    their images; an item that alone may have more is tried. The service answers more with 413."""
    concurrency: _AtLeastOne
    """Most score requests at a time. Each router makes no more; the service answers further ones with 429."""


class Card(Wire):
    """What a client claims about its reward model. A claim, not evidence: the router weighs by anchors."""

    contract: Contract = CONTRACT
    model: ModelRef
    domains: str
    """Free text: what the model knows about."""
    calibration: Calibration | None
    privacy: Privacy | None
    limits: Limits


# --- stream records -----------------------------------------------------------------------------------------------


class Record(Wire):
    """Base of every stream record."""

    run: str
    group_id: str
    """Identity of the group over every stage and every attempt."""
    trace: str | None = None
    """W3C ``traceparent`` of the group's trace."""
    stamps: dict[str, float] = Field(default_factory=dict)
    """Unix time in seconds at which each stage finished."""

    def stamped(self, stage: str) -> dict[str, float]:
        """The stamps with ``stage`` set to now, for the next stage's record."""
        return {**self.stamps, stage: time.time()}


class Sampling(Wire):
    """How a group is sampled. The same values and the same weights give the same group."""

    group_size: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int = 0
    """Seed of the run; a response's seed is hashed from (seed, run, group, index)."""


class WeightsRef(Wire):
    """A published version of the policy and where its files are."""

    version: Annotated[int, Field(ge=0)]
    url: str
    """Address of the version's manifest, ``…/v1/runs/{run}/weights/{version}``."""


class WeightsFile(Wire):
    name: str
    bytes: int
    sha256: Sha256


class TensorInfo(Wire):
    dtype: str
    """As safetensors names it: ``F32``, ``BF16``."""
    shape: tuple[int, ...]
    sha256: Sha256
    """Hash of the tensor's contiguous little-endian bytes."""


class WeightsManifest(Wire):
    """What a published version of the policy consists of."""

    run: str
    version: int
    base: str
    """Checkpoint that holds every tensor which is not listed here: local path or hub name."""
    kind: Literal["full", "lora"]
    """``full``: ``tensors`` replace the base's by name. ``lora``: the files are a PEFT adapter folder."""
    files: tuple[WeightsFile, ...]
    """Each is served at ``{manifest url}/{name}``."""
    tensors: dict[str, TensorInfo]
    """By the names of the base checkpoint (``full``) or of the adapter file (``lora``)."""


class PromptRecord(Record):
    """A group to sample."""

    schema_: Literal["mor.prompt/1"] = Field("mor.prompt/1", alias="schema")
    prompt_id: str
    messages: Messages
    domain: str | None = None
    objective: AskedObjective | None = None
    sampling: Sampling
    weights: WeightsRef
    """The policy to sample from: this version or a newer one."""
    attempt: int = 0
    """How often this group was issued before."""
    purpose: Literal["train", "evaluation"] = "train"
    """Evaluation groups are scored like any other and never trained on."""


class TokenBlock(Wire):
    """The token arrays of a group, sent once as a blob (``RolloutRecord.tokens``)."""

    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[tuple[int, ...], ...]
    """G sequences of sampled ids, end-of-sequence token included where it was sampled."""
    response_logprobs: tuple[tuple[Finite, ...], ...]
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
    """G decoded responses, special tokens removed: what clients score."""
    finish_reasons: tuple[Literal["stop", "length"], ...]
    tokens: Sha256
    """Blob of the group's ``TokenBlock`` as JSON."""
    weights_version: int
    """Version that sampled every token of the group."""
    image_tokens: int
    """Placeholder tokens of the prompt, as the sampling engine counted them."""
    pixels: Sha256 | None
    """Hash of the processed pixel values; the trainer compares its own."""


class ClientScore(Wire):
    """What one client said about a group and what became of it."""

    client: str
    model: ModelRef | None = None
    status: Literal["ok", "unscorable", "error", "timeout", "circuit_open", "shadow", "not_asked"]
    detail: str | None = None
    raw: tuple[Finite, ...] | None = None
    """Scores as served."""
    standardised: tuple[Finite, ...] | None = None
    """Winsorised and divided by the client's spread on the anchors, in anchor units."""
    calibrated: tuple[Finite, ...] | None = None
    """Standardised scores times the client's slope for this input, in logits."""
    weight: Finite = 0.0
    """Share in the mixture after renormalising over the clients that answered; sums to 1 over them."""
    gate_weight: Finite = 0.0
    """Share the gate gave before renormalising."""
    seconds: Finite | None = None
    """Time to answer."""


class ObjectiveShare(Wire):
    """One objective's part α_j R_j in a reward R = Σ_j α_j R_j."""

    name: ObjectiveName
    share: Finite
    """The shares of a reward sum to 1."""
    gate_version: int
    """Gate version that R_j comes from; 0: the objective has no fitted gate, all active clients counted the same."""


class RewardRecord(Record):
    """A scored group."""

    schema_: Literal["mor.group_reward/1"] = Field("mor.group_reward/1", alias="schema")
    rollout: RolloutRecord
    rewards: tuple[Finite, ...]
    """G fused rewards in logits."""
    clients: tuple[ClientScore, ...]
    objectives: tuple[ObjectiveShare, ...] = ()
    """What was rewarded, largest share first; empty where no objective was named or none was like the text asked."""
    gate_version: int
    """Of the first of ``objectives``; 0: none was fitted."""
    fusion: str
    entropy: Finite
    """Entropy of the mixture weights, nats."""


class EventRecord(Record):
    """Something that happened in a run, for its history. ``group_id`` is the event's identity."""

    schema_: Literal["mor.event/1"] = Field("mor.event/1", alias="schema")
    kind: Literal["step", "state", "samples", "evaluation", "weights", "checkpoint", "alert", "replay"]
    step: int
    data: dict[str, Any]


class DeadLetter(Record):
    """A record that a stage gave up on, with the reason and the whole record, so that it can be replayed."""

    schema_: Literal["mor.dead/1"] = Field("mor.dead/1", alias="schema")
    stage: Literal["rollout", "router", "trainer"]
    stream: str
    """Stream the record was read from, to replay it there."""
    reason: str
    attempts: int
    record: str
    """The record as it stood in the stream (JSON)."""
