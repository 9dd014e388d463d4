"""The clients of a deterministic run: those of its first group score all of it, or it waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from mor_core.errors import Invalid
from mor_core.wire import LESS_TRUSTED, NOT_SENT, ClientScore, ModelRef, ObjectiveShare, RewardRecord
from mor_trainer.groups.pinned_scoring import PinnedScoring
from mor_trainer.groups.replay_log import ReplayLog

from tests.trainer.kit import Processes
from tests.trainer.records import rollout_of
from tests.trainer.stages import Stages, reward_record, until
from tests.trainer.test_deterministic import stored_alerts
from tests.trainer.watching import create, finish, points, snapshot

Status = Literal["ok", "shadow", "not_asked"]


def line(name: str, version: str | None = "1", status: Status = "ok", detail: str | None = None) -> ClientScore:
    model = None if version is None else ModelRef(name="tiny", version=version)
    return ClientScore(client=name, status=status, model=model, detail=detail)


def scored_by(*lines: ClientScore, gate: int = 3) -> RewardRecord:
    shares = (ObjectiveShare(name="helpful", share=1.0, gate_version=gate),)
    record = reward_record(rollout_of(), (1.0,))
    return record.model_copy(update={"clients": lines, "objectives": shares, "gate_version": gate})


def pinned(folder: Path, *lines: ClientScore) -> PinnedScoring:
    """Pin the conditions of a first group, and read them as another attempt does."""
    assert PinnedScoring(folder, lambda: None).changed_clients(scored_by(*lines)) == {}
    return PinnedScoring(folder, lambda: None)


THREE = (line("bank"), line("clinic"), line("lab"))


@pytest.mark.parametrize(
    ("lines", "changed"),
    [
        (THREE, {}),
        ((*THREE, line("newcomer", status="shadow"), line("guest", status="not_asked", detail="paused: audit")), {}),
        ((line("bank"), line("clinic"), line("lab", None, "not_asked", LESS_TRUSTED)), {}),
        ((line("bank"), line("clinic"), line("lab", None, "not_asked", f"{NOT_SENT}by its rule: it is grey")), {}),
        (THREE[:1], {"clinic": "was removed; enrol it again", "lab": "was removed; enrol it again"}),
        ((*THREE[:2], line("lab", "2")), {"lab": "serves tiny 2, this deterministic run began with tiny 1"}),
        (
            (*THREE[:2], line("lab", "2", "shadow", "serves tiny 2; its calibration was fitted on tiny 1")),
            {"lab": "does not count: serves tiny 2"},
        ),
        ((*THREE[:2], line("lab", status="not_asked", detail="paused: audit")), {"lab": "does not count: paused"}),
        ((*THREE, line("late")), {"late": "scores with weight, and did not when"}),
    ],
)
def test_a_group_of_other_clients_names_them(
    tmp_path: Path, lines: tuple[ClientScore, ...], changed: dict[str, str]
) -> None:
    found = pinned(tmp_path, *THREE).changed_clients(scored_by(*lines))
    assert found.keys() == changed.keys()
    assert all(found[name].startswith(reason) for name, reason in changed.items()), found


def test_a_client_that_scores_late_pins_its_model_then(tmp_path: Path) -> None:
    conditions = pinned(tmp_path, line("bank"), line("lab", None, "not_asked", LESS_TRUSTED))
    assert conditions.changed_clients(scored_by(line("bank"), line("lab", "1"))) == {}
    again = PinnedScoring(tmp_path, lambda: None)
    assert set(again.changed_clients(scored_by(line("bank"), line("lab", "2")))) == {"lab"}


def test_another_gate_version_or_a_broken_file_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    conditions = pinned(tmp_path, *THREE)
    conditions.check_gate(scored_by(*THREE))
    with pytest.raises(Invalid, match=r"by gate versions \{'helpful': 4\}, .* pinned to \{'helpful': 3\}; activate"):
        conditions.check_gate(scored_by(*THREE, gate=4))
    (tmp_path / "record" / "scoring.json").write_text("{}")
    with pytest.raises(Invalid, match=r"scoring\.json: .*restore it from a backup"):
        PinnedScoring(tmp_path, ReplayLog(tmp_path).first_record)


def test_a_log_of_an_earlier_version_pins_the_clients_of_its_first_group(tmp_path: Path) -> None:
    conditions = PinnedScoring(tmp_path, lambda: scored_by(*THREE))
    assert set(conditions.changed_clients(scored_by(*THREE[:2]))) == {"lab"}
    assert (tmp_path / "record" / "scoring.json").exists()


def test_a_run_waits_for_a_client_that_was_removed_and_goes_on_when_it_is_back(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    stages.beta = "shadow"
    back = False

    def rescore(record: RewardRecord) -> RewardRecord:
        gone = record.rollout.weights_version >= 1 and not back
        others: tuple[Any, ...] = () if gone else (line("lab"),)
        return record.model_copy(update={"clients": (*record.clients, *others)})

    stages.rescore = rescore
    run = create(processes, model=tiny, prompts=prompts, deterministic=True, steps=4)
    with processes.working():
        until(lambda: bool(stored_alerts(processes, run)), 200, "the alert was raised")
        [alert] = stored_alerts(processes, run)
        assert (alert["name"], "lab (was removed; enrol it again" in alert["reason"]) == ("waiting_for_clients", True)
        step = snapshot(processes, run)["step"]
        assert step is not None
        assert 1 <= step < 4
        back = True
        finish(processes, run)
    assert points(processes, run)[-1]["groups_dropped"] == 0
    log = ReplayLog(processes.runs_dir / run)
    taken = [group.record for at in range(1, 5) for group in (log.read(at) or pytest.fail("not recorded")).taken]
    assert {tuple(score.client for score in record.clients if score.status == "ok") for record in taken} == {
        ("alpha", "lab")
    }
