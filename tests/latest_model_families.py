"""Tiny random checkpoints of more recent families, and of mixtures of experts, for ``bench/families.py``."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.model_families import CHAT, SIGLIP, Parts, chat_markup, ends, family, tokens
from tests.tiny_models import TEXT, VOCABULARY, build_tokenizer

_QWEN = [*CHAT, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_pad|>"]
_GLM = [
    *(*CHAT, "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>"),
]
_PATCHES: dict[str, Any] = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
_SIZE = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
_TOWER = {
    **{"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 128},
    **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
}
_GLM_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}


@family
def qwen3_5_moe() -> Parts:
    tokenizer, ids = tokens(_QWEN)
    rope = {
        **{"rope_type": "default", "rope_theta": 10000.0, "mrope_interleaved": True},
        **{"partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]},
    }
    config = hf.Qwen3_5MoeConfig(
        text_config={
            **{**TEXT, "head_dim": 32, "vocab_size": VOCABULARY, "rope_parameters": rope},
            **{"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2},
            **{"linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32},
            **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
            **{"shared_expert_intermediate_size": 64, **ends(ids)},
        },
        vision_config={**_TOWER, "num_position_embeddings": 64},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessorPil(**_PATCHES, size=_SIZE),
        tokenizer=tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(**_PATCHES),
        chat_template=chat_markup("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return Parts(config, processor)


@family
def exaone4_5() -> Parts:
    tokenizer, ids = tokens(_QWEN)
    config = hf.Exaone4_5_Config(
        text_config={
            **{"model_type": "exaone4", **TEXT, "vocab_size": VOCABULARY, **ends(ids)},
            **{"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        },
        vision_config={**_TOWER, "window_size": 56, "fullatt_block_indexes": [1], "num_key_value_heads": 1},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )
    processor = hf.Exaone4_5_Processor(
        image_processor=hf.Qwen2VLImageProcessorPil(**_PATCHES, size=_SIZE),
        tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(**_PATCHES),
        chat_template=chat_markup("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return Parts(config, processor)


def _glm(config: Any, processor: Any, images: Any, videos: Any, text: dict[str, Any]) -> Parts:
    tokenizer, ids = tokens(_GLM)
    made = config(
        text_config={**TEXT, "vocab_size": VOCABULARY, "rope_parameters": _GLM_ROPE, **text, **ends(ids)},
        vision_config={**_TOWER, "image_size": 112},
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )
    return Parts(
        made,
        processor(
            image_processor=images(**_PATCHES, size=_SIZE),
            tokenizer=tokenizer,
            video_processor=videos(**_PATCHES),
            chat_template=chat_markup("<|begin_of_image|><|image|><|end_of_image|>"),
        ),
    )


@family
def glm46v() -> Parts:
    text = {"model_type": "glm4v_text", "attention_bias": True}
    return _glm(hf.Glm46VConfig, hf.Glm46VProcessor, hf.Glm46VImageProcessorPil, hf.Glm46VVideoProcessor, text)


@family
def glm4v_moe() -> Parts:
    experts = {
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 1},
        **{"topk_group": 1, "attention_bias": True, "head_dim": 32, "use_qk_norm": False},
    }
    return _glm(hf.Glm4vMoeConfig, hf.Glm4vProcessor, hf.Glm4vImageProcessorPil, hf.Glm4vVideoProcessor, experts)


@family
def janus() -> Parts:
    tokenizer, ids = tokens(
        [*CHAT, "<image_placeholder>", "<begin_of_image>", "<end_of_image>"],
        **{"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
    )
    config = hf.JanusConfig(
        text_config={"model_type": "llama", **TEXT, "vocab_size": VOCABULARY, **ends(ids)},
        vision_config={
            **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2.0},
            **{"image_size": 56, "patch_size": 14, "projection_dim": 128, "num_image_tokens": 16},
        },
        vq_config={
            **{"embed_dim": 8, "num_embeddings": 32, "base_channels": 32, "channel_multiplier": [1, 1]},
            **{"num_patches": 4, "projection_dim": 64, "image_token_embed_dim": 128},
        },
        image_token_id=ids["<image_placeholder>"],
    )
    processor = hf.JanusProcessor(
        image_processor=hf.JanusImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        num_image_tokens=16,
        chat_template=chat_markup("<image_placeholder>"),
    )
    return Parts(config, processor)


@family
def ernie4_5_vl_moe() -> Parts:
    marks = {
        **{"image_token": "<|IMAGE_PLACEHOLDER|>", "image_start_token": "<|IMAGE_START|>"},
        **{"image_end_token": "<|IMAGE_END|>", "video_token": "<|VIDEO_PLACEHOLDER|>"},
        **{"video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>"},
    }
    tokenizer, ids = tokens([*CHAT, *marks.values()], **marks)
    config = hf.Ernie4_5_VLMoeConfig(
        text_config={
            **{**TEXT, "vocab_size": VOCABULARY, "moe_intermediate_size": [64, 64], "moe_k": 2},
            **{"moe_num_experts": 4, "moe_num_shared_experts": 1, "mlp_layer_types": ["dense", "sparse"]},
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [5, 5, 6]},
            **ends(ids),
        },
        vision_config={
            **{"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "patch_size": 14},
            **{"spatial_merge_size": 2, "temporal_merge_size": 2},
        },
        **{f"{name}_id": ids[mark] for name, mark in marks.items()},
    )
    processor = hf.Ernie4_5_VLMoeProcessor(
        image_processor=hf.Ernie4_5_VLMoeImageProcessorPil(patch_size=14, merge_size=2, size=_SIZE),
        tokenizer=tokenizer,
        video_processor=hf.Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False),
        chat_template=chat_markup("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    return Parts(config, processor)


@family
def granite4_vision() -> Parts:
    tokenizer, ids = tokens([*CHAT, "<image>"])
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    config = hf.Granite4VisionConfig(
        text_config={
            **{**TEXT, "vocab_size": VOCABULARY, "embedding_multiplier": 2.0, "attention_multiplier": 0.2},
            **{"logits_scaling": 2.0, "residual_multiplier": 0.5, **ends(ids)},
        },
        vision_config=SIGLIP,
        image_token_index=ids["<image>"],
        image_grid_pinpoints=pinpoints,
        image_seq_length=4,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0]],
        spatial_target_layers=[0, 0, 1, 1],
    )
    processor = hf.Granite4VisionProcessor(
        image_processor=hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        chat_template=chat_markup("<image>"),
    )
    return Parts(config, processor)


@family
def gemma3n() -> Parts:
    tokenizer = build_tokenizer(CHAT, "<|im_end|>", "<|endoftext|>", None)
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])  # vLLM counts on them
    marks = {  # in this order: the embeddings of pictures, and then of sounds, have the last ids
        **{"boi_token": "<start_of_image>", "boa_token": "<start_of_audio>", "eoi_token": "<end_of_image>"},
        **{"image_token": "<image_soft_token>", "eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>"},
    }
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        **{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        extra_special_tokens=marks,
        model_max_length=4096,
    )
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in (*CHAT, *marks.values())}
    config = hf.Gemma3nConfig(
        text_config={
            **{**TEXT, "num_hidden_layers": 4, "head_dim": 32, "vocab_size": VOCABULARY, "laurel_rank": 16},
            **{"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2},
            **{"sliding_window": 16, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0]},
            **{"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": ids["<end_of_image>"], **ends(ids)},
        },
        vision_config={
            **{"architecture": "test_efficientnet_ln", "hidden_size": 256, "vocab_size": 2},
            "vocab_offset": ids["<end_of_image>"],
        },
        audio_config={
            **{"hidden_size": 64, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "vocab_size": 2},
            **{"sscp_conv_channel_size": [8, 4], "vocab_offset": ids["<end_of_audio>"]},
        },
        vision_soft_tokens_per_image=4,
        **{f"{name}_id": ids[mark] for name, mark in marks.items()},
    )
    processor = hf.Gemma3nProcessor(
        feature_extractor=hf.Gemma3nAudioFeatureExtractor(),
        image_processor=hf.SiglipImageProcessorPil(size={"height": 64, "width": 64}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chat_markup("<image_soft_token>"),
    )
    return Parts(config, processor)
