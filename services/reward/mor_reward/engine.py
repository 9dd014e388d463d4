"""One pass of the model over the items of several requests, in which no item can spoil another."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from mor_reward.backbones import Example, Scorer
from mor_reward.metrics import BATCH_RESPONSES, BATCH_SECONDS, ERRORS, RESPONSES

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What became of one item: scores in calibrated logits, one for each response, or why there are none."""

    status: Literal["ok", "unscorable", "error"]
    scores: tuple[float, ...] | None = None
    detail: str | None = None


class Engine:
    """Scores items, each a group of responses in one context. Called by one thread at a time."""

    def __init__(self, scorer: Scorer, temperature: float, batch_responses: int) -> None:
        """Served scores are raw scores / ``temperature``; a pass takes at most ``batch_responses`` at once."""
        self._scorer = scorer
        self._temperature = temperature
        self._batch = batch_responses

    def run(self, items: Sequence[Sequence[Example]]) -> list[Verdict]:
        """A verdict for each item. An item that cannot be scored leaves the others as they are."""
        started = time.perf_counter()
        verdicts: dict[int, Verdict] = {}
        for number, examples in enumerate(items):
            refusal = self._refusal(examples)
            if refusal is not None:
                verdicts[number] = refusal
        rest = [number for number in range(len(items)) if number not in verdicts]
        try:
            scored = self._score([items[number] for number in rest])
        except Exception:  # one item may be the cause: each is tried alone
            log.warning("a batch failed; scoring its items one by one", items=len(rest), exc_info=True)
            scored = [self._alone(items[number]) for number in rest]
        verdicts.update(zip(rest, scored, strict=True))
        BATCH_SECONDS.observe(time.perf_counter() - started)
        return [verdicts[number] for number in range(len(items))]

    def _refusal(self, examples: Sequence[Example]) -> Verdict | None:
        try:
            for index, example in enumerate(examples):
                reason = self._scorer.refuse(example)
                if reason is not None:
                    ERRORS.labels(reason="unscorable").inc()
                    return Verdict("unscorable", detail=f"response {index}: {reason}")
        except Exception as error:  # whatever the model raises concerns this item alone
            return _failed(error)
        return None

    def _alone(self, examples: Sequence[Example]) -> Verdict:
        try:
            return self._score([examples])[0]
        except Exception as error:  # whatever the model raises concerns this item alone
            return _failed(error)

    def _score(self, items: Sequence[Sequence[Example]]) -> list[Verdict]:
        distinct = list({self._seen(example): example for examples in items for example in examples}.values())
        known: dict[Hashable, float] = {}
        for start in range(0, len(distinct), self._batch):
            chunk = distinct[start : start + self._batch]
            BATCH_RESPONSES.observe(len(chunk))
            known.update(zip(map(self._seen, chunk), self._scorer.score(chunk).double().tolist(), strict=True))
        return [
            self._verdict([known[self._seen(example)] / self._temperature for example in examples])
            for examples in items
        ]

    def _seen(self, example: Example) -> Hashable:
        """Equal for examples that the scorer cannot tell apart."""
        return example if self._scorer.sees_pictures else example.said

    def _verdict(self, scores: list[float]) -> Verdict:
        bad = [index for index, score in enumerate(scores) if not math.isfinite(score)]
        if bad:
            ERRORS.labels(reason="not_finite").inc()
            return Verdict(
                "error", detail=f"the model gave {scores[bad[0]]} for response {bad[0]}; no score is made up"
            )
        RESPONSES.inc(len(scores))
        return Verdict("ok", scores=tuple(scores))


def _failed(error: Exception) -> Verdict:
    log.error("an item could not be scored", exc_info=error)
    ERRORS.labels(reason="model_error").inc()
    return Verdict("error", detail=f"the model failed on this item: {type(error).__name__}: {error}"[:500])
