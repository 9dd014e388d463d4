"""One pass of the model over items of several requests; a failing item does not affect the others."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure
from mor_core.timed_calls import TimedCalls
from mor_core.wire import LARGEST_SCORE

from mor_reward.backbones import Example, PictureRefused, Scorer
from mor_reward.metrics import BATCH_RESPONSES, BATCH_SECONDS, ERRORS, RESPONSES

log = structlog.get_logger(__name__)


UNSUITABLE = "this item is over a limit of the service, or nothing that its model can judge"
_MODEL_FAILED = "the model failed on this item"


@dataclass(frozen=True)
class ItemOutcome:
    """Scores of one item in calibrated logits, one for each response, or the reason why it has none."""

    status: Literal["ok", "unscorable", "error"]
    scores: tuple[float, ...] | None = None
    detail: str | None = None
    brief: str | None = None
    """Detail without numbers, places and types of errors, for callers; null where ``detail`` may be told as it is."""


class ScoringEngine:
    """Scorer of items, each a group of responses in one context. Not thread-safe."""

    def __init__(
        self, scorer: Scorer, temperature: float, batch_responses: int, encode_timeout_s: float = 30.0
    ) -> None:
        """Divide raw scores by ``temperature``; pass at most ``batch_responses`` responses to the scorer at once.

        ``encode_timeout_s``: longest encoding of an item, in seconds.
        """
        self.calls = TimedCalls("the encoding of an item", encode_timeout_s, "MOR_ENCODE_TIMEOUT_S")
        self.uses_pictures = scorer.uses_pictures
        self._scorer = scorer
        self._temperature = temperature
        self._batch = batch_responses

    def run(self, items: Sequence[Sequence[Example]]) -> list[ItemOutcome]:
        """Score all items and return an outcome for each; a failing item does not affect the others."""
        started = time.perf_counter()
        outcomes: dict[int, ItemOutcome] = {}
        for number, examples in enumerate(items):
            unscorable = self._check_in_time(examples)
            if unscorable is not None:
                outcomes[number] = unscorable
        rest = [number for number in range(len(items)) if number not in outcomes]
        try:
            scored = self._score([items[number] for number in rest])
        except Exception:  # one item may be the cause, so each is scored alone
            log.warning("a batch failed; scoring its items one by one", items=len(rest), exc_info=True)
            scored = [self._score_alone(items[number]) for number in rest]
        outcomes.update(zip(rest, scored, strict=True))
        BATCH_SECONDS.observe(time.perf_counter() - started)
        return [outcomes[number] for number in range(len(items))]

    def _check_in_time(self, examples: Sequence[Example]) -> ItemOutcome | None:
        """Encode an item for the first time, with a time limit; what then is encoded again has been encoded in time."""
        try:
            return self.calls.run(self._check, examples)
        except (Invalid, Unavailable) as error:
            return failed_outcome(error)

    def _check(self, examples: Sequence[Example]) -> ItemOutcome | None:
        try:
            for index, example in enumerate(examples):
                reason = self._scorer.unscorable_reason(example)
                if reason is not None:
                    ERRORS.labels(reason="unscorable").inc()
                    return ItemOutcome("unscorable", detail=f"response {index}: {reason}", brief=UNSUITABLE)
        except Exception as error:  # any exception of the model belongs to this item alone
            return failed_outcome(error)
        return None

    def _score_alone(self, examples: Sequence[Example]) -> ItemOutcome:
        try:
            return self._score([examples])[0]
        except PictureRefused as error:
            ERRORS.labels(reason="unscorable").inc()
            return ItemOutcome("unscorable", detail=str(error), brief=UNSUITABLE)
        except Exception as error:  # any exception of the model belongs to this item alone
            return failed_outcome(error)

    def _score(self, items: Sequence[Sequence[Example]]) -> list[ItemOutcome]:
        distinct = list({self._identity(example): example for examples in items for example in examples}.values())
        known: dict[Hashable, float] = {}
        for start in range(0, len(distinct), self._batch):
            chunk = distinct[start : start + self._batch]
            BATCH_RESPONSES.observe(len(chunk))
            known.update(zip(map(self._identity, chunk), self._scorer.score(chunk).double().tolist(), strict=True))
        return [
            to_outcome([known[self._identity(example)] for example in examples], self._temperature)
            for examples in items
        ]

    def _identity(self, example: Example) -> Hashable:
        """Return a key that is equal for examples which the scorer cannot distinguish."""
        return example if self._scorer.uses_pictures else example.text_key


def to_outcome(scores: Sequence[float | None], temperature: float) -> ItemOutcome:
    """Return the outcome of an item with raw ``scores``; ``None`` is a response that the model cannot judge."""
    if None in scores:
        ERRORS.labels(reason="unscorable").inc()
        detail = f"response {scores.index(None)}: the model gives it no score"
        return ItemOutcome("unscorable", detail=detail, brief=UNSUITABLE)
    calibrated = [score / temperature for score in scores if score is not None]
    bad = [index for index, score in enumerate(calibrated) if not abs(score) <= LARGEST_SCORE]  # NaN compares false
    if bad:
        ERRORS.labels(reason="not_finite").inc()
        return ItemOutcome(
            "error",
            detail=f"the model returned {calibrated[bad[0]]} for response {bad[0]}; "
            f"a finite score within ±{LARGEST_SCORE:g} is needed",
            brief=_MODEL_FAILED,
        )
    RESPONSES.inc(len(calibrated))
    return ItemOutcome("ok", scores=tuple(calibrated))


def failed_outcome(error: Exception) -> ItemOutcome:
    """Return the outcome of an item on which the model failed, and log the error."""
    log.error("an item could not be scored", exc_info=error)
    ERRORS.labels(reason="model_error").inc()
    return ItemOutcome("error", detail=f"{_MODEL_FAILED}: {describe_failure(error)}", brief=_MODEL_FAILED)
