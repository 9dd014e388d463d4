"""Budgets of answers: refusals harm nobody else, repeated questions are free, and no crash or full disk forgets any."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from mor_core.disk_full import DiskFull
from mor_core.errors import Invalid
from mor_core.wire import ScoreResponse
from mor_reward.answers import gaussian_budget
from mor_reward.answers.answer_ledger import LEDGER_FILE, AnswerLedger, DayBudget, GroupDebit, read_spent
from mor_reward.app import create_app

from tests.ports import free_port
from tests.reward.limited import OTHER, ask, group, limited, scores, statuses
from tests.reward.served import TOKEN, service
from tests.small_files import largest_file

pytestmark = pytest.mark.anyio

OK, REFUSED = "ok", "unscorable"


async def test_groups_over_the_budget_of_a_day_are_unscorable(tmp_path: Path) -> None:
    async with service(limited(tmp_path, queries_per_day=2)) as http:
        items = [group(str(number), ["a", "b"], question=f"Question {number}") for number in range(3)]
        assert await statuses(http, *items) == [OK, OK, REFUSED]
        answer = (await ask(http, items[2]))[0]
        assert answer.scores is None and "2 groups are used up" in (answer.detail or "")
        assert await statuses(http, *items) == [OK, OK, REFUSED], "what was asked before is free"
        assert await statuses(http, group("x", ["b", "a"], question="Question 0")) == [OK], "in any order"
        assert await statuses(http, *items, token=OTHER) == [OK, OK, REFUSED], "another router has its own"


async def test_one_picture_gets_a_bounded_number_of_answers(tmp_path: Path) -> None:
    async with service(limited(tmp_path, answers_per_picture=4)) as http:
        assert await statuses(http, group("1", ["a", "b", "c"], picture=1)) == [OK]
        assert await statuses(http, group("2", ["d", "e"], picture=1)) == [REFUSED]
        assert await statuses(http, group("3", ["a", "d"], picture=1)) == [OK], "one of them is new"
        assert await statuses(http, group("4", ["a"], question="Which?", picture=1)) == [REFUSED]
        assert await statuses(http, group("5", ["d", "e"], picture=2)) == [OK], "another picture"
        assert await statuses(http, group("6", ["d", "e", "f", "g"])) == [OK], "without a picture"
        assert await statuses(http, group("7", ["h"])) == [REFUSED], "a question without a picture counts as one"
        assert await statuses(http, group("8", ["h"], question="Which?")) == [OK]


async def test_a_model_that_sees_no_pictures_bounds_answers_to_one_question(tmp_path: Path) -> None:
    settings = limited(tmp_path, answers_per_picture=2)
    (tmp_path / "scorer.py").write_text("def score(messages, responses):\n    return [1.0 for _ in responses]\n")
    async with service(settings) as http:
        assert await statuses(http, group("1", ["a", "b"], picture=1)) == [OK]
        assert await statuses(http, group("2", ["c"], picture=2)) == [REFUSED], "the picture changes no score"
        assert await statuses(http, group("3", ["c"], question="Which?", picture=1)) == [OK]


async def test_a_privacy_budget_refuses_when_it_is_spent(tmp_path: Path) -> None:
    limits = {"score_noise": 1.0, "score_sensitivity": 0.1, "answer_epsilon_per_day": 1.0}
    settings = limited(tmp_path, **limits)
    affordable = 0
    cost = gaussian_budget.cost(0.1, 1.0)
    while gaussian_budget.epsilon((affordable + 1) * cost, settings.answer_delta) <= 1.0:
        affordable += 1
    assert affordable > 2
    async with service(settings) as http:
        items = [group(str(number), ["a"], question=f"Question {number}") for number in range(affordable + 2)]
        assert await statuses(http, *items) == [OK] * affordable + [REFUSED] * 2
        twice = [group("twice", ["a", "a"], question="Question 0")]
        assert await statuses(http, *twice) == [OK], "an answer that was given costs nothing again"
    (spent,) = read_spent(tmp_path / "answers")
    assert (spent.caller, spent.queries, spent.answers) == ("a", affordable, affordable)


def test_a_budget_in_which_no_answer_fits_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="raise the noise"):
        create_app(limited(tmp_path, score_noise=1.0, answer_epsilon_per_day=3.0))


async def test_budgets_are_renewed_the_next_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = 0
    monkeypatch.setattr(time, "time", lambda: 1.8e9 + days * 86400)
    async with service(limited(tmp_path, queries_per_day=1, query_log=False, query_log_days=1)) as http:
        items = [group(str(number), ["a"], question=f"Question {number}") for number in range(2)]
        assert await statuses(http, *items) == [OK, REFUSED]
        days = 1
        assert await statuses(http, *items[::-1]) == [OK, REFUSED]
        days = 0  # a clock that is set back over midnight
        assert await statuses(http, *items) == [OK, REFUSED]
    assert [(spent.day, spent.queries) for spent in read_spent(tmp_path / "answers")] == [
        ("2027-01-15", 1),
        ("2027-01-16", 1),
    ]


def test_old_questions_and_sums_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = 0
    monkeypatch.setattr(time, "time", lambda: 1.8e9 + days * 86400)
    ledger = AnswerLedger(tmp_path, DayBudget(queries=1000), days=5)
    sizes = []
    for day in range(20):
        days = day
        debits = [GroupDebit(b"%d" % n, frozenset([b"a%d" % n]), frozenset([b"p"])) for n in range(50)]
        assert ledger.debit("a", debits) == [None] * 50
        sizes.append(ledger._sql.execute("SELECT count(*) FROM asked").fetchone()[0])
    ledger.close()
    assert max(sizes) <= 200
    assert len(read_spent(tmp_path)) == 5


@pytest.mark.parametrize("rho", [1e-4, 0.01, 0.3, 2.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_the_renyi_epsilon_bounds_the_exact_one_closely(rho: float, delta: float) -> None:
    """The exact δ of Gaussian noise is that of Balle and Wang (2018), theorem 8, with Δ/σ = √(2ρ)."""
    mu = math.sqrt(2 * rho)
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        found = _cdf(mu / 2 - middle / mu) - math.exp(middle) * _cdf(-mu / 2 - middle / mu)
        low, high = (middle, high) if found > delta else (low, middle)
    epsilon = gaussian_budget.epsilon(rho, delta)
    assert high <= epsilon <= 1.3 * high + 0.002
    assert gaussian_budget.epsilon(gaussian_budget.largest_cost(epsilon, delta), delta) <= epsilon


def test_the_epsilon_is_that_of_another_accountant() -> None:
    accounting = pytest.importorskip("dp_accounting", reason="needs mor-reward[dp]")
    rdp = pytest.importorskip("dp_accounting.rdp", reason="needs mor-reward[dp]")

    for answers, delta in ((10, 1e-5), (1000, 1e-6)):
        accountant = rdp.RdpAccountant()
        accountant.compose(accounting.GaussianDpEvent(1.0 / 0.05), answers)
        ours = gaussian_budget.epsilon(answers * gaussian_budget.cost(0.05, 1.0), delta)
        assert ours == pytest.approx(accountant.get_epsilon(delta), rel=0.02)


async def test_an_answer_that_cannot_be_debited_is_not_given(tmp_path: Path) -> None:
    async with service(limited(tmp_path, queries_per_day=100_000, query_log=False)) as http:
        items = [group(str(number), ["a", "b"], question=f"Question {number}") for number in range(64)]
        with largest_file(4096):
            response = await http.post("/v1/score", json={"contract": "mor.reward/1", "items": items, "images": {}})
        assert response.status_code == 503 and "scores" not in response.json()
        assert int(response.headers["retry-after"]) >= 1
        assert await statuses(http, *items) == [OK] * 64, "as soon as there is room"
    assert read_spent(tmp_path / "answers")[0].queries == 64


def test_a_full_disk_debits_nothing(tmp_path: Path) -> None:
    ledger = AnswerLedger(tmp_path, DayBudget(queries=100_000), days=5)
    pages = ledger._sql.execute("PRAGMA page_count").fetchone()[0]
    ledger._sql.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite meets then is what it meets on a full disk
    debits = [GroupDebit(b"%d" % n, frozenset([b"a%d" % n]), frozenset([b"p"])) for n in range(500)]
    with pytest.raises(DiskFull, match="make room"):
        ledger.debit("a", debits)
    ledger._sql.execute("PRAGMA max_page_count = 100000")
    assert ledger.debit("a", debits) == [None] * 500
    ledger.close()
    assert read_spent(tmp_path)[0].queries == 500


def _foreign(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as sql:
        sql.execute("CREATE TABLE totals (day TEXT, caller TEXT)")


def _torn(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * 4096)


@pytest.mark.parametrize("damage", [_foreign, _torn, lambda file: file.write_bytes(b"junk" * 2048)])
def test_a_damaged_ledger_is_named_at_the_start(damage: Callable[[Path], None], tmp_path: Path) -> None:
    file = tmp_path / LEDGER_FILE
    if damage is not _foreign:
        AnswerLedger(tmp_path, DayBudget(queries=5), days=5).close()
    damage(file)
    with pytest.raises(Invalid, match="restore it, or move it away"):
        AnswerLedger(tmp_path, DayBudget(queries=5), days=5)


def test_a_lost_secret_is_not_replaced_in_silence(tmp_path: Path) -> None:
    """Two draws of noise for one question would be nearer to its score than one."""
    app = create_app(limited(tmp_path, score_noise=1.0, queries_per_day=5))
    del app
    gc.collect()
    (tmp_path / "answers" / "secret.key").unlink()
    with pytest.raises(Invalid, match="restore it from a backup"):
        create_app(limited(tmp_path, score_noise=1.0, queries_per_day=5))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody without rights")
@pytest.mark.parametrize("closed", [False, True])
def test_who_may_only_read_can_report(closed: bool) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        ledger = AnswerLedger(folder, DayBudget(queries=5), days=5)
        ledger.debit("a", [GroupDebit(b"1", frozenset([b"x"]), frozenset())])
        if closed:
            ledger.close()
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755 if path == folder else 0o644)
        if (child := os.fork()) == 0:
            status = 1
            try:
                os.setuid(65534)
                status = 0 if read_spent(folder)[0].queries == 1 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_another_process_cannot_use_the_same_ledger(tmp_path: Path) -> None:
    app = create_app(limited(tmp_path, queries_per_day=5))
    with pytest.raises(Invalid, match="run one replica"):
        create_app(limited(tmp_path, queries_per_day=5))
    del app


def test_a_killed_process_has_debited_every_answer(tmp_path: Path) -> None:
    settings, port = limited(tmp_path, queries_per_day=100_000), free_port()
    environment = {
        **os.environ,
        "MOR_ANSWERS_DIR": str(settings.answers_dir),
        "MOR_QUERIES_PER_DAY": "100000",
        "MOR_TOKENS_FILE": str(settings.tokens_file),
    }
    command = [sys.executable, "-m", "mor_reward.cli", "serve", "--function", str(settings.function)]
    url, answered = f"http://127.0.0.1:{port}/v1/score", 0
    process = subprocess.Popen([*command, "--port", str(port)], env=environment, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10) as http:
            _wait_until_ready(http, port, process)
            for number in range(20):
                item = group("g", ["a"], question=f"Question {number}")
                found = http.post(url, json={"contract": "mor.reward/1", "items": [item], "images": {}})
                answered += ScoreResponse.model_validate_json(found.content).items[0].status == OK
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert answered == 20
    assert read_spent(tmp_path / "answers")[0].queries >= answered


def _cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _wait_until_ready(http: httpx.Client, port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if http.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service did not become ready")


async def test_repeated_questions_are_equal_and_free_while_budgets_are_spent(tmp_path: Path) -> None:
    async with service(limited(tmp_path, queries_per_day=1, score_bits=3)) as http:
        first = await scores(http, group("1", ["a", "tree"]))
        assert await statuses(http, group("2", ["another"])) == [REFUSED]
        assert await scores(http, group("3", ["a", "tree"])) == first
