"""Fixtures of the reward tests: tiny encoders, a trained dual encoder, built once per session, and its service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import torch
from mor_core.auth import hash_token
from mor_reward.backbones import DualEncoderConfig
from mor_reward.config import RewardSettings
from mor_reward.progress import NoProgress
from mor_reward.train_config import TrainConfig
from mor_reward.training_job import TrainingJob, train

from tests.reward import reward_kit as kit
from tests.reward.served import TOKEN, VIEWER, service
from tests.reward.upstream_servers import Upstreams


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.build_text_encoder(tmp_path_factory.mktemp("text") / "bert")


@pytest.fixture(scope="session")
def vision_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.build_vision_encoder(tmp_path_factory.mktemp("vision") / "dinov2")


@pytest.fixture(scope="session")
def dual_config(vision_encoder: Path, text_encoder: Path) -> DualEncoderConfig:
    return DualEncoderConfig(
        vision=str(vision_encoder),
        text=str(text_encoder),
        image_size=64,
        width=32,
        max_length=32,
        max_images=2,
        precision="float32",
    )


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a preference file about 120 pictures."""
    return kit.write_colour_preferences(tmp_path_factory.mktemp("colours"), 120)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, colours: Path, dual_config: DualEncoderConfig) -> Path:
    """Train a reward model that ranks the colours of shapes."""
    out = tmp_path_factory.mktemp("model") / "colours"
    train_config = TrainConfig(epochs=12, lr=3e-3, mismatch=2)
    train(TrainingJob(colours, out, "colours", "shapes in four colours", dual_config, train_config), NoProgress())
    return out


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    """Write the tokens of a router and a viewer."""
    tokens = [("router", "service", TOKEN), ("grafana", "viewer", VIEWER)]
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps([{"name": n, "scope": s, "sha256": hash_token(t)} for n, s, t in tokens]))
    return file


@pytest.fixture
def settings(trained: Path, tokens_file: Path) -> RewardSettings:
    return RewardSettings(model_dir=trained, tokens_file=tokens_file, disclosure="full")


@pytest.fixture
async def http(settings: RewardSettings) -> AsyncIterator[httpx.AsyncClient]:
    async with service(settings) as client:
        yield client


@pytest.fixture
def upstreams() -> Upstreams:
    return Upstreams()
