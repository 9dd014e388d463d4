"""More tiny random checkpoints of families, for ``bench/families.py``: those that pass, and those that are refused."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.model_families import CHAT, SIGLIP, Parts, chat_markup, ends, family, tokens
from tests.tiny_models import TEXT, VOCABULARY

_LLAVA_TEXT = {"model_type": "llama", **TEXT, "vocab_size": VOCABULARY}
_MISTRAL_TEXT = {"model_type": "mistral", **TEXT, "head_dim": 32, "sliding_window": None}
_PIXTRAL = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]


@family
def llava_next() -> Parts:
    tokenizer, ids = tokens([*CHAT, "<image>"])
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    config = hf.LlavaNextConfig(
        text_config={**_LLAVA_TEXT, **ends(ids)},
        vision_config={
            **{"model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128},
            **{"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14},
        },
        image_token_index=ids["<image>"],
        image_grid_pinpoints=pinpoints,
        image_seq_length=16,
    )
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_markup("<image>"),
    )
    return Parts(config, processor)


def _pixtral_vision() -> dict[str, Any]:
    return {
        **{"model_type": "pixtral", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "image_size": 112, "patch_size": 14},
    }


@family
def pixtral() -> Parts:
    tokenizer, ids = tokens([*CHAT, *_PIXTRAL])
    config = hf.LlavaConfig(
        text_config={**_MISTRAL_TEXT, "vocab_size": VOCABULARY, **ends(ids)},
        vision_config=_pixtral_vision(),
        image_token_index=ids["[IMG]"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14),
        tokenizer=tokenizer,
        patch_size=14,
        chat_template=chat_markup("[IMG]"),
    )
    return Parts(config, processor)


@family
def mistral3() -> Parts:
    tokenizer, ids = tokens([*CHAT, *_PIXTRAL])
    config = hf.Mistral3Config(
        text_config={**_MISTRAL_TEXT, "vocab_size": VOCABULARY, **ends(ids)},
        vision_config=_pixtral_vision(),
        image_token_index=ids["[IMG]"],
    )
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=chat_markup("[IMG]"),
    )
    return Parts(config, processor)


@family
def internvl() -> Parts:
    special = [*CHAT, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer, ids = tokens(special, **marks, video_token="<video>")
    config = hf.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": VOCABULARY, **ends(ids)},
        vision_config={
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"image_size": [56, 56], "patch_size": [14, 14]},
        },
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
    )
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=True),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size={"height": 56, "width": 56}),
        image_seq_length=4,
        chat_template=chat_markup("<IMG_CONTEXT>"),
    )
    return Parts(config, processor)


@family
def aya_vision() -> Parts:
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
    tokenizer, ids = tokens([*CHAT, "<image>", *marks])
    config = hf.AyaVisionConfig(
        text_config={
            **{"model_type": "cohere2", **TEXT, "head_dim": 32, "vocab_size": VOCABULARY, **ends(ids)},
            **{"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "logit_scale": 0.0625},
        },
        vision_config=SIGLIP,
        image_token_index=ids["<|IMG_PATCH|>"],
    )
    processor = hf.AyaVisionProcessor(
        image_processor=hf.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        patch_size=28,
        img_size=56,
        chat_template=chat_markup("<image>"),
    )
    return Parts(config, processor)


@family
def llama4() -> Parts:
    marks = [
        *("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>"),
        "<|tile_y_separator|>",
    ]
    tokenizer, ids = tokens([*CHAT, *marks], bos="<|im_start|>")
    config = hf.Llama4Config(
        text_config={
            **{**TEXT, "head_dim": 32, "vocab_size": VOCABULARY, "intermediate_size_mlp": 256, **ends(ids)},
            **{"num_local_experts": 2, "attention_chunk_size": 32, "interleave_moe_layer_step": 2},
        },
        vision_config={
            **{"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"image_size": 56, "patch_size": 14, "vision_output_dim": 64, "projector_input_dim": 64},
            "projector_output_dim": 64,
        },
        boi_token_index=ids["<|image_start|>"],
        eoi_token_index=ids["<|image_end|>"],
        image_token_index=ids["<|patch|>"],
    )
    processor = hf.Llama4Processor(
        image_processor=hf.Llama4ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        chat_template=chat_markup("<|image|>"),
    )
    return Parts(config, processor)


@family
def lfm2_vl() -> Parts:
    tokenizer, ids = tokens([*CHAT, "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"])
    config = hf.Lfm2VlConfig(
        text_config={
            **{"model_type": "lfm2", **TEXT, "vocab_size": VOCABULARY, **ends(ids)},
            "layer_types": ["conv", "full_attention"],
        },
        vision_config={
            **{"model_type": "siglip2_vision_model", "hidden_size": 64, "intermediate_size": 128},
            **{"num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "num_patches": 16},
        },
        image_token_id=ids["<image>"],
        projector_hidden_size=64,
    )
    processor = hf.Lfm2VlProcessor(
        image_processor=hf.Lfm2VlImageProcessor(
            **{"tile_size": 64, "min_image_tokens": 1, "max_image_tokens": 4, "max_num_patches": 64},
            **{"min_tiles": 1, "max_tiles": 1, "do_image_splitting": False, "encoder_patch_size": 16},
        ),
        tokenizer=tokenizer,
        chat_template=chat_markup("<image>"),
    )
    return Parts(config, processor)


@family
def ovis2() -> Parts:
    tokenizer, ids = tokens([*CHAT, "<image>", "<IMG_ATOM>", *(f"<ind_{number}>" for number in range(5))])
    config = hf.Ovis2Config(
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": VOCABULARY, **ends(ids)},
        vision_config={
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"image_size": 56, "patch_size": 14, "vocab_size": 64, "num_visual_indicator_tokens": 5},
        },
        image_token_id=ids["<IMG_ATOM>"],
        visual_indicator_token_ids=[ids[f"<ind_{number}>"] for number in range(5)],
        vocab_size=VOCABULARY,
        hidden_size=128,
    )
    processor = hf.Ovis2Processor(
        image_processor=hf.Ovis2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=False),
        tokenizer=tokenizer,
        image_seq_length=16,
        chat_template=chat_markup("<image>"),
    )
    return Parts(config, processor)


@family
def deepseek_vl() -> Parts:
    tokenizer, ids = tokens([*CHAT, "<image_placeholder>"], image_token="<image_placeholder>")
    config = hf.DeepseekVLConfig(
        text_config={**_LLAVA_TEXT, **ends(ids)}, vision_config=SIGLIP, image_token_id=ids["<image_placeholder>"]
    )
    processor = hf.DeepseekVLProcessor(
        image_processor=hf.DeepseekVLImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        num_image_tokens=16,
        chat_template=chat_markup("<image_placeholder>"),
    )
    return Parts(config, processor)


@family
def blip2() -> Parts:
    tokenizer, ids = tokens([*CHAT, "<image>"])
    config = hf.Blip2Config(
        text_config={"model_type": "opt", "vocab_size": VOCABULARY, "hidden_size": 128, "ffn_dim": 256, **ends(ids)}
        | {"num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 128},
        vision_config={
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"image_size": 56, "patch_size": 14},
        },
        qformer_config={
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
            "encoder_hidden_size": 64,
        },
        num_query_tokens=4,
        image_token_index=ids["<image>"],
    )
    processor = hf.Blip2Processor(
        image_processor=hf.BlipImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        num_query_tokens=4,
    )
    return Parts(config, processor)


@family
def kimi_k25() -> Parts:
    tokenizer, ids = tokens(
        [*CHAT, "<|media_pad|>", "<|kimi_k25_video_placeholder|>", "<|media_begin|>", "<|media_end|>"]
    )
    config = hf.Kimi_K25Config(
        text_config={
            **{"model_type": "deepseek_v3", **TEXT, "vocab_size": VOCABULARY, "num_key_value_heads": 4, **ends(ids)},
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 1},
            **{"topk_group": 1, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 16},
            **{"qk_rope_head_dim": 16, "v_head_dim": 32, "first_k_dense_replace": 1},
        },
        vision_config={
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"pos_emb_height": 8, "pos_emb_width": 8},
        },
        projection_hidden_size=64,
        image_token_id=ids["<|media_pad|>"],
        video_token_id=ids["<|kimi_k25_video_placeholder|>"],
        vision_start_token_id=ids["<|media_begin|>"],
        vision_end_token_id=ids["<|media_end|>"],
    )
    processor = hf.Kimi_K25Processor(
        image_processor=hf.Kimi_K25ImageProcessor(),
        tokenizer=tokenizer,
        video_processor=hf.Kimi_K25VideoProcessor(),
        chat_template=chat_markup("<|media_begin|><|media_pad|><|media_end|>"),
    )
    return Parts(config, processor)
