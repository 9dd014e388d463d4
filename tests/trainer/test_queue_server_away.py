"""Run control that finds no queue server says so with address and cure, in the log and at ``/readyz``, and goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mor_core.redis_address import shown_address
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.trainer.kit import running


@pytest.mark.anyio
async def test_an_absent_queue_server_is_named_with_the_cure(settings: ControlSettings) -> None:
    away = SecretStr("redis://somebody:hidden-word@127.0.0.1:1/0")
    lines: list[Any] = []
    with capture_logs() as logged:
        async with running(create_app(settings.model_copy(update={"redis_url": away}))) as http:
            for _ in range(1200):  # two minutes, for a busy machine
                await asyncio.sleep(0.1)
                if lines := [line for line in logged if line["event"].startswith("the queue server is away")]:
                    break
            ready = await http.get("/readyz")
    assert [(line["address"], line.get("exc_info")) for line in lines] == [("redis://127.0.0.1:1/0", None)]
    assert "MOR_REDIS_URL" in lines[0]["cure"]
    missing = ready.json()["missing"]["queue_server"]
    assert ready.status_code == 503 and "redis://127.0.0.1:1/0" in missing and "MOR_REDIS_URL" in missing
    assert "hidden-word" not in str(logged) + missing


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://user:p%40ss@host:6379/1?ssl_ca_certs=/ca", "rediss://host:6379/1"),
        (
            "redis+sentinel://user:word@s1:26379,s2:26379/name/0?sentinel_password=word",
            "redis+sentinel://s1:26379,s2:26379/name/0",
        ),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert shown_address(url) == shown
