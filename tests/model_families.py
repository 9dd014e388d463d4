"""Tiny random checkpoints of many vision-language families, with their real processor classes.

Configurations have the shape of those on the hub: a field that published ones leave out is left out here too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from tests.tiny_models import TEXT, VOCABULARY, build_tokenizer

CHAT = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
_QWEN = [*CHAT, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_pad|>"]
_GLM = [
    *(*CHAT, "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>"),
]
_GEMMA = [*CHAT, "<start_of_image>", "<end_of_image>", "<image_soft_token>", "<boa>", "<eoa>", "<audio_soft_token>"]
_TOWER = re.compile(r"(vision_tower\.)(?=embeddings|encoder|post_layernorm|pre_layrnorm)")
"""Place in tensor names of SigLIP and CLIP towers where those on the hub, which vLLM reads, say ``vision_model``."""
_RENAMED_TOWERS = ("siglip_vision_model", "clip_vision_model")
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
_PATCHES: dict[str, Any] = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
SIGLIP = {
    **{"model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "image_size": 56, "patch_size": 14, "vision_use_head": False},
}


@dataclass(frozen=True)
class Parts:
    """Configuration and processor of a family's checkpoint."""

    config: Any
    processor: Any
    scale: float = 3.0


FAMILIES: dict[str, Callable[[], Parts]] = {}


def family(build: Callable[[], Parts]) -> Callable[[], Parts]:
    FAMILIES[build.__name__] = build
    return build


def build_family(name: str, folder: Path) -> Path:
    """Write the checkpoint of a family to ``folder`` and return it."""
    torch.manual_seed(0)
    parts = FAMILIES[name]()
    model = hf.AutoModelForImageTextToText.from_config(parts.config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.nan_to_num_(0.0)  # some families leave a parameter as it was allocated
            if parameter.dim() >= 2:
                # so that the next token's distribution is neither uniform nor certain
                parameter.mul_(parts.scale)
            elif not parameter.any():
                parameter.normal_(std=0.3)  # a closed gate, such as that of cross attention, would hide the pictures
    model.generation_config.eos_token_id = parts.processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = parts.processor.tokenizer.pad_token_id
    model.eval().save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    if parts.config.vision_config.model_type in _RENAMED_TOWERS:
        weights = folder / "model.safetensors"
        renamed = {_TOWER.sub(r"\1vision_model.", name): tensor for name, tensor in load_file(weights).items()}
        save_file(renamed, weights, metadata={"format": "pt"})
    return folder


def tokens(special: list[str], bos: str | None = None, **named: str) -> tuple[Any, dict[str, int]]:
    tokenizer = build_tokenizer(special, "<|im_end|>", "<|endoftext|>", bos)
    if named:
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            **{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": bos},
            extra_special_tokens=named,
            model_max_length=4096,
        )
    return tokenizer, {token: tokenizer.convert_tokens_to_ids(token) for token in special}


def ends(ids: dict[str, int]) -> dict[str, int]:
    return {
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def chat_markup(mark: str) -> str:
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        "{% if c['type'] in ('image', 'image_url') %}" + mark + "{% elif c['type'] == 'text' %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _qwen(config: Any, processor: Any, images: Any, videos: Any, mark: str, **special: Any) -> Parts:
    size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
    patches = {**_PATCHES, **special}
    tokenizer, _ = tokens(_GLM if "image|>" in mark else _QWEN)
    return Parts(
        config,
        processor(
            image_processor=images(**patches, size=size),
            tokenizer=tokenizer,
            video_processor=videos(**patches),
            chat_template=chat_markup(mark),
        ),
    )


_QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"


def _qwen_ids() -> tuple[dict[str, int], dict[str, int]]:
    _, ids = tokens(_QWEN)
    return ids, {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


@family
def qwen2_vl() -> Parts:
    ids, marks = _qwen_ids()
    config = hf.Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": VOCABULARY, "rope_parameters": _MROPE, **ends(ids)},
        vision_config={
            **{"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2},
            **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
        },
        tie_word_embeddings=True,
        **marks,
    )
    return _qwen(config, hf.Qwen2VLProcessor, hf.Qwen2VLImageProcessorPil, hf.Qwen2VLVideoProcessor, _QWEN_MARK)


@family
def qwen2_5_vl() -> Parts:
    ids, marks = _qwen_ids()
    config = hf.Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": VOCABULARY, "rope_parameters": _MROPE, **ends(ids)},
        vision_config={
            **{"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 128},
            **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
            **{"window_size": 56, "fullatt_block_indexes": [1]},
        },
        tie_word_embeddings=True,
        **marks,
    )
    return _qwen(config, hf.Qwen2_5_VLProcessor, hf.Qwen2VLImageProcessorPil, hf.Qwen2VLVideoProcessor, _QWEN_MARK)


_QWEN3_VISION = {
    **{"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 128},
    **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64},
}


@family
def qwen3_vl() -> Parts:
    ids, marks = _qwen_ids()
    rope = {**_MROPE, "mrope_interleaved": True}
    config = hf.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 32, "vocab_size": VOCABULARY, "rope_parameters": rope, **ends(ids)},
        vision_config={**_QWEN3_VISION, "deepstack_visual_indexes": [0, 1]},
        **marks,
    )
    return _qwen(config, hf.Qwen3VLProcessor, hf.Qwen2VLImageProcessorPil, hf.Qwen3VLVideoProcessor, _QWEN_MARK)


@family
def qwen3_vl_moe() -> Parts:
    ids, marks = _qwen_ids()
    rope = {**_MROPE, "mrope_interleaved": True}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    config = hf.Qwen3VLMoeConfig(
        text_config={
            **{**TEXT, **experts, "head_dim": 32, "vocab_size": VOCABULARY, "rope_parameters": rope},
            **ends(ids),
        },
        vision_config={**_QWEN3_VISION, "deepstack_visual_indexes": [0, 1]},
        **marks,
    )
    return _qwen(config, hf.Qwen3VLProcessor, hf.Qwen2VLImageProcessorPil, hf.Qwen3VLVideoProcessor, _QWEN_MARK)


@family
def qwen3_5() -> Parts:
    ids, marks = _qwen_ids()
    rope = {**_MROPE, "mrope_interleaved": True, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}
    config = hf.Qwen3_5Config(
        text_config={
            **{**TEXT, "head_dim": 32, "vocab_size": VOCABULARY, "rope_parameters": rope},
            **{"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2},
            **{"linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32},
            **ends(ids),
        },
        vision_config=_QWEN3_VISION,
        **marks,
    )
    return _qwen(config, hf.Qwen3VLProcessor, hf.Qwen2VLImageProcessorPil, hf.Qwen3VLVideoProcessor, _QWEN_MARK)


@family
def glm4v() -> Parts:
    _, ids = tokens(_GLM)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}
    config = hf.Glm4vConfig(
        text_config={**TEXT, "vocab_size": VOCABULARY, "attention_bias": True, "rope_parameters": rope, **ends(ids)},
        vision_config={
            **{"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 128},
            **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "image_size": 112},
        },
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )
    mark = "<|begin_of_image|><|image|><|end_of_image|>"
    return _qwen(config, hf.Glm4vProcessor, hf.Glm4vImageProcessorPil, hf.Glm4vVideoProcessor, mark)


def _gemma_text(ids: dict[str, int]) -> dict[str, Any]:
    return {**TEXT, "head_dim": 32, "vocab_size": VOCABULARY, **ends(ids)}


def _gemma_tokens() -> tuple[Any, dict[str, int]]:
    tokenizer, ids = tokens(
        _GEMMA,
        **{"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        **{"audio_token": "<audio_soft_token>", "boa_token": "<boa>", "eoa_token": "<eoa>"},
    )
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])  # vLLM counts on them
    return tokenizer, ids


@family
def gemma3() -> Parts:
    tokenizer, ids = _gemma_tokens()
    config = hf.Gemma3Config(
        text_config={
            **{**_gemma_text(ids), "query_pre_attn_scalar": 32, "sliding_window": 16},
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chat_markup("<start_of_image>"),
    )
    return Parts(config, processor)


@family
def paligemma() -> Parts:
    tokenizer, ids = tokens([*CHAT, "<image>"], bos="<|im_start|>")
    tokenizer.add_tokens(["\n"])  # vLLM counts on it
    images = hf.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=chat_markup("<image>"))
    config = hf.PaliGemmaConfig(
        text_config={"model_type": "gemma", **TEXT, "head_dim": 32, "vocab_size": 1800, **ends(ids)},
        vision_config={**SIGLIP, "projection_dim": 128},
        projection_dim=128,
        hidden_size=128,
        image_token_index=ids["<image>"],
    )
    return Parts(config, processor)


@family
def gemma4() -> Parts:
    tokenizer, ids = _gemma_tokens()
    processor = hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessorPil(patch_size=14, max_soft_tokens=70, pooling_kernel_size=2),
        tokenizer=tokenizer,
        video_processor=hf.Gemma4VideoProcessor(),
        image_seq_length=70,
        chat_template=chat_markup("<image_soft_token>"),
    )
    config = hf.Gemma4Config(
        text_config={
            **{**_gemma_text(ids), "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
            **{"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16, "global_head_dim": 32},
            "use_bidirectional_attention": "vision",
        },
        vision_config={
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"num_key_value_heads": 2, "head_dim": 32, "patch_size": 14, "pooling_kernel_size": 2},
            **{"position_embedding_size": 128, "default_output_length": 70},
        },
        audio_config=None,
        image_token_id=ids["<image_soft_token>"],
        boi_token_id=ids["<start_of_image>"],
        eoi_token_id=ids["<end_of_image>"],
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
    )
    return Parts(config, processor)


@family
def llava_onevision() -> Parts:
    tokenizer, ids = tokens([*CHAT, "<image>", "<video>"])
    pinpoints = [[56, 56], [56, 112], [112, 56], [112, 112]]
    config = hf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": VOCABULARY, **ends(ids)},
        vision_config=SIGLIP,
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=pinpoints,
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessorPil(
            size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size={"height": 56, "width": 56}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat_markup("<image>"),
    )
    return Parts(config, processor)


@family
def mllama() -> Parts:
    tokenizer, ids = tokens([*CHAT, "<|image|>", "<|python_tag|>"], bos="<|im_start|>")
    config = hf.MllamaConfig(
        text_config={**TEXT, "vocab_size": VOCABULARY, "cross_attention_layers": [1], **ends(ids)},
        vision_config={
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_global_layers": 1},
            **{"attention_heads": 2, "image_size": 56, "patch_size": 14, "max_num_tiles": 4},
            **{"intermediate_layers_indices": [0], "vision_output_dim": 128},
        },
        image_token_index=ids["<|image|>"],
    )
    processor = hf.MllamaProcessor(
        image_processor=hf.MllamaImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        chat_template=chat_markup("<|image|>"),
    )
    return Parts(config, processor)
