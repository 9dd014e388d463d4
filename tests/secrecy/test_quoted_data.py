"""Messages of libraries that quote what they were given: a pipeline its commands, an HTTP parser the peer's bytes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from mor_core import hidden_secrets, process
from mor_core.errors import Invalid
from mor_core.failures import describe_failure, traceback_of
from mor_core.wire import ScoreItem
from mor_router.clients.http import BoundedHttpClient
from mor_router.clients.responses import ClientFailure, parse_response, private
from mor_trainer.config import ControlSettings
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

pytestmark = pytest.mark.anyio

PROMPT = "the private prompt of a hospital about its patient"


async def test_a_failed_pipeline_does_not_quote_its_commands(redis: Redis, redis_url: str) -> None:
    await redis.acl_setuser("reader", enabled=True, passwords=["+a"], keys=["a*"], commands=["+@all"], reset=True)
    limited = Redis.from_url(redis_url, username="reader", password="a")
    try:
        with pytest.raises(NoPermissionError) as failed:
            async with limited.pipeline(transaction=False) as pipe:
                pipe.set("b", f"{PROMPT}) of pipeline caused error: {PROMPT}")
                await pipe.execute()
        assert PROMPT in str(failed.value)
        for text in (describe_failure(failed.value), str(traceback_of(failed.value))):
            assert "No permissions" in text
            assert "private" not in text
    finally:
        await limited.aclose()
        await redis.acl_deluser("reader")


@asynccontextmanager
async def answering(reply: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """Serve raw bytes on loopback."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(await reader.read(65536)))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


ECHOES = {
    "status line": lambda _: f"{PROMPT}\r\n\r\n",
    "header": lambda _: f"HTTP/1.1 200 OK\r\n{PROMPT}\r\n\r\n",
    "chunk": lambda _: (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{PROMPT}\r\n"
    ),
    "content type": lambda _: f"HTTP/1.1 200 OK\r\nContent-Type: {PROMPT}\r\nContent-Length: 0\r\n\r\n",
    "encoding": lambda _: (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: {PROMPT}\r\nContent-Length: 0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("kind", ECHOES)
async def test_a_client_that_echoes_its_request_puts_no_prompt_into_the_reason(kind: str) -> None:
    async with answering(lambda request: ECHOES[kind](request).encode()) as url, httpx.AsyncClient() as http:
        sent = f'{{"prompt":"{PROMPT}"}}'.encode()
        with pytest.raises(ClientFailure) as failed, private(sent):
            await BoundedHttpClient(http, url, SecretStr("secret")).post("/v1/score", sent, 1000, 5000)
    assert "private" not in str(failed.value)
    assert len(str(failed.value)) <= 500


@pytest.mark.parametrize(
    "body", ['{"model":{"name":"m","version":"1"},"items":[{"item_id":"%s"}]}', '{"model":{"%s":1},"items":[]}']
)
def test_an_answer_that_repeats_the_prompt_elsewhere_is_not_quoted(body: str) -> None:
    sent = f'{{"prompt":"{PROMPT}"}}'.encode()
    with pytest.raises(ClientFailure) as failed, private(sent):
        parse_response((body % PROMPT).encode(), [])
    assert "private" not in str(failed.value)


def test_a_field_that_is_named_after_the_prompt_is_not_quoted() -> None:
    item = ScoreItem.model_validate(
        {"item_id": "i", "messages": [{"role": "user", "content": PROMPT}], "responses": ["a"], "objective": "o"}
    )
    body = f'{{"model":{{"name":"m","version":"1"}},"items":[{{"item_id":"i","status":"ok","{PROMPT}":1}}]}}'
    detail = parse_response(body.encode(), [item])["i"].detail
    assert detail is not None
    assert "private" not in detail


async def test_a_header_that_cannot_be_sent_is_not_quoted() -> None:
    async with answering(lambda _: b"") as url, httpx.AsyncClient() as http:
        with pytest.raises(httpx.LocalProtocolError) as failed:
            await http.get(url, headers={"Authorization": "Bearer !of-this\n-test!"})
    assert describe_failure(failed.value) == "LocalProtocolError: Illegal header value"


def test_a_librarys_error_of_the_network_does_not_quote_its_address() -> None:
    class RequestException(OSError):
        """As that of requests, which has the whole address in its message."""

    assert describe_failure(RequestException("404 for http://judge/rate?text=prompt")) == "RequestException"
    assert describe_failure(RequestException(113, "No route to host")) == "RequestException: No route to host"


def test_the_path_of_a_wrong_webhook_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("htps://hooks.example/services/T0/S3cr3t", "hooks.example/services/T0/S3cr3t"):
        monkeypatch.setenv("MOR_ALERT_WEBHOOK_URL", wrong)
        with pytest.raises(Invalid, match=r"MOR_ALERT_WEBHOOK_URL: got .*hooks\.example") as refused:
            process.load(ControlSettings)
        assert "S3cr3t" not in str(refused.value)


def test_a_password_is_known_in_the_form_in_which_it_is_sent() -> None:
    hidden_secrets.remember_address("redis://mor:p%40ss%2Fof-this-test@host/0")
    assert "of-this-test" not in hidden_secrets.hide_secrets("AUTH mor p@ss/of-this-test, p%40ss%2Fof-this-test")


MLFLOW = """
import sys
from types import SimpleNamespace
from mor_trainer.trackers.mlflow import MLflow
client = MLflow(sys.argv[1], "mor")._connected()._tracking_client
client.store.get_run = lambda _: SimpleNamespace(
    data=SimpleNamespace(tags={}), info=SimpleNamespace(experiment_id="1", run_name="r"))
client._log_url("run")
"""


def test_mlflow_prints_no_address_with_its_password(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MLFLOW, "http://mor:password-of-this-test@127.0.0.1:1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path, env=dict(os.environ)
    )
    assert done.stdout == ""
