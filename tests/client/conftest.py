"""Installation shared by all tests of the folder; each test creates its own runs, clients and objectives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.installation import Installation, installation
from tests.conftest import Valkey
from tests.router.endpoints import Endpoints
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
