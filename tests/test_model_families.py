"""Trainer, engine and reward model agree with the own code of each family, on prompts that differ in every way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from mor_core.errors import Invalid
from mor_reward import model_store
from mor_reward.backbones.vlm import VlmConfig
from mor_reward.preference_trainer import margins
from mor_reward.progress import NoProgress
from mor_reward.train_config import TrainConfig
from mor_reward.training_job import TrainingJob, train
from mor_rollout.engines import transformers_engine
from mor_rollout.engines.protocol import EngineError
from mor_rollout.engines.self_test import self_test
from mor_trainer.weights import version_writer
from peft import PeftConfig

from tests import family_checks as checks
from tests import latest_model_families, more_model_families
from tests.float64 import all_in_float64
from tests.model_families import FAMILIES as BUILDERS
from tests.model_families import build_family
from tests.reward import reward_kit

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainer_has_the_gradients_of_plain_passes(family: str, checkpoint: Path) -> None:
    """The tower is frozen, so that picture features are computed apart; prompts share micro-batches."""
    with all_in_float64():
        policy = checks.policy_of(checkpoint)
        plain = checks.PlainModel(checkpoint)
        logprobs, gradients = checks.gradient_difference(policy, plain, prompts_of(family))
    assert logprobs < EXACT
    assert gradients < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"freeze_vision": False}, {"tuning": {"kind": "lora", "rank": 4}}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_so_it_has_with_a_trained_tower_and_with_adapters(
    family: str, changes: dict[str, object], checkpoint: Path
) -> None:
    with all_in_float64():
        policy = checks.policy_of(checkpoint, **changes)
        plain = checks.PlainModel(checkpoint)
        logprobs, gradients = checks.gradient_difference(policy, plain, prompts_of(family))
    assert logprobs < EXACT
    assert gradients < EXACT


@pytest.mark.parametrize("family", ["granite4_vision"])
def test_a_head_that_scales_its_logits_is_noticed(family: str, checkpoint: Path) -> None:
    """The embedding of its padding token is zero, and so are all logits after it, scaled or not."""
    policy = checks.policy_of(checkpoint, shared_prompt="off")
    logprobs, gradients = checks.gradient_difference(policy, checks.PlainModel(checkpoint), [checks.sample(1)])
    assert max(logprobs, gradients) < EXACT


@pytest.mark.anyio
@pytest.mark.parametrize("family", [*FAMILIES, "janus"])
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


@pytest.mark.parametrize("family", ["qwen3_vl"])
def test_blank_pages_of_other_sizes_have_other_features(family: str, checkpoint: Path) -> None:
    """Their pixels are the same numbers, and so is their hash."""
    pages = [checks.blank_page(112, 56), checks.blank_page(56, 112)]
    policy = checks.policy_of(checkpoint)
    processed = [policy.process_prompt(page.messages, page.images) for page in pages]
    assert processed[0].pixels == processed[1].pixels
    assert checks.gradient_difference(policy, checks.PlainModel(checkpoint), pages)[0] < EXACT


@pytest.mark.anyio
@pytest.mark.parametrize("family", ["glm4v"])
async def test_the_self_test_refuses_an_engine_that_mixes_up_pictures(
    family: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is repeated, as transformers does for ``num_return_sequences``."""
    settings = checks.engine_settings(checkpoint, tmp_path)
    engine = checks.transformers_engine(settings)
    await engine.start()
    await self_test(settings, engine)
    monkeypatch.setattr(
        transformers_engine,
        "repeated",
        lambda inputs, times: {name: value.repeat_interleave(times, 0) for name, value in inputs.items()},
    )
    with pytest.raises(EngineError, match="mixes up the images of several responses"):
        await self_test(settings, engine)
    await engine.close()


@pytest.mark.parametrize("family", ["blip2"])
def test_a_family_that_cannot_be_used_is_refused_by_name(family: str, checkpoint: Path) -> None:
    assert more_model_families.blip2 is BUILDERS[family]
    assert latest_model_families.janus is BUILDERS["janus"]
    for use in (checks.policy_of, checks.reward_model):
        with pytest.raises(Invalid, match=r"has no chat template|does not accept precomputed picture features"):
            use(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}], ids=str)
@pytest.mark.parametrize("family", ["kimi_k25", "gemma4", "lfm2_vl", "qwen3_vl_moe"])
def test_a_reward_model_is_trained_saved_and_loaded(
    family: str, changes: dict[str, int], checkpoint: Path, tmp_path: Path
) -> None:
    """Kimi's tower has views of fused tensors, and adapters of experts inside each other."""
    data = reward_kit.write_colour_preferences(tmp_path / "data", 6)
    config = VlmConfig(model=str(checkpoint), precision="float32", **changes)
    job = TrainingJob(data, tmp_path / "m", "m", "", config, TrainConfig(epochs=1, batch_size=4, heldout_fraction=0.4))
    train(job, NoProgress())
    _, backbone = model_store.load(tmp_path / "m")
    pairs = reward_kit.pairs_of(data)
    assert margins(backbone, pairs) == pytest.approx([float(margins(backbone, [pair])[0]) for pair in pairs], abs=1e-4)


@pytest.mark.parametrize("family", ["glm4v"])
def test_an_adapter_of_experts_is_published_as_peft_reads_it(family: str, checkpoint: Path, tmp_path: Path) -> None:
    """PEFT holds the adapted parameters of some experts in a set, which JSON does not know."""
    policy = checks.policy_of(checkpoint, tuning={"kind": "lora", "rank": 4})
    assert policy.adapter is not None
    experts = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    policy.adapter.peft_config["default"].target_parameters = experts
    (tmp_path / "adapter_config.json").write_bytes(version_writer._adapter_config(policy.adapter))
    assert PeftConfig.from_pretrained(str(tmp_path)).target_parameters == sorted(experts)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.anyio
@pytest.mark.parametrize("family", ["glm4v"])
async def test_vllm_is_refused_where_it_drops_biases(family: str, checkpoint: Path, tmp_path: Path) -> None:
    """Without the field, GLM-4V's engine and trainer differed by 1.4 nats."""
    from mor_rollout import environment
    from mor_rollout.engines.prompt_codec import PromptCodec
    from mor_rollout.engines.vllm.vllm_engine import VllmEngine
    from mor_rollout.weights.base_checkpoint import BaseCheckpoint

    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    del config["text_config"]["attention_bias"]
    (model / "config.json").write_text(json.dumps(config))
    settings = checks.engine_settings(model, tmp_path, backend="vllm")
    environment.prepare(settings)
    base = BaseCheckpoint(settings.model)
    engine = VllmEngine(settings, base, PromptCodec(settings, base))
    with pytest.raises(EngineError, match=r"computes without 6 tensors of the checkpoint.*attention_bias: true"):
        await engine.start()
    await engine.close()


@pytest.mark.vllm
@pytest.mark.parametrize("family", ["aya_vision"])
def test_vllm_is_refused_where_it_scales_logits_alone(family: str, checkpoint: Path, tmp_path: Path) -> None:
    from mor_rollout.engines.prompt_codec import PromptCodec
    from mor_rollout.engines.vllm.arguments import engine_arguments
    from mor_rollout.weights.base_checkpoint import BaseCheckpoint

    settings = checks.engine_settings(checkpoint, tmp_path, backend="vllm")
    base = BaseCheckpoint(settings.model)
    with pytest.raises(Invalid, match=r"aya_vision\): vLLM scales its logits .* set MOR_BACKEND=transformers"):
        engine_arguments(settings, base, PromptCodec(settings, base))


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.anyio
@pytest.mark.parametrize(("family", "rank"), [("qwen2_5_vl", 8), ("qwen3_vl", 8), ("glm4v", 8), ("glm4v_moe", 0)])
async def test_vllm_samples_what_plain_passes_compute(family: str, rank: int, checkpoint: Path, tmp_path: Path) -> None:
    """Also after the self-test has swapped all weights, and swapped them back."""
    from mor_rollout import environment
    from mor_rollout.engines.prompt_codec import PromptCodec
    from mor_rollout.engines.vllm.vllm_engine import VllmEngine
    from mor_rollout.weights.base_checkpoint import BaseCheckpoint

    settings = checks.engine_settings(checkpoint, tmp_path, backend="vllm", lora_max_rank=rank)
    environment.prepare(settings)
    base = BaseCheckpoint(settings.model)
    engine = VllmEngine(settings, base, PromptCodec(settings, base))
    await engine.start()
    try:
        await self_test(settings, engine)
        plain = checks.PlainModel(checkpoint, torch.float32)
        assert await checks.engine_difference(engine, plain, prompts_of(family)) < 1e-4
    finally:
        await engine.close()
