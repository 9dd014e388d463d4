"""A tiny model, prompts with pictures, tokens, and the trainer's two processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mor_core.auth import hash_token
from mor_core.datafiles import Prompt, read_prompts

from tests.tiny_models import build_tiny_vlm
from tests.trainer.kit import TOKENS, Processes, write_prompts

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


@pytest.fixture
def processes(tmp_path: Path, tokens_file: Path, redis_url: str) -> Iterator[Processes]:
    started = Processes(tmp_path / "runs", tokens_file, redis_url, tmp_path)
    yield started
    started.end()
