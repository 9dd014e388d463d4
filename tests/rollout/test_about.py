"""Facts of the service in ``/v1/about`` while its engine is still starting."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from mor_core.auth import hash_token
from mor_core.service_info import ServiceInfo
from mor_rollout.app import create_app

from tests.rollout.conftest import settings_for

pytestmark = pytest.mark.anyio


async def test_facts_are_available_before_the_engine_has_started(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps([{"name": "ops", "scope": "viewer", "sha256": hash_token("a-token")}]))
    app = create_app(settings_for(tmp_path / "model", tmp_path, tokens_file=tokens))
    headers = {"Authorization": "Bearer a-token"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r", headers=headers) as http:
        about = ServiceInfo.model_validate_json((await http.get("/v1/about")).raise_for_status().content)
    assert (about.service, about.caller.name, about.problem) == ("MoR rollout", "ops", None)
    assert about.facts is not None
    assert [device.name for device in about.facts.devices] == ["cpu"]
    assert [disk.purpose for disk in about.facts.disks] == ["pulled weights"]
    assert about.facts.queue_server is None
