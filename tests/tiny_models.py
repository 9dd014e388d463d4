"""Tiny vision-language checkpoints with random weights, tokenizer and processor, built in a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

Kind = Literal["idefics3", "smolvlm", "qwen2_5_vl", "llava"]

TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
_TOKENS = 600
VOCABULARY = 640  # larger than the tokenizer's, as padded checkpoints have it
_IMAGE_MARK = {
    "idefics3": "<image>",
    "smolvlm": "<image>",
    "llava": "<image>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
}
_IDEFICS_TOKENS = [
    *("<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]
_QWEN_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>", "<|vision_pad|>"),
]
_LLAVA_TOKENS = ["<s>", "</s>", "<pad>", "<image>", "<|im_start|>", "<|im_end|>"]


def build_tiny_vlm(folder: Path, tied: bool = False, kind: Kind = "idefics3", scale: float = 3.0) -> Path:
    """Write a checkpoint of under a million parameters to ``folder`` and return it.

    ``scale`` multiplies every matrix, so that the next token's distribution is neither uniform nor certain.
    """
    import torch

    torch.manual_seed(0)
    model, processor = {"idefics3": _idefics3, "smolvlm": _smolvlm, "qwen2_5_vl": _qwen, "llava": _llava}[kind](tied)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(scale)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.eval().to(torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _corpus() -> Iterator[str]:
    for colour in ("red", "green", "blue", "yellow", "black", "white"):
        for shape in ("circle", "square", "triangle", "star", "line", "dot"):
            yield f"user: What is in the picture? assistant: There is a {colour} {shape} on the left."
            yield f"How many {colour} {shape}s do you see? count the {shape}s: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    yield "system You are a helpful assistant. The answer is: yes no right above below 0"


def build_tokenizer(special: list[str], eos: str, pad: str, bos: str | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_TOKENS - len(special), initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, bos_token=bos, clean_up_tokenization_spaces=False
    )
    fast.add_special_tokens({"additional_special_tokens": [t for t in special if t not in (eos, pad, bos)]})
    fast.model_max_length = 4096
    return fast


def _template(kind: Kind) -> str:
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        "{% if c['type'] in ('image', 'image_url') %}" + _IMAGE_MARK[kind] + "{% elif c['type'] == 'text' %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _ids(tokenizer: Any, tokens: list[str]) -> dict[str, int]:
    return {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}


def _idefics3(tied: bool) -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )
    from transformers.models.idefics3 import Idefics3VisionConfig

    tokenizer, config = _idefics_parts(tied, Idefics3VisionConfig, Idefics3Config)
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 64}, do_image_splitting=False
    )
    processor = Idefics3Processor(
        image_processor=image_processor, tokenizer=tokenizer, image_seq_len=4, chat_template=_template("idefics3")
    )
    return Idefics3ForConditionalGeneration(config), processor


def _smolvlm(tied: bool) -> tuple[Any, Any]:
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessorPil,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )
    from transformers.models.smolvlm import SmolVLMVisionConfig

    tokenizer, config = _idefics_parts(tied, SmolVLMVisionConfig, SmolVLMConfig)
    edges: dict[str, Any] = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessorPil(**edges, do_image_splitting=False),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**edges, fps=1, num_frames=4),
        image_seq_len=4,
        chat_template=_template("smolvlm"),
    )
    return SmolVLMForConditionalGeneration(config), processor


def _idefics_parts(tied: bool, vision_class: Any, config_class: Any) -> tuple[Any, Any]:
    from transformers import LlamaConfig

    tokenizer = build_tokenizer(_IDEFICS_TOKENS, "<|im_end|>", "<|im_end|>", "<|im_start|>")
    ids = _ids(tokenizer, _IDEFICS_TOKENS)
    ends = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|im_end|>"]}
    text = LlamaConfig(
        vocab_size=VOCABULARY, bos_token_id=ids["<|im_start|>"], tie_word_embeddings=tied, **ends, **TEXT
    )
    vision = vision_class(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16
    )
    config = config_class(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<image>"],
        scale_factor=2,
        pad_token_id=ids["<|im_end|>"],
        tie_word_embeddings=tied,
    )
    return tokenizer, config


def _qwen(tied: bool) -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
    )

    tokenizer = build_tokenizer(_QWEN_TOKENS, "<|im_end|>", "<|endoftext|>", None)
    ids = _ids(tokenizer, _QWEN_TOKENS)
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": tied,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            **{"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 128},
            **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
            **{"window_size": 56, "fullatt_block_indexes": [1]},
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    patches: dict[str, Any] = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**patches, size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112}),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**patches),
        chat_template=_template("qwen2_5_vl"),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _llava(tied: bool) -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = build_tokenizer(_LLAVA_TOKENS, "</s>", "<pad>", "<s>")
    ids = _ids(tokenizer, _LLAVA_TOKENS)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
        tie_word_embeddings=tied,
        **TEXT,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        tie_word_embeddings=tied,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("llava"),
    )
    return LlavaForConditionalGeneration(config), processor
