"""Registration at a router, token creation, and the served process as a whole."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from mor_core.auth import hash_token
from mor_core.errors import Invalid, Unauthorized
from mor_reward.cli import app
from mor_reward.router_registration import EnrolmentReceipt, RouterUnavailable, deregister, register
from typer.testing import CliRunner

from tests.reward import reward_kit as kit


class Router:
    """HTTP server that answers enrolments from a script and records the requests."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = []
        self.requests: list[tuple[str, str | None, dict[str, str]]] = []
        router = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
                router.requests.append((self.path, self.headers["Authorization"], body))
                status, content = router.answers.pop(0) if len(router.answers) > 1 else router.answers[0]
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content.encode())

            do_GET = do_DELETE = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Print nothing in tests."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def enrol(self) -> EnrolmentReceipt:
        given = {"name": "st-mary", "url": "http://127.0.0.1:9", "domains": "brains", "secret": "s" * 32}
        return register(self.url, "enrol-me", attempts=3, **given)


@pytest.fixture
def router() -> Iterator[Router]:
    router = Router()
    thread = Thread(target=router.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield router
    router.server.shutdown()
    router.server.server_close()
    thread.join(timeout=10)


def test_enrolment_sends_the_services_own_secret(router: Router) -> None:
    router.answers = [(201, json.dumps({"client": {"name": "st-mary"}, "token": "page", "trial": "scored"}))]
    assert router.enrol() == EnrolmentReceipt(token="page", trial="scored")
    body = {"name": "st-mary", "url": "http://127.0.0.1:9", "domains": "brains", "token": "s" * 32}
    assert router.requests == [("/v1/clients", "Bearer enrol-me", body)]


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (
            401,
            Unauthorized,
            r"\(401\): because; the router does not know the enrolment token; request a new one from the platform team",
        ),
        (403, Unauthorized, r"may not enrol clients"),
        (404, Invalid, r"not a MoR router; check --router"),
        (409, Invalid, r"a client of that name is enrolled; choose another --name"),
        (422, Invalid, r"\(422\): because; correct the named field"),
    ],
)
def test_a_refusal_has_reason_and_cure(status: int, error: type[Exception], message: str, router: Router) -> None:
    router.answers = [(status, '{"detail": "because"}')]
    with pytest.raises(error, match=message):
        router.enrol()
    assert len(router.requests) == 1


def test_calls_of_a_busy_router_are_retried_a_bounded_number_of_times(router: Router) -> None:
    busy = (503, '{"detail": "starting"}')
    router.answers = [busy, busy, (201, '{"token": "page"}')]
    assert router.enrol().token == "page"
    router.requests.clear()
    router.answers = [busy]
    with pytest.raises(RouterUnavailable, match="answered 503: starting"):
        router.enrol()
    assert len(router.requests) == 3


def test_enrolment_with_an_own_page_token_is_idempotent(router: Router) -> None:
    given = {"name": "st-mary", "domains": "", "secret": "s" * 32, "page_token": "mine"}
    router.answers = [(401, "{}"), (201, '{"token": null, "trial": "scored"}')]
    assert register(router.url, "enrol-me", url="https://scores", **given).token is None
    assert [request[1] for request in router.requests] == ["Bearer mine", "Bearer enrol-me"]
    assert router.requests[1][2]["page_token_sha256"] == hash_token("mine")

    router.answers = [(200, '{"client": {"url": "https://scores"}}')]
    assert register(router.url, "enrol-me", url="https://scores/", **given).trial == "already enrolled"
    with pytest.raises(Invalid, match="enrolled at https://scores; run 'mor-reward deregister'"):
        register(router.url, "enrol-me", url="https://elsewhere", **given)


def test_deregistering_twice_is_no_error(router: Router) -> None:
    router.answers = [(204, ""), (401, "{}")]
    assert deregister(router.url, "mine", name="st-mary") is True
    assert deregister(router.url, "mine", name="st-mary") is False
    router.answers = [(403, '{"detail": "another client\'s"}')]
    with pytest.raises(Unauthorized, match="refused the deregistration"):
        deregister(router.url, "mine", name="st-mary")


def test_an_uninstallation_goes_on_where_the_router_refuses(router: Router, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("mine")
    (tmp_path / "proxy").write_text("not a proxy")
    router.answers = [(403, '{"detail": "another client\'s"}')]
    command = ["deregister", "--router", router.url, "--name", "st-mary", "--page-token-file", str(tmp_path / "page")]
    assert CliRunner().invoke(app, command).exit_code == 1
    missing = [*command[:-1], str(tmp_path / "no-page")]
    for failing in (command, missing, [*command, "--proxy-file", str(tmp_path / "proxy")]):
        done = CliRunner().invoke(app, [*failing, "--best-effort"])
        assert done.exit_code == 0
        assert "ask the platform team for 'mor client remove st-mary'" in " ".join(done.output.split())


def test_two_proxies_are_refused(router: Router, tmp_path: Path) -> None:
    for name in ("page", "proxy"):
        (tmp_path / name).write_text("http://proxy:3128")
    command = ["deregister", "--router", router.url, "--name", "st-mary", "--page-token-file", str(tmp_path / "page")]
    done = CliRunner().invoke(app, [*command, "--proxy", "http://a:1", "--proxy-file", str(tmp_path / "proxy")])
    assert done.exit_code == 1
    assert "give one of them" in done.output
    assert not router.requests


def test_a_response_that_is_no_enrolment_is_an_error(router: Router) -> None:
    router.answers = [(200, "<html>")]
    with pytest.raises(Invalid, match="is not a MoR router"):
        router.enrol()


def test_an_unreachable_router_is_an_error() -> None:
    with pytest.raises(RouterUnavailable, match=r"no answer from the router at http://127\.0\.0\.1:9"):
        register("http://127.0.0.1:9", "t", name="n", url="u", domains="", secret="s", attempts=2)


def test_a_token_is_created_once_and_only_its_hash_is_stored(tmp_path: Path) -> None:
    tokens, secret = tmp_path / "tokens.json", tmp_path / "secret"
    command = ["token", "--tokens-file", str(tokens), "--secret-file", str(secret)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert secret.read_text() not in tokens.read_text()
    assert [oct(path.stat().st_mode & 0o777) for path in (tokens, secret)] == ["0o600", "0o600"]
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert "holds a token named 'router'" in again.output.replace("\n", " ")


@pytest.fixture
def served(trained: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Start a real reward service; yield the process, its address and the file with its caller's token."""
    tokens, secret, place = tmp_path / "tokens.json", tmp_path / "secret", tmp_path / "address"
    assert CliRunner().invoke(app, ["token", "--tokens-file", str(tokens), "--secret-file", str(secret)]).exit_code == 0
    command = [sys.executable, "-m", "mor_reward.cli", "serve", "--model", str(trained), "--port-file", str(place)]
    process = subprocess.Popen(
        [*command, "--tokens-file", str(tokens)], env={**os.environ, "HF_HUB_OFFLINE": "1"}, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 240
    while not place.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    yield process, place.read_text(), secret
    process.kill()
    process.wait(timeout=10)
    assert process.stderr is not None
    process.stderr.close()


def test_a_served_model_scores_and_ends_cleanly(served: tuple[subprocess.Popen[bytes], str, Path]) -> None:
    process, address, secret = served
    headers = {"Authorization": f"Bearer {secret.read_text()}"}
    body = kit.score_body(["It is red", "It is blue"], kit.draw("red", 5))
    deadline = time.monotonic() + 30
    while httpx.get(f"{address}/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = httpx.post(f"{address}/v1/score", json=body, headers=headers, timeout=30)
    first, second = answer.json()["items"][0]["scores"]
    assert first > second
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert b"Traceback" not in stderr
    assert not re.search(secret.read_text().encode(), stderr)


def test_register_prints_the_result_and_stores_the_page_token(router: Router, tmp_path: Path) -> None:
    router.answers = [(201, '{"token": "page-token", "trial": "a red square was preferred"}')]
    secret, page = tmp_path / "secret", tmp_path / "page"
    command = ["register", "--router", router.url, "--name", "st-mary", "--url", "http://127.0.0.1:9"]
    options = ["--secret-file", str(secret), "--page-token-file", str(page)]
    missing = CliRunner().invoke(app, [*command, *options], env={"MOR_ENROLMENT_TOKEN": "t"})
    assert missing.exit_code == 1
    assert "mor-reward token --secret-file" in missing.output.replace("\n", " ")

    secret.write_text("s" * 32)
    done = CliRunner().invoke(app, [*command, *options], env={"MOR_ENROLMENT_TOKEN": "t"})
    assert done.exit_code == 0
    assert "enrolled st-mary" in done.output
    assert "a red square was preferred" in done.output
    assert page.read_text() == "page-token"
    assert "page-token" not in done.output


def test_register_sends_the_page_token_of_a_secret_that_is_mounted_read_only(
    router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the chart's job does: nothing is written, so nothing needs to be writable."""

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    router.answers = [(401, "{}"), (201, '{"token": null, "trial": "scored"}')]
    secret, page = tmp_path / "secret", tmp_path / "page"
    secret.write_text("s" * 32)
    page.write_text("p" * 32)
    command = ["register", "--router", router.url, "--name", "st-mary", "--url", "http://127.0.0.1:9"]
    options = ["--secret-file", str(secret), "--page-token-file", str(page)]
    done = CliRunner().invoke(app, [*command, *options], env={"MOR_ENROLMENT_TOKEN": "t"})
    assert done.exit_code == 0, done.output
    assert router.requests[1][2]["page_token_sha256"] == hash_token("p" * 32)
    page.unlink()
    refused = CliRunner().invoke(app, [*command, *options], env={"MOR_ENROLMENT_TOKEN": "t"})
    assert refused.exit_code != 0
    assert "--page-token-file" in refused.output
    assert len(router.requests) == 2, "no token is made that could not be stored"
