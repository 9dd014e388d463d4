"""A checkpoint whose weights are incomplete or no numbers is refused before a step, by trainer, engine and client."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mor_core.errors import Invalid
from mor_reward.backbones import build
from mor_reward.backbones.vlm import VlmConfig
from mor_rollout.engines.protocol import EngineError
from mor_rollout.engines.self_test import self_test
from mor_rollout.engines.self_test_noise import perturbed
from mor_trainer.model import loading
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import family_checks as checks
from tests.tiny_models import build_tiny_vlm

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_vlm(tmp_path_factory.mktemp("whole") / "model")


def changed(tiny: Path, folder: Path, change: Change) -> Path:
    """Return a copy of the checkpoint with other tensors."""
    copy = Path(shutil.copytree(tiny, folder / "model"))
    file = copy / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return copy


def without(part: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.anyio
async def test_a_layer_without_weights_is_not_made_up(tiny: Path, tmp_path: Path) -> None:
    """transformers gives it random ones, and only logs it."""
    model = changed(tiny, tmp_path, without("layers.1.self_attn.q_proj"))
    lacking = r"lacks \d+ tensors, such as '\S+layers\.1\.self_attn\.q_proj\.\w+'"
    with pytest.raises(Invalid, match=lacking):
        loading.load(str(model))
    with pytest.raises(Invalid, match=lacking):
        checks.reward_model(model)
    engine = checks.transformers_engine(checks.engine_settings(model, tmp_path))
    try:
        with pytest.raises(EngineError, match=lacking):
            await engine.start()
    finally:
        await engine.close()


def test_tensors_under_other_names_are_shown(tiny: Path, tmp_path: Path) -> None:
    model = changed(tiny, tmp_path, lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(Invalid, match=r"lacks \d+ tensors, .* and has others, such as 'module\."):
        loading.load(str(model))


def test_a_reward_model_needs_no_head_that_predicts_tokens_unless_it_uses_it(tiny: Path, tmp_path: Path) -> None:
    model = changed(tiny, tmp_path, without("lm_head"))
    checks.reward_model(model, likelihood=0.0)
    with pytest.raises(Invalid, match=r"lacks 1 tensors, such as 'lm_head\.weight'"):
        build(VlmConfig(model=str(model), precision="float32", likelihood=0.1), Path(), pretrained=True)
    with pytest.raises(Invalid, match=r"lacks 1 tensors, such as 'lm_head\.weight'"):
        loading.load(str(model))


@pytest.mark.anyio
async def test_weights_that_are_no_numbers_are_refused(tiny: Path, tmp_path: Path) -> None:
    def broken(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(name for name in tensors if name.endswith("text_model.layers.1.mlp.up_proj.weight"))
        return tensors | {name: torch.full_like(tensors[name], float("nan"))}

    model = changed(tiny, tmp_path, broken)
    with pytest.raises(Invalid, match="its hidden states are not finite; check its weights for NaN"):
        checks.policy_of(model, torch.float32)
    settings = checks.engine_settings(model, tmp_path)
    engine = checks.transformers_engine(settings)
    await engine.start()
    try:
        with pytest.raises(EngineError, match="self-test"):
            await self_test(settings, engine)
    finally:
        await engine.close()


def test_noise_keeps_variances_positive() -> None:
    """Of a batch norm in a vision tower; their roots would not be numbers."""
    variances, weights = torch.linspace(0.0, 1.0, 1000), torch.linspace(-1.0, 1.0, 1000)
    for seed in range(3):
        noisy = perturbed(variances, "running_var", seed)
        assert (noisy >= 0).all()
        assert ((noisy - variances).abs() > 0.01).float().mean() > 0.9
        assert (perturbed(weights, "weight", seed) < 0).any()


def test_weights_in_half_precision_and_in_shards_are_loaded(tiny: Path, tmp_path: Path) -> None:
    model, _ = loading.load(str(tiny))
    model.half().save_pretrained(tmp_path / "half", max_shard_size="500KB")
    for file in tiny.iterdir():
        if not (tmp_path / "half" / file.name).exists() and file.suffix != ".safetensors":
            shutil.copy(file, tmp_path / "half")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    loaded, _ = loading.load(str(tmp_path / "half"))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
