"""Settings of the reward service: environment variables ``MOR_*``, command-line options of ``mor-reward serve``."""

from __future__ import annotations

from pathlib import Path

from mor_core.images import MAX_BYTES
from mor_core.settings import ServiceSettings, Settings
from mor_core.wire import AnswerLimits, Distillation, Limits
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
    """Whether each group's scores are shifted to mean 0."""
    score_ranks: bool = False
    """Whether a group gets ranks, evenly spaced from -1 to 1, instead of scores."""
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
    """Different questions with a response about one picture that are scored for one caller in a day (UTC)."""
    distillation: Distillation | None = None
    """Whether a router may train a model of its own on these scores, for the card: ``allowed`` or ``forbidden``."""
    query_log: bool = True
    """Whether ``answers_dir``, where it is set, gets a log of what was asked and answered."""
    query_log_texts: bool = False
    """Whether the query log holds questions and responses. Without it, keyed hashes that only this service can make."""
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
    """Folder written by ``mor-reward train``; give this or ``function``."""
    function: str | None = None
    """Python function to serve instead of a trained model, as ``file.py:name``."""
    name: str | None = None
    """Name on the card; by default the name of the trained model or the function."""
    domains: str | None = None
    """Topics that the model can judge, as free text for the card; by default those of the trained model."""
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
        if (self.model_dir is None) == (self.function is None):
            raise ValueError("give exactly one of MOR_MODEL_DIR (--model) and MOR_FUNCTION (--function)")
        return self

    @property
    def limits(self) -> Limits:
        return Limits(
            items=self.max_items,
            responses=self.max_responses,
            request_bytes=self.max_request_bytes,
            image_bytes=self.max_image_bytes,
            concurrency=self.concurrency,
        )
