"""A tiny model, prompts with pictures, tokens, and the trainer's two processes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from mor_core.auth import hash_token
from mor_core.datafiles import Prompt, read_prompts
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings, WorkerSettings
from mor_trainer.prompts.preflight import Preflight
from mor_trainer.prompts.run_limits import run_limits
from mor_trainer.prompts.run_prompts import open_files
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.tiny_models import build_tiny_vlm
from tests.trainer.kit import TOKENS, Processes, bearer, make_spec, running, write_prompts
from tests.trainer.stages import Stages, share_of_even_tokens

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Idefics3 of half a million parameters."""
    return build_tiny_vlm(tmp_path_factory.mktemp("tiny"), scale=1.5)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts"), 12)


@pytest.fixture(scope="session")
def rows_of(prompts: Path) -> list[Prompt]:
    return read_prompts(prompts)


@pytest.fixture(scope="session")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    path.write_text(json.dumps([{"name": s, "scope": s, "sha256": hash_token(t)} for s, t in TOKENS.items()]))
    return path


@pytest.fixture(scope="session")
def checks_dir(tiny: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the result of the usual prompts' check, which the usual runs need not make again."""
    folder = tmp_path_factory.mktemp("checked")
    settings = WorkerSettings(runs_dir=folder, checks_dir=folder / "checks", check_processes=1)
    spec = make_spec(tiny, prompts, evaluation_prompts=str(prompts))
    limits = run_limits(spec, [])
    files = open_files(settings, spec, lambda rows: None)
    preflight = Preflight(settings, "usual", spec, folder / "usual", limits=limits, report=lambda _: None, obey=tuple)
    preflight.run(files)
    return folder / "checks"


@pytest.fixture
def processes(tmp_path: Path, tokens_file: Path, checks_dir: Path, redis_url: str) -> Iterator[Processes]:
    started = Processes(tmp_path / "runs", tokens_file, redis_url, tmp_path)
    started.environment["MOR_CHECKS_DIR"] = str(checks_dir)
    yield started
    started.end()


@pytest.fixture
def settings(tmp_path: Path, tokens_file: Path, redis_url: str) -> ControlSettings:
    return ControlSettings(
        runs_dir=tmp_path / "runs",
        tokens_file=tokens_file,
        redis_url=SecretStr(redis_url),
        run_lease_s=60.0,
        sse_heartbeat_s=1.0,
    )


@pytest.fixture
async def http(settings: ControlSettings, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    async with running(create_app(settings)) as client:
        client.headers.update(bearer("admin"))
        yield client


@pytest.fixture
def spec(tiny: Path, prompts: Path) -> RunSpec:
    return make_spec(tiny, prompts, steps=10)


@pytest.fixture
def stages(redis_url: str, tiny: Path, processes: Processes):
    with Stages(redis_url, tiny, share_of_even_tokens, TOKENS["service"], lambda: processes.address) as played:
        yield played
