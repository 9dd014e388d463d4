"""Evaluated steps of a run: the best one, and the checkpoints that must stay because of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mor_core.wire import Count, Finite

_LEAST_ANSWERED = 0.9
"""Share of the evaluation prompts that need a result: the mean over fewer is that of other questions."""


class EvaluatedStep(BaseModel):
    """Result of one evaluation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: Count
    """Steps that the evaluated policy was trained for; 0 is the base model."""
    reward: Finite
    """Mean fused reward, logits."""
    gate_version: Count | None = None
    """Gate version that scored it; rewards of different ones are not comparable."""

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> EvaluatedStep | None:
        """Return the result in the summary of an evaluation; ``None`` where too few prompts have one."""
        try:
            if summary["answered"] < _LEAST_ANSWERED * summary["prompts"]:
                return None
            return cls.model_validate(dict(summary))
        except (KeyError, TypeError, ValidationError):
            return None


def comparable(evaluated: Iterable[EvaluatedStep]) -> list[EvaluatedStep]:
    """Return the evaluations by the gate version of the latest one, oldest first."""
    ordered = sorted(evaluated, key=lambda one: one.step)
    return [one for one in ordered if one.gate_version == ordered[-1].gate_version]


def best_step(evaluated: Iterable[EvaluatedStep]) -> EvaluatedStep | None:
    """Return the best evaluation by the latest gate version, the earliest of equal ones; ``None`` without any."""
    return max(comparable(evaluated), key=lambda one: (one.reward, -one.step), default=None)


def checkpoint_at(step: int, checkpoints: Iterable[int]) -> int | None:
    """Return the step of the newest checkpoint that is no newer than ``step``."""
    return max((one for one in checkpoints if one <= step), default=None)


def kept_checkpoints(
    checkpoints: Sequence[int], newest: int, evaluated: Sequence[EvaluatedStep], under_evaluation: int | None
) -> Collection[int]:
    """Return the steps of the checkpoints to keep.

    These are the ``newest`` ones, that of the best evaluation by each of the two latest gate versions, and that of the
    policy that is being evaluated: it may turn out the best.
    """
    kept = {*sorted(checkpoints)[-newest:]}
    ordered = sorted(evaluated, key=lambda one: one.step)
    versions = list(dict.fromkeys(one.gate_version for one in reversed(ordered)))[:2]
    wanted = [under_evaluation] if under_evaluation is not None else []
    for version in versions:
        best = best_step(one for one in ordered if one.gate_version == version)
        wanted += [best.step] if best is not None else []
    return kept | {found for step in wanted if (found := checkpoint_at(step, checkpoints)) is not None}
