"""A tiny model, prompts with pictures, tokens, and the trainer's two processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mor_core.auth import hash_token

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from tiny_models import build_tiny_vlm  # noqa: E402
from trainer_kit import TOKENS, Processes, write_prompts  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Idefics3 of half a million parameters."""
    return build_tiny_vlm(tmp_path_factory.mktemp("tiny"), scale=1.5)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts"), 12)


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
