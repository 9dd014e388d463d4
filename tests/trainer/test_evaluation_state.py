"""An evaluation that is going on at a kill continues from the checkpoint, with the results that it has."""

from __future__ import annotations

from typing import Any, cast

from mor_core.wire import RewardRecord
from mor_trainer.groups.evaluation import Evaluations, EvaluationState
from mor_trainer.groups.traces import GroupTraces

from tests.trainer.records import rollout_of
from tests.trainer.stages import reward_record


class Rows:
    ids = ("p0", "p1", "p2", "p3")
    domains = ("charts", "photos", None, None)

    def __len__(self) -> int:
        return len(self.ids)


def scored(group: str, score: float) -> RewardRecord:
    one = {"responses": ("answer",), "finish_reasons": ("stop",)}
    return reward_record(rollout_of(group).model_copy(update=one), (score,))


def evaluate(kill_after: int | None) -> dict[str, Any]:
    """Return the report of an evaluation of four prompts; the third fails, and the process dies in between."""
    reports = list[tuple[int, dict[str, Any]]]()

    def evaluations() -> Evaluations:
        return Evaluations("r", 2, GroupTraces(), lambda step, summary: reports.append((step, summary)))

    current = evaluations()
    current.begin(15, 15, cast(Any, Rows()), 60.0)
    groups = list(current.outstanding)
    for number, group in enumerate(groups):
        if number == kill_after:
            state = current.state()
            assert state is not None
            stored = EvaluationState.model_validate_json(state.model_dump_json())
            current = evaluations()
            current.restore(stored, cast(Any, Rows()), 60.0)
            assert list(current.outstanding) == groups[number:], "the same groups, and those with a result no more"
        if number == 2:
            assert current.reissue(group, 60.0, "failed once")
            assert not current.reissue(group, 60.0, "failed again")
        else:
            current.receive(scored(group, float(number)))
    assert current.state() is None
    ((step, summary),) = reports
    assert step == 15
    return summary


def test_a_killed_evaluation_reports_what_an_undisturbed_one_reports() -> None:
    whole = evaluate(None)
    assert (whole["answered"], whole["failed"], whole["reward"]) == (3, 1, 4 / 3)
    assert whole["domains"].keys() == {"charts", "photos"}
    for kill_after in range(4):
        assert evaluate(kill_after) == whole
