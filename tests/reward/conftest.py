"""Fixtures of the reward tests: tiny encoders and a trained dual encoder, built once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mor_reward.backbones import DualEncoderConfig
from mor_reward.progress import Silent
from mor_reward.recipe import Recipe
from mor_reward.training import Job, train

from tests.reward import reward_kit as kit


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
    """A preference file about 120 pictures."""
    return kit.write_colour_preferences(tmp_path_factory.mktemp("colours"), 120)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, colours: Path, dual_config: DualEncoderConfig) -> Path:
    """A reward model folder that ranks the colours of shapes."""
    out = tmp_path_factory.mktemp("model") / "colours"
    recipe = Recipe(epochs=12, lr=3e-3, mismatch=2)
    train(Job(colours, out, "colours", "shapes in four colours", dual_config, recipe), Silent())
    return out
