"""Texts as a text-only reward model reads them: one beginning of sequence, and no control tokens from words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.wire import Message
from mor_reward.backbones import build
from mor_reward.backbones.backbone import Example
from mor_reward.backbones.encoders import PretrainedTextEncoder
from mor_reward.backbones.text import TextClassifier, TextConfig
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from tests.tiny_models import TEXT, VOCABULARY, build_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
SPECIAL = ["<s>", "</s>", "<pad>", "<image>"]


def write_classifier(folder: Path, *, adds: bool, template: str | None = None, ends: bool = True) -> Path:
    """Write a decoder with one label, and a tokenizer that begins each text of a pair, as Llama's does."""
    tokenizer = build_tokenizer(SPECIAL, "</s>", "<pad>", "<s>")
    if adds:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    if not ends:
        tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, num_labels=1, pad_token_id=2, bos_token_id=0, eos_token_id=1, **TEXT)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def classifier(folder: Path) -> TextClassifier:
    backbone = build(TextConfig(model=str(folder), precision="float32"), Path(), pretrained=True)
    assert isinstance(backbone, TextClassifier)
    return backbone.eval()


def example(prompt: str, response: str, role: Any = "user") -> Example:
    return Example((Message(role=role, content=prompt),), (), response)


@pytest.mark.parametrize("template", [None, TEMPLATE, "<s>" + TEMPLATE, "\n<s><s>" + TEMPLATE])
@pytest.mark.parametrize("adds", [True, False])
def test_a_text_begins_once(tmp_path: Path, adds: bool, template: str | None) -> None:
    backbone = classifier(write_classifier(tmp_path, adds=adds, template=template))
    ids = backbone._encode(example("how many?", "There are 3."))["input_ids"]
    begins = [place for place, token in enumerate(ids) if token == backbone.tokenizer.bos_token_id]
    assert begins == ([0] if adds or "<s>" in (template or "") else [])
    assert backbone.score([example("how many?", "3"), example("how many circles?", "3")]).isfinite().all()


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("attack", ["</s>", "<image>", "<s>", "<</s>/s>"])
def test_nobodys_words_become_control_tokens(tmp_path: Path, template: str | None, attack: str) -> None:
    backbone = classifier(write_classifier(tmp_path, adds=False, template=template))
    special = {backbone.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    for asked, answered in ((f"say {attack}", "3"), ("say", f"{attack} 3")):
        assert not special & set(backbone._encode(example(asked, answered))["input_ids"])


def test_an_encoder_of_texts_escapes_them_too(text_encoder: Path) -> None:
    encoder = PretrainedTextEncoder(str(text_encoder), Path(), pretrained=True)
    plain, attacked = encoder.tokens("red circle"), encoder.tokens("red [SEP] circle [PAD] [MASK]")
    assert {0, 3, 4} & set(plain) == {0, 3, 4} & set(attacked)
    assert plain.count(3) == attacked.count(3)


def test_a_template_that_refuses_a_turn_makes_the_item_unscorable(tmp_path: Path) -> None:
    refusal = "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    template = "{% for m in messages %}" + refusal + "{{ m.content }}{% endfor %}"
    backbone = classifier(write_classifier(tmp_path, adds=True, template=template))
    assert backbone.unscorable_reason(example("be kind", "3")) is None
    reason = backbone.unscorable_reason(example("be kind", "3", "system"))
    assert reason is not None
    assert "refuses a conversation of the turns system, assistant" in reason


@pytest.mark.parametrize("ends", [True, False])
def test_a_model_without_padding_scores_as_transformers_does(tmp_path: Path, ends: bool) -> None:
    """Its last token counts, also where that is the token that ends texts, and in a batch as alone."""
    folder = write_classifier(tmp_path, adds=False, template=TEMPLATE + "</s>", ends=ends)
    alone = LlamaForSequenceClassification.from_pretrained(folder)
    alone.config.pad_token_id = None
    alone.save_pretrained(folder)
    backbone = classifier(folder)
    batch = [example("how many?", response) for response in ("3", "There are three circles.", "")]
    wanted = []
    for each in batch:
        with torch.inference_mode():
            wanted.append(alone(torch.tensor([backbone._encode(each)["input_ids"]])).logits.item())
    assert backbone.score(batch).tolist() == pytest.approx(wanted, abs=1e-5)
    backbone.export(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["pad_token_id"] is None


def test_a_model_with_padding_scores_before_it_as_transformers_does(tmp_path: Path) -> None:
    """It was trained to score at the token before, as padding is the token that ends texts here."""
    folder = write_classifier(tmp_path, adds=False, template=TEMPLATE + "</s>")
    alone = LlamaForSequenceClassification.from_pretrained(folder)
    alone.config.pad_token_id = end = AutoTokenizer.from_pretrained(folder).eos_token_id
    alone.save_pretrained(folder)
    backbone = classifier(folder)
    batch = [example("how many?", response) for response in ("3", "There are three circles.")]
    rows = [backbone._encode(each)["input_ids"] for each in batch]
    assert {row[-1] for row in rows} == {end}
    with torch.inference_mode():
        wanted = [alone(torch.tensor([row])).logits.item() for row in rows]
    assert backbone.score(batch).tolist() == pytest.approx(wanted, abs=1e-5)
