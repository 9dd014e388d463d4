"""Groups that are not trained on: what is wrong with a scored group, its dead letter, and the bound on such prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mor_core.errors import Invalid
from mor_core.wire import LARGEST_REWARD, DeadLetter, RewardRecord

REASON_CHARACTERS = 2000
"""Longest reason in an alert, as in a dead letter of ours."""
_RECORD_CHARACTERS = 64_000
"""Longest record in an alert, characters: enough to find the fault, while an event stays small."""
_ROWS_SHOWN = 20
"""Rows that the error of a run names; the alerts name all."""


class PromptsFailed(Invalid):
    """The groups of more prompts were dropped than ``max_bad_prompts`` allows."""

    def __init__(self, rows: Sequence[str], prompts: int, left_out: int, share: float, reason: str) -> None:
        """``rows``: ids of the bad rows. ``left_out``: of ``prompts``, those that the check before the first step found
        bad. ``reason``: why the last row was dropped."""
        shown = ", ".join(repr(row[:80]) for row in rows[:_ROWS_SHOWN]) + (", …" if len(rows) > _ROWS_SHOWN else "")
        before = f" and {left_out} left out before" if left_out else ""
        super().__init__(
            f"the groups of {len(rows)} of {prompts} prompts were dropped{before}, more than "
            f"max_bad_prompts={share:g} allows: {shown}; the last one: {reason[:REASON_CHARACTERS]}. Correct or remove "
            "these rows, or raise max_bad_prompts, and create the run again"
        )


def defect_of(record: RewardRecord, size: int) -> str | None:
    """Return the reason why a group of ``size`` responses must not be used, if there is one."""
    if not len(record.rewards) == len(record.rollout.responses) == size:
        return (
            f"{len(record.rewards)} rewards for {len(record.rollout.responses)} responses; "
            f"this group has {size} of each"
        )
    worst = max(record.rewards, key=abs)
    if abs(worst) > LARGEST_REWARD:
        return f"a reward of {worst:g}; rewards within ±{LARGEST_REWARD:g} logits are trained on"
    return None


def bounded(letter: DeadLetter) -> dict[str, Any]:
    """Return the parts of a dead letter for an event; an event larger than a record would be lost as a whole."""
    kept = {"reason": letter.reason[:REASON_CHARACTERS], "record": letter.record[:_RECORD_CHARACTERS]}
    return {**letter.model_dump(mode="json"), **kept, "trace": None}
