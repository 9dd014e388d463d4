"""Families that MoR cannot use are refused by name from configuration and processor, before weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from mor_client.cli import app
from mor_core.errors import Invalid
from mor_core.model_family import check_family, model_class
from mor_core.vllm_families import check_vllm_family
from typer.testing import CliRunner

from tests import latest_model_families, more_model_families
from tests.model_families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def write(folder: Path, config: Any, processor: Any | None = None) -> str:
    """Write a checkpoint without weights."""
    config.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"blip2"}))
def test_families_that_work_are_taken_without_their_weights(family: str, tmp_path: Path) -> None:
    assert more_model_families.llama4 is FAMILIES["llama4"]
    parts = FAMILIES[family]()
    assert check_family(write(tmp_path, parts.config, parts.processor)).tokenizer.eos_token_id is not None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (hf.Florence2Config(), "Florence2ForConditionalGeneration.*an encoder and a decoder"),
        (
            hf.VisionEncoderDecoderConfig(encoder={"model_type": "vit"}, decoder={"model_type": "gpt2"}),
            "an encoder and",
        ),
        (hf.LlamaConfig(), "family 'llama', which transformers has no such class for"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_other_kinds_are_refused_by_name(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=message):
        check_family(write(tmp_path, config))


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    configuration = {"model_type": "kimi_vl", "auto_map": {"AutoConfig": "configuration_kimi_vl.KimiVLConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    with pytest.raises(Invalid, match=r"family transformers knows without code from the checkpoint"):
        model_class(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "device", "refused"),
    [
        ("qwen3_vl_moe", "cuda", "expects the weights of its experts in another layout"),
        ("llama4", "cpu", "with Triton, which needs a GPU"),
        ("llama4", "cuda", None),
        ("gemma4", "cpu", "other log-probabilities than transformers"),
        ("gemma4", "cuda", None),
        ("aya_vision", "cuda", "scales its logits"),
        ("mllama", "cpu", "no code of its own"),
        ("janus", "cuda", "no code of its own"),
        ("paligemma", "cuda", "other tokens of a prompt"),
        ("kimi_k25", "cuda", "no code of its own"),
        ("ernie4_5_vl_moe", "cuda", "another configuration of this family"),
        ("gemma3n", "cpu", "other log-probabilities"),
        ("gemma3n", "cuda", None),
        ("qwen3_5", "cpu", "in bfloat16 only, not in float32"),
        ("qwen2_5_vl", "cpu", None),
    ],
)
def test_a_family_that_vllm_does_not_serve_is_refused_by_name(
    family: str, device: Any, refused: str | None, tmp_path: Path
) -> None:
    model = write(tmp_path / "model", FAMILIES[family]().config)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "fine"}')
    config = hf.AutoConfig.from_pretrained(model)
    if refused is None:
        check_vllm_family(model, config, device=device, dtype="float32")
        return
    with pytest.raises(Invalid, match=rf"{family}\).*{refused}.*set MOR_"):
        check_vllm_family(model, config, device=device, dtype="float32")
    command = ["check", str(tmp_path / "rows.jsonl"), "--model", model, "--engine", "vllm", "--device", device]
    told = CliRunner().invoke(app, [*command, "--no-family"])
    assert told.exit_code != 0
    assert f"({family})" in told.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("family", "device", "adapters", "refused"),
    [
        *((name, "cpu", True, True) for name in ("glm4v_moe", "qwen3_5_moe")),
        ("glm4v_moe", "cpu", False, False),
        ("glm4v_moe", "cuda", True, False),
        ("qwen2_5_vl", "cpu", True, False),
        ("gemma3", "cpu", True, False),
    ],
)
def test_experts_with_adapters_are_refused_on_cpus(
    family: str, device: Any, adapters: bool, refused: bool, tmp_path: Path
) -> None:
    """vLLM takes its kernels in Triton for experts wherever adapters are loaded, and fails at the first response."""
    assert latest_model_families.glm4v_moe is FAMILIES["glm4v_moe"]
    model = write(tmp_path / "model", FAMILIES[family]().config)
    config = hf.AutoConfig.from_pretrained(model)
    if not refused:
        check_vllm_family(model, config, device=device, dtype="bfloat16", adapters=adapters)
        return
    with pytest.raises(
        Invalid, match=rf"{family}\) has experts, .* set MOR_LORA_MAX_RANK=0 .*MOR_BACKEND=transformers"
    ):
        check_vllm_family(model, config, device=device, dtype="bfloat16", adapters=adapters)
    run = tmp_path / "run.toml"
    run.write_text(
        f'name = "r"\nmodel = "{model}"\nprompts = "rows.jsonl"\nobjective = "o"\n[tuning]\nkind = "lora"\nrank = 4\n'
    )
    told = CliRunner().invoke(app, ["check", str(run), "--model", model, "--engine", "vllm", "--no-family"])
    assert told.exit_code != 0
    assert "has experts" in told.stderr


@pytest.mark.parametrize("family", ["gemma3n", "glm46v", "llava_onevision"])
def test_adapters_are_refused_where_vllm_loads_none(family: str) -> None:
    config = FAMILIES[family]().config
    check_vllm_family("m", config, device="cuda", dtype="bfloat16", images=1)
    with pytest.raises(Invalid, match=rf"{family}\): vLLM loads no adapters .*; set MOR_LORA_MAX_RANK=0 and"):
        check_vllm_family("m", config, device="cuda", dtype="bfloat16", images=1, adapters=True)


@pytest.mark.parametrize("family", ["llava_onevision"])
def test_several_pictures_are_refused_where_vllm_takes_one(family: str) -> None:
    config = FAMILIES[family]().config
    check_vllm_family("m", config, device="cpu", dtype="float32", images=1)
    for images in (None, 2):
        with pytest.raises(
            Invalid, match=rf"{family}\): vLLM .* set MOR_MAX_IMAGES=1, or set MOR_BACKEND=transformers"
        ):
            check_vllm_family("m", config, device="cpu", dtype="float32", images=images)


def test_a_template_without_pictures_is_refused(tmp_path: Path) -> None:
    parts = FAMILIES["qwen2_vl"]()
    parts.processor.chat_template = (
        "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(Invalid, match=r"Qwen2VLForConditionalGeneration\) cannot be used"):
        check_family(write(tmp_path, parts.config, parts.processor))


@pytest.mark.parametrize("method", ["bitsandbytes", "awq", "fp8"])
def test_a_quantised_checkpoint_is_refused_by_its_method(method: str, tmp_path: Path) -> None:
    config = FAMILIES["qwen2_vl"]().config
    config.quantization_config = {"quant_method": method, "bits": 4}
    with pytest.raises(Invalid, match=rf"it is quantised \({method}\); give the checkpoint that it was made from"):
        model_class(write(tmp_path, config))


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(tmp_path: Path) -> None:
    """Its tokens would be looked up beyond the embedding, at the first prompt that has one."""
    parts = FAMILIES["qwen2_vl"]()
    parts.processor.tokenizer.add_tokens([f"word-{number}" for number in range(300)])
    with pytest.raises(Invalid, match=r"tokens up to \d+, and the model embeds those below 640; .*resize"):
        check_family(write(tmp_path, parts.config, parts.processor))
