"""Installation shared by all tests of the folder; each test creates its own runs, clients and objectives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mor_client import Mor
from mor_client.config import CONFIG_VARIABLE

from tests.client.installation import TOKENS, Installation, installation
from tests.conftest import Valkey
from tests.router.endpoints import TOKEN, Endpoint, Endpoints
from tests.tiny_models import build_tiny_vlm
from tests.trainer.kit import write_prompts


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("installation")
    (folder / "valkey").mkdir()
    server = Valkey(folder / "valkey")
    with installation(folder, server.url) as running:
        yield running
    server.stop()


@pytest.fixture
def mor(shared: Installation) -> Installation:
    shared.use("admin")
    return shared


@pytest.fixture(scope="session")
def endpoints() -> Iterator[Endpoints]:
    server = Endpoints()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def spec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run's specification as users do."""
    folder = tmp_path_factory.mktemp("spec")
    model, prompts = build_tiny_vlm(folder / "model"), write_prompts(folder, 4)
    file = folder / "run.toml"
    file.write_text(f'name = "first"\nmodel = "{model}"\nprompts = "{prompts}"\nsteps = 2\ngroup_size = 4\n')
    return file


@pytest.fixture
def clinic(mor: Installation, endpoints: Endpoints) -> Iterator[Endpoint]:
    """Enrol a client for the duration of a test."""
    endpoint = endpoints.endpoint("clinic")
    admin = {"Authorization": f"Bearer {TOKENS['admin']}"}
    body = {"name": endpoint.name, "url": endpoint.url, "domains": "tests", "token": TOKEN, "state": "active"}
    httpx.post(f"{mor.router}/v1/clients", json=body, headers=admin, timeout=30).raise_for_status()
    endpoint.calls.clear()
    yield endpoint
    httpx.delete(f"{mor.router}/v1/clients/{endpoint.name}", headers=admin).raise_for_status()


@pytest.fixture
def scorer(mor: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mor]:
    """Yield the SDK of a trainer outside of MoR, which finds its configuration in the environment."""
    mor.use("scorer")
    monkeypatch.setitem(os.environ, CONFIG_VARIABLE, str(mor.config))
    with Mor() as sdk:
        yield sdk
