"""Adoption of reward models that others trained: they are served as they score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.errors import MorError
from mor_core.wire import Message
from mor_reward import model_store
from mor_reward.adoption import AdoptionJob, adopt
from mor_reward.backbones import Backbone, Example
from mor_reward.cli import app
from mor_reward.preference_trainer import margins
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification
from typer.testing import CliRunner

from tests.reward import reward_kit as kit
from tests.tiny_models import TEXT, VOCABULARY, build_tokenizer

TEMPLATE = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
RESPONSES = ("a red circle", "a red circle on the left", "?")


def write_decoder(folder: Path, *, labels: int = 1, padded: bool = False) -> Path:
    """Write a decoder with a head of ``labels`` rows; without padding, as Skywork's and many of TRL are."""
    tokenizer = build_tokenizer(["<s>", "</s>", "<pad>"], "</s>", "<pad>", "<s>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id if padded else None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **TEXT,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def examples() -> list[Example]:
    return [Example((Message(role="user", content="what is it?"),), (), response) for response in RESPONSES]


def reference(model: Any, tokenizer: Any, label: int = 0) -> list[float]:
    """Score each response alone by transformers."""
    found = []
    for example in examples():
        turns = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": example.response}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        with torch.inference_mode():
            logits = model.eval()(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits
        found.append(float(logits[0, label]))
    return found


def adopted(checkpoint: Path, out: Path, **changes: Any) -> Backbone:
    adopt(AdoptionJob(checkpoint=str(checkpoint), out=out, name="m", **changes), [])
    return model_store.load(out)[1]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("labels", "label"), [(1, None), (3, 2)])
def test_a_classifier_scores_as_in_transformers(tmp_path: Path, padded: bool, labels: int, label: int | None) -> None:
    folder = write_decoder(tmp_path / "ckpt", labels=labels, padded=padded)
    wanted = reference(
        LlamaForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), label or 0
    )
    found = adopted(folder, tmp_path / "out", label=label)
    found.precision = torch.float32  # type: ignore[assignment]
    assert found.score(examples()).tolist() == pytest.approx(wanted, abs=1e-4)
    assert model_store.read_manifest(tmp_path / "out").calibration is None


def test_an_encoders_label_is_chosen(tmp_path: Path, text_encoder: Path) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(text_encoder, num_labels=2).eval()
    model.save_pretrained(tmp_path / "ckpt")
    tokenizer = AutoTokenizer.from_pretrained(text_encoder)
    tokenizer.save_pretrained(tmp_path / "ckpt")
    found = adopted(tmp_path / "ckpt", tmp_path / "out", label=1)
    found.precision = torch.float32  # type: ignore[assignment]
    with torch.inference_mode():
        wanted = [model(**tokenizer("what is it?", r, return_tensors="pt")).logits[0, 1].item() for r in RESPONSES]
    assert found.score(examples()).tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("names_base", [True, False])
def test_an_adapter_is_merged_into_its_base(tmp_path: Path, names_base: bool) -> None:
    """As TRL's RewardTrainer writes one: the base has no head, and the adapter has the whole one."""
    base = write_decoder(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "score.weight"}, base / "model.safetensors", {"format": "pt"})
    torch.manual_seed(5)
    model = LlamaForSequenceClassification.from_pretrained(base)
    tuned = get_peft_model(
        model,
        LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    tuned.save_pretrained(str(tmp_path / "adapter"))
    wanted = reference(tuned, AutoTokenizer.from_pretrained(base))
    if not names_base:
        file = tmp_path / "adapter" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
        with pytest.raises(MorError, match="names no base model; give it with --base"):
            adopted(tmp_path / "adapter", tmp_path / "out")
    found = adopted(tmp_path / "adapter", tmp_path / "out", base=None if names_base else str(base))
    found.precision = torch.float32  # type: ignore[assignment]
    assert found.score(examples()).tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("beside", [True, False])
def test_a_value_head_of_a_vision_language_model_is_found(tmp_path: Path, tiny_vlm: Path, beside: bool) -> None:
    folder = copied(tiny_vlm, tmp_path / "ckpt")
    weight = torch.linspace(-1, 1, TEXT["hidden_size"])[None]
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": torch.tensor([0.25])}
    if beside:
        save_file(head, folder / "value_head.safetensors", {"format": "pt"})
    else:
        file = folder / "model.safetensors"
        save_file({**load_file(file), **head}, file, {"format": "pt"})
    found: Any = adopted(folder, tmp_path / "out")
    assert torch.equal(found.head.weight, weight)
    assert found.head.bias.item() == 0.25
    assert found.score(examples()).unique().numel() == len(RESPONSES)


def copied(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_preferences_calibrate_an_adopted_model(tmp_path: Path) -> None:
    data = kit.write_style_preferences(tmp_path, 30)
    found = adopted(write_decoder(tmp_path / "ckpt"), tmp_path / "out", data=data)
    manifest = model_store.read_manifest(tmp_path / "out")
    assert manifest.calibration is not None
    assert manifest.calibration.pairs == 30
    right = (margins(found, kit.pairs_of(data)) > 0).mean()
    assert manifest.calibration.pair_accuracy == pytest.approx(right)
    assert manifest.adopted is not None


def headless(folder: Path) -> Path:
    file = write_decoder(folder) / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "score.weight"}, file, {"format": "pt"})
    return folder


def zero(folder: Path) -> Path:
    file = write_decoder(folder) / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "score.weight": torch.zeros_like(tensors["score.weight"])}, file, {"format": "pt"})
    return folder


def broken(folder: Path) -> Path:
    file = write_decoder(folder) / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] * torch.nan}, file, {"format": "pt"})
    return folder


def untold(folder: Path) -> Path:
    (write_decoder(folder) / "chat_template.jinja").write_text("{% for %}")
    return folder


def coded(folder: Path) -> Path:
    """Write a checkpoint of a family of its own, whose code comes with it."""
    file = write_decoder(folder) / "config.json"
    changes = {"model_type": "ours", "auto_map": {"AutoConfig": "ours.Config"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (folder / "ours.py").write_text("raise SystemExit('the code ran')\n")
    return folder


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (headless, [], "lacks 1 tensors, such as 'score.weight'"),
        (zero, [], "its head is zero or not finite, so it was never trained"),
        (broken, [], "its score of 'Four.' is not finite"),
        (untold, [], "the model's chat template is broken in line 1"),
        (write_decoder, ["--max-length", "1000000"], "positions; give at most these"),
        (write_decoder, ["--max-length", "8"], "tokens; this model reads at most 8"),
        (write_decoder, ["--name", "m" * 201], "at most 200 characters; give a shorter one"),
        (coded, [], "without code from the checkpoint"),
        (
            lambda folder: write_decoder(folder, labels=3),
            [],
            "labels; give the index of the score's with --label",
        ),
        (lambda folder: write_decoder(folder, labels=3), ["--label", "3"], "has labels 0 to 2"),
        (write_decoder, ["--base", "x"], "--base belongs to an adapter"),
        (write_decoder, ["--head", "x"], "a classifier has its own"),
    ],
)
def test_what_is_no_trained_reward_model_is_refused(tmp_path: Path, make: Any, options: list[str], reason: str) -> None:
    make(tmp_path / "ckpt")
    result = CliRunner().invoke(app, ["adopt", str(tmp_path / "ckpt"), "--out", str(tmp_path / "out"), *options])
    assert result.exit_code == 1
    assert reason in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_vision_language_model_without_a_value_head_is_refused(tmp_path: Path, tiny_vlm: Path) -> None:
    with pytest.raises(MorError, match="found none; a model without one is trained"):
        adopted(tiny_vlm, tmp_path / "out")


def test_an_adopted_model_cannot_be_audited_here(tmp_path: Path) -> None:
    data = kit.write_style_preferences(tmp_path, 30)
    adopted(write_decoder(tmp_path / "ckpt"), tmp_path / "out", data=data)
    result = CliRunner().invoke(app, ["audit", "--model", str(tmp_path / "out"), "--data", str(data)])
    assert result.exit_code == 1
    assert "was adopted, so that its training pairs are unknown here" in " ".join(result.stderr.split())


def test_the_command_says_what_is_not_calibrated(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "ckpt")
    result = CliRunner().invoke(app, ["adopt", str(folder), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert "not calibrated" in result.stderr
