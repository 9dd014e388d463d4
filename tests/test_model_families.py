"""Trainer, engine and reward model agree with the own code of each family, on prompts that differ in every way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import family_checks as checks
from tests.model_families import build_family

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
EXACT = 1e-5
"""Largest difference that rounding explains: of log-probabilities in nats, of gradients relative."""
SLOW = pytest.mark.slow
FAMILIES = (
    *("qwen3_vl", "qwen3_5", "glm4v", "gemma3", "paligemma", "llava_onevision", "mllama"),
    *(pytest.param(name, marks=SLOW) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "gemma4")),
)
"""The slow ones repeat a kind that a fast one has: rotary axes by grid, experts, pictures that see themselves."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that the module has built, by family."""
    return {}


@pytest.fixture
def checkpoint(family: str, built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if family not in built:
        built[family] = build_family(family, tmp_path_factory.mktemp(family))
    return built[family]


def prompts_of(family: str) -> list[checks.Sample]:
    """Prompts of different lengths: one picture, two, none, and another one. PaliGemma needs a picture."""
    prompts = [checks.sample(1), checks.sample(2, 1), checks.sample(0, 2), checks.sample(1, 1)]
    return [prompt for prompt in prompts if prompt.images or family != "paligemma"]


def type_of(family: str) -> torch.dtype:
    """Return the type to compare in; products of experts have no kernel for float64."""
    return torch.float32 if family.endswith("moe") else torch.float64


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainer_has_the_gradients_of_plain_passes(family: str, checkpoint: Path) -> None:
    """The tower is frozen, so that picture features are computed apart; prompts share micro-batches."""
    policy = checks.policy_of(checkpoint, type_of(family))
    plain = checks.PlainModel(checkpoint, type_of(family))
    logprobs, gradients = checks.gradient_difference(policy, plain, prompts_of(family))
    assert logprobs < EXACT
    assert gradients < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"freeze_vision": False}, {"tuning": {"kind": "lora", "rank": 4}}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_so_it_has_with_a_trained_tower_and_with_adapters(
    family: str, changes: dict[str, object], checkpoint: Path
) -> None:
    policy = checks.policy_of(checkpoint, type_of(family), **changes)
    plain = checks.PlainModel(checkpoint, type_of(family))
    logprobs, gradients = checks.gradient_difference(policy, plain, prompts_of(family))
    assert logprobs < EXACT
    assert gradients < EXACT


@pytest.mark.anyio
@pytest.mark.parametrize("family", FAMILIES)
async def test_the_engine_samples_several_responses_from_the_right_pictures(
    family: str, checkpoint: Path, tmp_path: Path
) -> None:
    engine = checks.transformers_engine(checks.engine_settings(checkpoint, tmp_path))
    await engine.start()
    plain = checks.PlainModel(checkpoint, torch.float32)
    assert await checks.engine_difference(engine, plain, prompts_of(family)) < 1e-4
    await engine.close()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mllama"])
def test_a_reward_model_scores_examples_together_as_plain_passes_do(family: str, checkpoint: Path) -> None:
    plain = checks.PlainModel(checkpoint, torch.float32)
    for frozen in (True, False):
        backbone = checks.reward_model(checkpoint, freeze_vision=frozen)
        assert checks.reward_difference(backbone, plain, prompts_of(family)) < 1e-4
