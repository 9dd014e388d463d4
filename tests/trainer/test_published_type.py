"""Published weights have the number format of the engines: half the bytes in bfloat16, no digit of theirs lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mor_core.run_status import EngineLimits
from mor_core.weight_checksums import checksum
from mor_trainer.weights import version_writer
from mor_trainer.weights.published_type import PublishedTensors, PublishedType
from safetensors.torch import load_file

from tests.trainer.policies import policy_of


def engine(name: str, dtype: str | None, model: str = "m", weights_format: int = 2) -> EngineLimits:
    return EngineLimits(
        name=name, model=model, max_model_len=1, max_images=0, max_image_bytes=1, dtype=dtype,
        weights_format=weights_format,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reported", "wanted"),
    [
        ([], torch.float32),
        ([engine("a", "bfloat16")], torch.bfloat16),
        ([engine("a", "bfloat16"), engine("b", "bfloat16"), engine("c", "float32", "other")], torch.bfloat16),
        ([engine("a", "bfloat16"), engine("b", "float32")], torch.float32),
        ([engine("a", "bfloat16"), engine("b", "float16")], torch.float32),
        ([engine("a", None)], torch.float32),
        ([engine("a", "int4")], torch.float32),
    ],
)
def test_the_format_is_that_of_all_engines_of_the_model(reported: list[EngineLimits], wanted: torch.dtype) -> None:
    assert PublishedType("auto", "m", lambda: reported).current() is wanted


def test_the_format_stays_while_run_control_is_away_and_a_setting_decides_alone() -> None:
    answers = [[engine("a", "bfloat16")], []]
    published = PublishedType("auto", "m", lambda: answers.pop(0))
    assert published.current() is published.current() is torch.bfloat16
    assert PublishedType("float16", "m", lambda: answers.pop(0)).current() is torch.float16


@pytest.mark.parametrize(
    ("reported", "wanted"),
    [
        ([], "sha256"),
        ([engine("a", "float32")], "blake3"),
        ([engine("a", "float32"), engine("b", "float32", "a copy of m", weights_format=1)], "sha256"),
        ([engine("a", "float32", weights_format=3)], "blake3"),
    ],
)
def test_checksums_are_those_that_every_engine_knows(reported: list[EngineLimits], wanted: str) -> None:
    assert PublishedType("float32", "m", lambda: reported).algorithm() == wanted


def test_vectors_and_routers_of_experts_keep_their_digits_and_nothing_is_widened() -> None:
    tensors = {
        "layers.0.mlp.gate.weight": torch.randn(4, 4),
        "layers.0.mlp.gate_proj.weight": torch.randn(4, 4),
        "layers.0.mlp.experts.gate_up_proj": torch.randn(2, 4, 4),
        "layers.0.norm.weight": torch.randn(4),
        "half": torch.randn(4, 4).to(torch.float16),
        "steps": torch.arange(4).reshape(2, 2),
    }
    published = PublishedTensors(tensors, torch.bfloat16)
    types = {name: published[name].dtype for name in published}
    assert types == {name: published.type_of(name) for name in tensors}
    halved = {"layers.0.mlp.gate_proj.weight", "layers.0.mlp.experts.gate_up_proj"}
    assert {name for name in tensors if types[name] != tensors[name].dtype} == halved
    assert published.bytes == sum(tensor.nbytes for tensor in published.values())
    assert all(tensor.equal(tensors[name]) for name, tensor in PublishedTensors(tensors, torch.float32).items())


@pytest.mark.parametrize("tuning", [{"kind": "full"}, {"kind": "lora", "rank": 4}])
def test_a_version_in_bfloat16_has_half_the_bytes_and_its_own_checksums(
    tuning: dict[str, object], tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    policy, _ = policy_of(tiny, prompts, torch.float32, tuning=tuning)
    sizes = {}
    for version, dtype in enumerate((torch.float32, torch.bfloat16)):
        manifest = version_writer.write_version(
            tmp_path, "r", version, str(tiny), model=policy.model, adapter=policy.adapter,
            trainable=policy.trainable, keep=2, dtype=dtype,
        )  # fmt: skip
        sizes[dtype] = manifest.files[0].bytes
        content = load_file(tmp_path / "weights" / str(version) / manifest.files[0].name)
        assert content.keys() == manifest.tensors.keys()
        for name, tensor in content.items():
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert checksum(raw, "blake3") == manifest.tensors[name].checksum
            assert tensor.dtype is (dtype if tensor.dim() > 1 else torch.float32)
    assert sizes[torch.bfloat16] < 0.65 * sizes[torch.float32]  # the tiny model's header is a tenth of its file
