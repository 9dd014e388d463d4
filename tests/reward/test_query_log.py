"""Query log and report: what was asked is recorded without its texts, bounded, and never holds an answer up."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from mor_reward import cli
from mor_reward.answers import gaussian_budget, protection_report
from mor_reward.answers.answer_ledger import utc_day
from mor_reward.answers.query_log import PATTERN, QueryLog
from typer.testing import CliRunner

from tests.reward.limited import OTHER, ask, group, limited
from tests.reward.served import TOKEN, metric, service

pytestmark = pytest.mark.anyio

QUESTION, RESPONSE = "Is the patient's scan normal?", "It shows a lesion"


def lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob(PATTERN))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


async def test_each_item_has_a_line_without_its_texts(tmp_path: Path) -> None:
    async with service(limited(tmp_path, queries_per_day=1)) as http:
        item = group("1", [RESPONSE, "Nothing"], question=QUESTION, picture=3) | {"objective": "be exact"}
        (answer,) = await ask(http, item)
        await ask(http, group("2", ["Another"], question=QUESTION, picture=3), token=OTHER)
        await ask(http, group("3", ["Third"]))
    first, second, third = lines(tmp_path / "answers")
    assert (first["caller"], first["status"], first["objective"]) == ("a", "ok", "be exact")
    assert first["scores"] == list(answer.scores or ())
    assert (second["caller"], second["status"]) == ("b", "ok")
    assert first["question"] == second["question"] and first["pictures"] == second["pictures"]
    assert (third["status"], third["scores"]) == ("refused", None)
    everything = b"".join(file.read_bytes() for file in (tmp_path / "answers").glob("*"))
    for text in (QUESTION, RESPONSE, "Nothing", item["messages"][0]["content"][0]["image_url"]["url"][7:]):
        assert text.encode() not in everything


async def test_hashes_of_another_service_differ(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        async with service(limited(tmp_path / name)) as http:
            await ask(http, group("1", [RESPONSE], question=QUESTION))
    one, two = (lines(tmp_path / name / "answers")[0] for name in ("one", "two"))
    assert one["question"] != two["question"] and one["responses"] != two["responses"]


async def test_texts_are_logged_where_the_client_wants_them(tmp_path: Path) -> None:
    async with service(limited(tmp_path, query_log_texts=True)) as http:
        await ask(http, group("1", [RESPONSE], question=QUESTION))
    (line,) = lines(tmp_path / "answers")
    assert line["texts"]["responses"] == [RESPONSE]
    assert QUESTION in json.dumps(line["texts"]["messages"])


async def test_long_texts_keep_no_question_out_of_the_log_and_the_report(tmp_path: Path) -> None:
    async with service(limited(tmp_path, query_log_texts=True, max_request_bytes=64 << 20)) as http:
        for number in range(3):
            (answer,) = await ask(http, group("1", [f"{number}" * 1_000_000 + letter for letter in "abcdef"]))
            assert answer.status == "ok"
    report = protection_report.build(tmp_path / "answers", 1)
    assert (report.callers[0].scored, report.callers[0].responses, report.unreadable_lines) == (3, 18, 0)
    assert all(line["texts"] is None for line in lines(tmp_path / "answers"))


async def test_a_log_that_is_switched_off_is_not_written(tmp_path: Path) -> None:
    async with service(limited(tmp_path, query_log=False, score_noise=1.0)) as http:
        await ask(http, group("1", [RESPONSE]))
    assert lines(tmp_path / "answers") == []


def test_the_oldest_files_go_when_the_log_is_full(tmp_path: Path) -> None:
    log = QueryLog(tmp_path, most_bytes=1 << 20, most_days=30)
    for number in range(3000):
        log._write([b'{"number": %d, "text": "%s"}\n' % (number, b"x" * 1000)], 0)
    sizes = [file.stat().st_size for file in tmp_path.glob(PATTERN)]
    assert len(sizes) > 10 and 900_000 < sum(sizes) <= (1 << 20) + 2000
    assert lines(tmp_path)[-1]["number"] == 2999


def test_old_files_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "queries-2001-01-01.00001.jsonl").write_text("{}\n")
    QueryLog(tmp_path, most_bytes=1 << 20, most_days=30)._write([b'{"number": 1}\n'], 0)
    assert [line["number"] for line in lines(tmp_path)] == [1]


async def test_a_full_disk_costs_lines_and_no_answers(tmp_path: Path) -> None:
    async with service(limited(tmp_path)) as http:
        full = tmp_path / "answers" / f"queries-{utc_day(time.time())}.00001.jsonl"
        full.symlink_to("/dev/full")
        (answer,) = await ask(http, group("1", [RESPONSE]))
        assert answer.status == "ok"
        with anyio.fail_after(60):
            while await metric(http, 'mor_disk_full{writer="query_log"}') != 1:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        full.unlink()
        await ask(http, group("2", [RESPONSE]))
    stated, last = lines(tmp_path / "answers")
    assert stated["lost"] == 1
    assert last["status"] == "ok"


def test_a_line_that_a_killed_process_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    log = QueryLog(tmp_path, most_bytes=1 << 20, most_days=30)
    log._write([b'{"number": 1}\n'], 0)
    (file,) = tmp_path.glob(PATTERN)
    with file.open("a") as opened:
        opened.write('{"numb')
    log._write([b'{"number": 2}\n'], 0)
    assert file.read_text().splitlines() == ['{"number": 1}', '{"numb', '{"number": 2}']


async def test_the_report_says_who_asked_what_and_what_is_left(tmp_path: Path) -> None:
    limits = {"queries_per_day": 2, "score_noise": 4.0, "score_sensitivity": 0.1, "answer_epsilon_per_day": 2.0}
    async with service(limited(tmp_path, domains="lesions", distillation="forbidden", **limits)) as http:
        for number in range(3):
            await ask(http, group("1", ["a", "b"], question=f"Q{number}", picture=number) | {"objective": "be exact"})
        await ask(http, group("1", ["a"], picture=1), token=OTHER)
    with (tmp_path / "answers" / "queries-2999-01-01.00001.jsonl").open("w") as broken:
        broken.write("no JSON\n")
    arguments = ["report", "--answers-dir", str(tmp_path / "answers")]
    found = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    one, two = found["callers"]
    assert {
        key: one[key] for key in ("caller", "items", "scored", "refused", "responses", "questions", "pictures")
    } == {
        "caller": "a",
        "items": 3,
        "scored": 2,
        "refused": 1,
        "responses": 4,
        "questions": 3,
        "pictures": 3,
    }
    assert (one["groups_today"], one["groups_left"], two["groups_left"]) == (2, 0, 1)
    assert one["objectives"] == {"be exact": 3} and two["objectives"] == {"(none)": 1}
    assert 0 < two["epsilon_today"] < one["epsilon_today"] <= 2.0
    assert one["epsilon"] == one["epsilon_today"] < found["epsilon"]
    assert 0 < one["answers_left"] == two["answers_left"] - 3
    assert found["card"]["domains"] == "lesions" and found["unreadable_lines"] == 1
    text = CliRunner().invoke(cli.app, arguments).stdout
    assert "a: 3 items asked (3 different questions, 3 pictures); 2 scored with 4 responses, 1 refused" in text
    assert "today: 2 different groups, 0 left" in text
    assert "Training of another model on the scores: forbidden" in text


async def test_the_report_does_not_take_a_missing_log_for_silence(tmp_path: Path) -> None:
    arguments = ["report", "--answers-dir", str(tmp_path / "answers")]
    async with service(limited(tmp_path, queries_per_day=5, query_log=False)) as http:
        for number in range(3):
            await ask(http, group("1", ["a"], question=f"Q{number}"))
    text = CliRunner().invoke(cli.app, arguments).stdout
    assert "The query log has no line of these days" in text and "0 items" not in text
    assert "a: 3 different groups in the ledger, and none in the query log" in text
    async with service(limited(tmp_path, queries_per_day=5)) as http:
        await ask(http, group("1", ["a"]))
    text = CliRunner().invoke(cli.app, arguments).stdout
    assert f"The query log begins on {utc_day(time.time())}" in text
    assert "a: 1 items asked" in text and "today: 4 different groups, 1 left" in text


async def test_the_epsilon_of_days_and_of_callers_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"score_noise": 4.0, "score_sensitivity": 0.1, "answer_epsilon_per_day": 2.0, "answer_delta": 1e-6}
    start = time.time()
    for days in (3, 1, 0):
        monkeypatch.setattr(time, "time", lambda ago=days: start - 86400 * ago)
        async with service(limited(tmp_path, **limits)) as http:
            for token in (TOKEN, OTHER):
                await ask(http, group("1", ["a", "b"]), token=token)
    report = protection_report.build(tmp_path / "answers", 30)
    cost = gaussian_budget.cost(0.1, 4.0)
    for one in report.callers:
        assert one.epsilon_today == pytest.approx(gaussian_budget.epsilon(2 * cost, 1e-6))
        assert one.epsilon == pytest.approx(gaussian_budget.epsilon(6 * cost, 1e-6))
        assert one.groups_debited == 3
    assert report.epsilon == pytest.approx(gaussian_budget.epsilon(12 * cost, 1e-6))
    assert protection_report.build(tmp_path / "answers", 2).callers[0].groups_debited == 2


async def test_the_report_is_made_while_the_service_runs(tmp_path: Path) -> None:
    async with service(limited(tmp_path, queries_per_day=5)) as http:
        await ask(http, group("1", ["a"]))
        report = protection_report.build(tmp_path / "answers", 1)
    assert report.callers[0].groups_left == 4


def test_a_folder_of_no_service_is_named(tmp_path: Path) -> None:
    found = CliRunner().invoke(cli.app, ["report", "--answers-dir", str(tmp_path)])
    assert found.exit_code == 1
    assert "no service has used this folder" in found.stderr
