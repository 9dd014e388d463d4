"""Weights files that lie beside a checkpoint's own, and are no part of it, change nothing in an engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.errors import Invalid
from mor_rollout import environment
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.self_test import self_test
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests import family_checks as checks
from tests.rollout.conftest import settings_for

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


def add_strays(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Add files as trainers of value heads, vendors and PEFT leave them."""
    save_file({"v_head.summary.weight": torch.zeros(1, 4)}, folder / "value_head.safetensors")
    save_file({name: torch.zeros_like(value) for name, value in tensors.items()}, folder / "consolidated.safetensors")
    save_file({"base_model.model.q.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")


def single_file(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    add_strays(folder, load_file(tiny / "model.safetensors"))
    return folder


def shards(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    AutoModelForImageTextToText.from_pretrained(tiny).save_pretrained(folder, max_shard_size="500KB")
    assert (folder / "model.safetensors.index.json").is_file()
    add_strays(folder, load_file(tiny / "model.safetensors"))
    return folder


LAYOUTS = pytest.mark.parametrize("layout", [single_file, shards])


@LAYOUTS
async def test_an_engine_serves_and_swaps_the_model_alone(
    layout: Callable[[Path, Path], Path], tiny_vlm: Path, tmp_path: Path
) -> None:
    model = layout(tiny_vlm, tmp_path / "model")
    base = BaseCheckpoint(str(model))
    assert base.digest == BaseCheckpoint(str(tiny_vlm)).digest
    assert base.is_same(str(model))
    settings = settings_for(model, tmp_path, backend="transformers")
    engine = checks.transformers_engine(settings)
    await engine.start()
    try:
        await self_test(settings, engine)
        assert (await engine.load(None)).mismatched == ()
        assert (
            await checks.engine_difference(engine, checks.PlainModel(tiny_vlm, torch.float32), [checks.sample(1)])
            < 1e-4
        )
    finally:
        await engine.close()


@pytest.mark.slow
@pytest.mark.vllm
@LAYOUTS
async def test_so_does_vllm(layout: Callable[[Path, Path], Path], tiny_vlm: Path, tmp_path: Path) -> None:
    from mor_rollout.engines.vllm.vllm_engine import VllmEngine

    settings: Any = settings_for(layout(tiny_vlm, tmp_path / "model"), tmp_path)
    environment.prepare(settings)
    base = BaseCheckpoint(settings.model)
    engine = VllmEngine(settings, base, PromptCodec(settings, base))
    await engine.start()
    try:
        await self_test(settings, engine)
    finally:
        await engine.close()


def test_a_tensor_that_the_index_names_and_no_file_has_is_told(tiny_vlm: Path, tmp_path: Path) -> None:
    model = shards(tiny_vlm, tmp_path / "model")
    index = model / "model.safetensors.index.json"
    index.write_text(
        index.read_text().replace('"weight_map": {', '"weight_map": {"x": "model-00001-of-00002.safetensors",', 1)
    )
    with pytest.raises(Invalid, match=r"index names tensor 'x'|which is not there"):
        BaseCheckpoint(str(model))
