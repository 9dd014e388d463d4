"""Numbers of a forged record fit into every sum that is computed over records."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from mor_core.wire import ClientScore, PromptRecord, RewardRecord, TokenBlock
from pydantic import ValidationError

from tests.core.records import prompt, rollout

HUGE = [1.7e308, -1.7e308, 1e13]
FIGURES = ("weight", "gate_weight", "seconds")
SERIES = ("raw", "standardised", "calibrated")


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("field", [*FIGURES, *SERIES])
def test_no_figure_of_a_client_can_overflow_a_mean(field: str, huge: float) -> None:
    value: Any = huge if field in FIGURES else (huge, 0.0)
    with pytest.raises(ValidationError, match=field):
        ClientScore(client="a", status="ok", **{field: value})


@pytest.mark.parametrize("huge", HUGE)
def test_no_entropy_or_time_can_overflow_a_mean(huge: float) -> None:
    sampled = rollout(prompt("r"))
    fields: dict[str, Any] = {"run": "r", "group_id": sampled.group_id, "rollout": sampled, "clients": ()}
    fields |= {"gate_version": 0, "fusion": "weighted", "rewards": (0.0, 0.0)}
    with pytest.raises(ValidationError, match="entropy"):
        RewardRecord(**fields, entropy=huge)
    with pytest.raises(ValidationError, match="stamps"):
        RewardRecord(**fields, entropy=0.0, stamps={"router": huge})
    assert statistics.fmean([1e12] * 10_000) == 1e12


def test_stamps_are_few() -> None:
    with pytest.raises(ValidationError, match="stamps"):
        PromptRecord.model_validate(prompt("r").model_dump() | {"stamps": {str(n): 1.0 for n in range(1000)}})


@pytest.mark.parametrize("logprob", [-1e30, 1e30, 1e5])
def test_no_log_probability_makes_an_importance_ratio_undefined(logprob: float) -> None:
    with pytest.raises(ValidationError, match="response_logprobs"):
        TokenBlock(prompt_token_ids=(1,), response_token_ids=((1,),), response_logprobs=((logprob,),))
