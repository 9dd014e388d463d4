"""``mor label``: audited groups of a real router are listed, shown with their pictures, labelled, and withdrawn."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from mor_client.exit_codes import ExitCode
from mor_core.images import sha256
from mor_core.settings import StreamSettings
from mor_core.streams import connect
from mor_core.wire import ImagePart, Message, TextPart
from mor_router.objectives.objective_store import ObjectiveStore
from mor_router.trust.live_audits import AuditStore
from pydantic import SecretStr

from tests.client.installation import Installation
from tests.router.planted import picture
from tests.router.test_audits import audit

PICTURE = picture("detail", 1)


@pytest.fixture
def waiting(mor: Installation) -> Installation:
    """Two audited groups that wait for people, the older one with a picture."""
    mor.ok("objective", "create", "told", "answer correctly", "--audited-by", "people")
    shown = Message(role="user", content=(ImagePart.of(sha256(PICTURE)), TextPart(text="What is it?")))

    async def add() -> None:
        redis = connect(StreamSettings(redis_url=SecretStr(mor.redis_url)))
        store = AuditStore(redis, ObjectiveStore(redis))
        now = time.time()
        await store.add("told", audit(now - 90, messages=(shown,), images={sha256(PICTURE): PICTURE}))
        await store.add("told", audit(now - 30, text="And that?\x1b[31m"))
        await redis.aclose()

    asyncio.run(add())
    return mor


def test_a_person_labels_audited_groups_with_the_command(waiting: Installation, tmp_path: Path) -> None:
    mor = waiting
    mor.use("labeller")
    assert [line.split()[:3] for line in mor.ok("label", "list").splitlines()][1:] == [["told", "people", "2"]]
    first = mor.json("label", "next", "told")["audit"]
    shown = mor.ok("label", "next", "told", "--pictures", str(tmp_path / "new" / "folder"))
    assert first in shown
    assert "What is it?" in shown
    [saved] = (tmp_path / "new" / "folder").iterdir()
    assert str(saved) in shown
    assert saved.read_bytes() == PICTURE
    wrong = mor.mor("label", "give", "told", first, "better")
    assert wrong.exit_code == ExitCode.usage
    assert "'better' is not one of 'first', 'second', 'tie', 'skip'" in " ".join(wrong.stderr.split())
    mor.ok("label", "give", "told", first, "second")
    again = mor.mor("label", "give", "told", first, "second")
    assert again.exit_code == ExitCode.not_found
    assert "mor label next" in again.stderr
    second = mor.mor("label", "next", "told")
    assert "\x1b" not in second.stdout
    mor.ok("label", "give", "told", mor.json("label", "next", "told")["audit"], "skip")
    assert "no group of told waits" in mor.mor("label", "next", "told").stderr
    assert mor.json("label", "next", "told") is None
    assert mor.mor("label", "people").exit_code == ExitCode.not_allowed
    mor.use("admin")
    assert [line.split()[:2] for line in mor.ok("label", "people").splitlines()][1:] == [["labeller", "1"]]
    assert mor.mor("label", "withdraw", "labeller").exit_code != 0, "it asks first"
    assert "1 of told" in mor.mor("label", "withdraw", "labeller", "--yes").stderr
    unknown = mor.mor("label", "withdraw", "nobody", "--yes")
    assert unknown.exit_code == ExitCode.not_found
    assert "mor label people" in unknown.stderr
