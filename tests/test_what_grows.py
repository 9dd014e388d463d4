"""Everything that grows is bounded, or the operator guide says who deletes it; each line of its table has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mor_core.runs import RunSpec
from mor_core.settings import Settings
from mor_reward.config import RewardSettings
from mor_rollout.config import RolloutSettings
from mor_router.config import RouterSettings
from mor_trainer.config import ControlSettings, WorkerSettings
from redis import Redis

from tests.conftest import Valkey

_ROOT = Path(__file__).parents[1]
_SETTINGS: tuple[type[Settings], ...] = (
    ControlSettings,
    WorkerSettings,
    RolloutSettings,
    RouterSettings,
    RewardSettings,
)
_SCALE = {"GiB": 1 << 30, "MiB": 1 << 20}

TESTS = {
    "checkpoints of an active run": "trainer/test_bounded_folders.py::test_the_newest_checkpoints_are_kept",
    "weights versions of an active run": (
        "trainer/test_weights.py::test_published_files_match_their_hashes_and_old_versions_are_deleted"
    ),
    "replay log of a deterministic run": (
        "trainer/test_retention.py::test_the_oldest_files_of_ended_runs_go_and_the_final_model_stays"
    ),
    "checkpoints, versions, replay logs and exports of ended runs": (
        "trainer/test_retention.py::test_the_oldest_files_of_ended_runs_go_and_the_final_model_stays"
    ),
    "final models": "trainer/test_retention.py::test_the_oldest_files_of_ended_runs_go_and_the_final_model_stays",
    "exported models of a run": "trainer/test_model_exports.py::test_the_two_newest_exports_are_kept",
    "parts of files that a killed worker left": (
        "trainer/test_retention.py::test_the_oldest_files_of_ended_runs_go_and_the_final_model_stays"
    ),
    "events of a run": "trainer/test_status.py::test_a_cursor_older_than_the_kept_events_gets_a_gap",
    "samples and their pictures": "trainer/test_bounded_folders.py::test_samples_and_dead_letters_are_bounded",
    "dead letters": "trainer/test_bounded_folders.py::test_samples_and_dead_letters_are_bounded",
    "events, samples, dead letters and acknowledged alerts of ended runs": (
        "trainer/test_retention.py::test_old_history_is_forgotten_and_figures_stay"
    ),
    "metrics and evaluations": "trainer/test_retention.py::test_old_history_is_forgotten_and_figures_stay",
    "open alerts": "trainer/test_status.py::test_alerts_are_one_entry_until_acknowledged",
    "indexes of prompts": "core/test_prompt_index_folders.py::test_indexes_that_nobody_uses_are_deleted",
    "results of checks of prompts": "trainer/test_bounded_folders.py::test_the_newest_results_of_checks_are_kept",
    "weights that the rollout service pulled": "rollout/test_weights.py::test_the_cache_is_bounded",
    "pictures and tokens of groups": (
        "core/test_blob_sweep.py::test_the_blobs_of_a_run_that_vanished_are_deleted_after_a_week"
    ),
    "live groups and uploaded pairs for proposals of labels": (
        "router/test_label_proposals.py::test_live_candidates_are_bounded_and_junk_among_them_harms_none"
    ),
    "streams": "core/test_streams.py::test_a_full_stream_makes_its_producer_wait",
    "removed clients that were distrusted": (
        "router/test_former_distrust.py::test_a_pause_hides_no_distrust_and_junk_stops_no_enrolment"
    ),
    "append-only file": "test_what_grows.py::test_the_queue_server_rewrites_its_file",
    "audit log of the router": "router/test_audit_log.py::test_a_file_that_is_moved_away_is_begun_anew",
    "logs of the services": "core/test_log_limit.py::test_lines_that_are_left_out_are_counted",
    "TensorBoard's files": "trainer/test_trackers.py::",
    "query log of a reward service": "reward/test_query_log.py::test_the_oldest_files_go_when_the_log_is_full",
    "ledger of a reward service's answers": "reward/test_answer_budgets.py::test_old_questions_and_sums_are_deleted",
    "checkpoint of a reward model's training": (
        "reward/test_training.py::test_a_resumed_training_ends_bit_equal_to_an_uninterrupted_one"
    ),
}
"""By line of the table: the test that shows its limit."""


def _table() -> dict[str, str]:
    guide = (_ROOT / "docs" / "operator-guide.md").read_text()
    section = guide.partition("\n## Disks\n")[2].partition("\n## ")[0]
    table = section.partition("\n| what | where | limit |\n")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {what: limit for what, _, limit in rows}


def test_every_line_has_a_test() -> None:
    assert _table().keys() == TESTS.keys()
    for test in TESTS.values():
        file, _, name = test.partition("::")
        assert f"def {name}" in (_ROOT / "tests" / file).read_text(), test


@pytest.mark.parametrize("what", TESTS)
def test_the_defaults_are_those_of_the_settings(what: str) -> None:
    for name, number, unit in re.findall(r"`(\w+)`(?: of the run)?, ([\d,]+)(?: (GiB|MiB))?", _table()[what]):
        default = int(number.replace(",", "")) * _SCALE.get(unit, 1)
        if name.startswith("MOR_"):
            field = name.removeprefix("MOR_").lower()
            found = {one.model_fields[field].default for one in _SETTINGS if field in one.model_fields}
        else:
            found = {RunSpec.model_fields[name].default}
        assert found == {default}, name


def test_the_queue_server_rewrites_its_file(valkey: Valkey) -> None:
    with Redis(port=valkey.port, decode_responses=True) as client:
        assert client.config_get("auto-aof-rewrite-percentage") == {"auto-aof-rewrite-percentage": "100"}
