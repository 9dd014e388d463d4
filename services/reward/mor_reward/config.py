"""Settings of the reward service: environment variables ``MOR_*``, command-line options of ``mor-reward serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mor_core.images import MAX_BYTES
from mor_core.proxies import ProxyAddress
from mor_core.settings import ServiceSettings, Settings
from mor_core.wire import AnswerLimits, Asks, Distillation, JsonObject, Limits
from pydantic import Field, model_validator


class AnswerSettings(Settings):
    """Limits on what answers reveal, and the client's own record of them."""

    answers_dir: Path | None = None
    """Folder of the query log, of the ledger of budgets and of the secret behind noise and hashes; created if absent.
    One process uses it, on a local disk. Noise, budgets and the query log need it."""
    score_bits: int | None = Field(None, ge=1, le=24)
    """Bits of a score, which is rounded to one of 2**bits values, evenly spaced over ``score_range``."""
    score_range: float = Field(8.0, gt=0, le=1e6)
    """Largest magnitude of a score that is rounded or noisy, logits; scores beyond it are clipped."""
    score_centred: bool = False
    """Shift each group's scores to mean 0."""
    score_ranks: bool = False
    """Return ranks, evenly spaced from -1 to 1, instead of scores."""
    score_noise: float | None = Field(None, gt=0, le=1e6)
    """Standard deviation of the noise on each score, logits. Equal questions get equal noise, for all callers."""
    score_sensitivity: float | None = Field(None, gt=0, le=2e6)
    """Largest change of one score, logits, by one unit of the training data: your claim, on which
    ``answer_epsilon_per_day`` rests. By default twice ``score_range``, which holds for every model."""
    answer_epsilon_per_day: float | None = Field(None, gt=0)
    """Differential privacy ε that the answers to one caller may spend in a day (UTC) under ``score_noise``; further
    items are unscorable."""
    answer_delta: float = Field(1e-5, gt=0, lt=1)
    """δ of ``answer_epsilon_per_day``."""
    queries_per_day: int | None = Field(None, ge=1)
    """Different groups that one caller may ask in a day (UTC); further items are unscorable."""
    answers_per_picture: int | None = Field(None, ge=1)
    """Different questions with a response about one picture that are scored for one caller in a day (UTC). A question
    without pictures counts as one, as it does in training and audit."""
    distillation: Distillation | None = None
    """Permission to train a model of one's own on these scores, for the card: ``allowed`` or ``forbidden``."""
    query_log: bool = True
    """Write a log of questions and answers into ``answers_dir``, where that is set."""
    query_log_texts: bool = False
    """Keep questions and responses in the query log. Without it, keyed hashes that only this service can make."""
    query_log_bytes: int = Field(1 << 30, ge=1 << 20)
    """Largest query log, bytes; its oldest files go first."""
    query_log_days: int = Field(400, ge=1)
    """Days that the query log, and the ledger's sums, are kept."""

    @model_validator(mode="after")
    def _can_be_kept(self) -> AnswerSettings:
        if self.score_ranks and self.score_centred:
            raise ValueError("MOR_SCORE_RANKS and MOR_SCORE_CENTRED: ranks have mean 0 already; set one of them")
        if self.answer_epsilon_per_day is not None and self.score_noise is None:
            raise ValueError("MOR_ANSWER_EPSILON_PER_DAY needs noise: set MOR_SCORE_NOISE too")
        if self.answers_dir is None and (self.score_noise is not None or self.has_budget):
            raise ValueError("noise and budgets outlive a restart: set MOR_ANSWERS_DIR to a folder of this service")
        return self

    @property
    def has_budget(self) -> bool:
        budgets = (self.answer_epsilon_per_day, self.queries_per_day, self.answers_per_picture)
        return any(budget is not None for budget in budgets)

    @property
    def sensitivity(self) -> float:
        """Largest change of one score by one unit of the training data, logits."""
        return 2 * self.score_range if self.score_sensitivity is None else self.score_sensitivity

    @property
    def answer_limits(self) -> AnswerLimits | None:
        """Limits for the card; ``None`` where scores are returned as they are."""
        private = self.answer_epsilon_per_day is not None
        limits = AnswerLimits(
            bits=self.score_bits,
            range=self.score_range if self.score_bits is not None or self.score_noise is not None else None,
            ranks=self.score_ranks,
            centred=self.score_centred,
            noise=self.score_noise,
            queries_per_day=self.queries_per_day,
            epsilon_per_day=self.answer_epsilon_per_day,
            delta=self.answer_delta if private else None,
            sensitivity=self.sensitivity if private else None,
            answers_per_picture=self.answers_per_picture,
        )
        return None if limits == AnswerLimits() else limits


class RewardSettings(AnswerSettings, ServiceSettings):
    """Settings of a reward service."""

    model_dir: Path | None = None
    """Folder written by ``mor-reward train``; give this, ``function`` or ``upstream``."""
    function: str | None = None
    """Python function to serve instead of a trained model, as ``file.py:name``: one group a call, in several threads at
    a time, or an ``async def``."""
    upstream: Literal["openrlhf", "classify", "score", "rerank", "predict", "kserve", "chat", "verify"] | None = None
    """Protocol of a reward model that is served elsewhere, to be called instead of a trained model."""
    upstream_url: str | None = None
    """Address of the upstream, without the path of its calls."""
    upstream_model: str | None = None
    """Name of the model at the upstream."""
    upstream_key_file: Path | None = None
    """File with the upstream's bearer token; it is read for each call."""
    upstream_version: str | None = Field(None, max_length=200)
    """Version of the upstream's model; by default a hash of what the upstream says of it, renewed every minute."""
    upstream_options: JsonObject = Field(default_factory=dict)
    """Further settings of the protocol, as a JSON object."""
    upstream_proxy: ProxyAddress | None = None
    """HTTP proxy on the way to the upstream."""
    template: str | None = None
    """Checkpoint, as folder or hub name, whose chat template makes the upstream's texts; without it, plain text."""
    sees_pictures: bool = False
    """Send pictures to the upstream, where its protocol carries them."""
    calls_at_once: int = Field(32, ge=1, le=4096)
    """Calls of the function or the upstream at a time."""
    call_timeout_s: float = Field(60.0, gt=0)
    """Longest call of the function or the upstream, seconds; an earlier deadline of the caller is kept."""
    name: str | None = None
    """Name on the card; by default the name of the trained model or the function."""
    domains: str | None = None
    """Topics that the model can judge, as free text for the card; by default those of the trained model."""
    asks_domains: tuple[str, ...] | None = None
    """Domain labels of the prompts that this service wishes to be sent, for the card, as JSON: ``["medical"]``. A
    router sends no others. Null: whatever the router's operator allows."""
    asks_public_only: bool = False
    """Wish on the card to be sent only prompts whose source the router's operator has marked as public."""
    disclosure: Literal["coarse", "full"] = "coarse"
    """Content of card and answers beside the scores. ``coarse``: rounded figures of calibration, an id for each caller
    in place of the model's version, and reasons of failures in one sentence; ``full``: all, exactly."""
    answer_step_ms: int = Field(0, ge=0, le=60_000)
    """Answers to score requests, and refusals, leave at multiples of this time, milliseconds, so that they do not tell
    load and cached pictures. Of a caller's deadline, the whole multiples in four fifths count; one with none is
    refused. 0: when they are ready."""
    max_items: int = Field(64, ge=1)
    """Maximum items in a request; a larger request gets 413."""
    max_responses: int = Field(64, ge=1)
    """Maximum responses of an item; a larger item gets 413."""
    max_image_bytes: int = Field(MAX_BYTES, ge=1, le=MAX_BYTES)
    """Maximum bytes of one encoded picture, on the card; an item with a larger picture is unscorable."""
    concurrency: int = Field(16, ge=1)
    """Score requests processed at a time; further requests get 429 with Retry-After."""
    queue_responses: int = Field(4096, ge=1)
    """Responses that may wait for the model; a request that does not fit gets 429 with Retry-After."""
    batch_responses: int = Field(128, ge=1)
    """Maximum responses in one pass of the model."""
    batch_wait_ms: float = Field(3.0, ge=0)
    """Milliseconds that a partly filled pass waits for further requests."""
    image_cache_bytes: int = Field(256 << 20, ge=0)
    """Size of the picture cache in bytes; a caller need not send cached pictures again."""
    feature_cache_bytes: int = Field(256 << 20, ge=0)
    """Size of the cache of frozen encoder features in bytes; a cached picture is not encoded again."""
    encode_timeout_s: float = Field(30.0, gt=0)
    """Longest encoding of an item, seconds; an item that takes longer is an error, and the others wait for as long. The
    service is not ready while 8 such encodings have not ended."""
    threads: int = Field(1, ge=1)
    """CPU threads of one pass of the model."""
    device: str = "cpu"
    """Torch device of the model: ``cpu``, ``cuda``, ``cuda:1``."""

    @model_validator(mode="after")
    def _one_model(self) -> RewardSettings:
        if sum(given is not None for given in (self.model_dir, self.function, self.upstream)) != 1:
            raise ValueError(
                "give exactly one of MOR_MODEL_DIR (--model), MOR_FUNCTION (--function) and MOR_UPSTREAM (--upstream)"
            )
        if (self.upstream is None) != (self.upstream_url is None):
            raise ValueError("MOR_UPSTREAM (--upstream) and MOR_UPSTREAM_URL (--upstream-url) go together")
        return self

    @property
    def asks(self) -> Asks | None:
        """Wish for the card; null without one."""
        if self.asks_domains is None and not self.asks_public_only:
            return None
        return Asks(domains=self.asks_domains, public_only=self.asks_public_only)

    @property
    def limits(self) -> Limits:
        return Limits(
            items=self.max_items,
            responses=self.max_responses,
            request_bytes=self.max_request_bytes,
            image_bytes=self.max_image_bytes,
            concurrency=self.concurrency,
        )
