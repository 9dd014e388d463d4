"""Vision-language models of known shapes with random weights, and steps of groups to train on."""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mor_core.runs import RunSpec
from mor_core.wire import ImagePart, Message, TextPart, image_hashes
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.model.policy import Policy
from PIL import Image

_EDGE = 96
"""Side of every picture in pixels: 36 tokens of the Idefics3 and the Gemma 3, 9 of the Qwens."""
_QWEN = ["<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_SPECIAL = {
    "idefics3": ["<unk>", "<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<global-img>",
        "<end_of_utterance>"],
    "qwen2.5-vl": _QWEN,
    "qwen3.5": _QWEN,
    "gemma3": ["<unk>", "<|im_start|>", "<|im_end|>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"],
}  # fmt: skip
_MARK = {
    "idefics3": "<image>",
    "gemma3": "<start_of_image>",
    **dict.fromkeys(("qwen2.5-vl", "qwen3.5"), "<|vision_start|><|image_pad|><|vision_end|>"),
}
_NOT_WORDS = {"idefics3": 44, "gemma3": 43, "qwen2.5-vl": 16, "qwen3.5": 16}
"""Tokens of a prompt that are no words of the question."""
_NAMES = {"<start_of_image>": "boi_token", "<end_of_image>": "eoi_token", "<image_soft_token>": "image_token"}
"""Names by which a processor asks its tokenizer for tokens."""
_PATCHES: dict[str, Any] = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
_PIXELS = {"shortest_edge": 32 * 32, "longest_edge": 512 * 512}
_CHUNK = 64
"""Tokens that a gated delta net multiplies with each other at once."""
_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] in ('image', 'image_url') %}MARK {% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model; image encoders are small, because they compute features once per image."""

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool = True
    full_every: int = 1
    """One layer of so many attends to all; the others have a window, or carry a state."""
    window: int = 0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def matrices(self) -> int:
        """Number of parameters of the layers' linear maps."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.key_heads * self.head_dim
        mixers = attention * self.layers
        if self.family == "qwen3.5":  # attention has a gate; a state has queries, keys, values, gates and results
            full = self.layers // self.full_every
            mixers = full * (attention + self.hidden**2) + (self.layers - full) * 5 * self.hidden**2
        return mixers + self.layers * 3 * self.hidden * self.intermediate

    def pairs(self, first: int, end: int) -> float:
        """Count the query-key pairs of the tokens at places ``first`` to ``end``, on average over the layers.

        For a token of a recurrent layer, those of the same FLOPs: products within its chunk, and with the state.
        """
        pairs = (end * (end + 1) - first * (first + 1)) / 2
        if self.full_every == 1:
            return pairs
        if self.window:
            other = float(sum(min(place + 1, self.window) for place in range(first, end)))
        else:
            other = (end - first) * 1.5 * (_CHUNK + self.head_dim)
        return (pairs + (self.full_every - 1) * other) / self.full_every

    def flops(self, tokens: float, pairs: float, scored: int) -> float:
        """Count the FLOPs of a forward pass: two per weight and token, four per query-key pair and width, and the head
        at ``scored`` positions. A backward pass takes twice as many."""
        attention = 4 * self.hidden * self.layers * pairs
        return 2 * self.matrices * tokens + attention + 2 * self.hidden * self.vocabulary * scored


SHAPES = {
    "tiny": Shape("idefics3", 128, 256, 2, 4, 2, 1024),
    "tiny-qwen": Shape("qwen2.5-vl", 128, 256, 2, 4, 2, 1024),
    "smollm2-135m": Shape("idefics3", 576, 1536, 30, 9, 3, 49152),
    "smollm2-10-layers": Shape("idefics3", 576, 1536, 10, 9, 3, 49152),
    "1b": Shape("idefics3", 2048, 8192, 16, 32, 8, 32768),
    "gemma3-small": Shape("gemma3", 576, 1536, 12, 9, 3, 49152, full_every=6, window=256),
    "qwen3.5-small": Shape("qwen3.5", 576, 1536, 12, 9, 3, 49152, full_every=4),
    "qwen2.5-vl-3b": Shape("qwen2.5-vl", 2048, 11008, 36, 16, 2, 151936),
}


def build(shape: Shape) -> tuple[Any, Any]:
    """Build a model, float32 on the default device, and its processor; with equal weights each time."""
    torch.manual_seed(0)
    special = _SPECIAL[shape.family]
    tokenizer = _tokenizer(special, shape.vocabulary)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    text = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|im_end|>"],
    }
    template = _TEMPLATE.replace("MARK", _MARK[shape.family])
    if shape.family == "gemma3":
        text |= {"sliding_window": shape.window, "layer_types": _kinds(shape, "sliding_attention")}
    if shape.family == "qwen3.5":
        heads = {"linear_num_key_heads": shape.heads, "linear_num_value_heads": shape.heads}
        widths = {"linear_key_head_dim": shape.head_dim, "linear_value_head_dim": shape.head_dim}
        text |= {**heads, **widths, "layer_types": _kinds(shape, "linear_attention")}
    families = {"idefics3": _idefics3, "gemma3": _gemma3, "qwen2.5-vl": _qwen, "qwen3.5": _qwen3_5}
    model, processor = families[shape.family](text, ids, tokenizer, template)
    return model.eval(), processor


def _kinds(shape: Shape, other: str) -> list[str]:
    return ["full_attention" if (layer + 1) % shape.full_every == 0 else other for layer in range(shape.layers)]


def save(shape: Shape, folder: Path | str, device: str = "cpu") -> None:
    """Write model and processor to ``folder``; ``device`` creates the weights, faster on a GPU for large models."""
    with torch.device(device):
        parts = build(shape)
    for part in parts:
        part.save_pretrained(folder)
    del parts, part
    torch.cuda.empty_cache()  # leaves memory for the processes that load it


def spec_of(**changes: Any) -> RunSpec:
    """Make a specification: GRPO with a KL penalty, the image encoder frozen, and the given changes."""
    return RunSpec.model_validate(
        {"name": "bench", "model": "-", "prompts": "-", "optimiser": {"lr": 1e-6, "warmup_steps": 0}, **changes}
    )


def question(shape: Shape, tokens: int, seed: int) -> tuple[tuple[Message, ...], dict[str, bytes]]:
    """Make a prompt with a picture of exactly ``tokens`` tokens; each seed has its own picture.

    Raises:
        ValueError: the picture alone has more tokens.
    """
    words = tokens - _NOT_WORDS[shape.family]
    if words < 1:
        raise ValueError(f"a prompt of {tokens} tokens has no room for the picture; give at least 64")
    dice = random.Random(seed)
    pixels = np.random.default_rng(seed).integers(0, 256, (_EDGE, _EDGE, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    part = ImagePart.of(_sha256(content.getvalue()))
    text = TextPart(text=" ".join(f"w{dice.randrange(500)}" for _ in range(words)))
    return (Message(role="user", content=(part, text)),), {part.sha256: content.getvalue()}


def write_prompts(folder: Path, shape: Shape, tokens: int, count: int) -> Path:
    """Write a ``mor.prompts/1`` file of ``count`` such questions, with its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(count):
        messages, images = question(shape, tokens, seed)
        (content,) = images.values()
        (folder / f"{seed}.png").write_bytes(content)
        rows.append({"id": f"q{seed}", "prompt": messages[0].text, "images": [f"{seed}.png"]})
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def completions(count: int, tokens: int, seed: int) -> list[tuple[int, ...]]:
    """Make responses of ``tokens`` random words."""
    dice = random.Random(-1 - seed)
    return [tuple(dice.randrange(20, 500) for _ in range(tokens)) for _ in range(count)]


def groups(
    policy: Policy, shape: Shape, *, prompt: int, size: int, response: int, count: int, first: int = 0
) -> list[TrainingGroup]:
    """Make a step: ``count`` groups of ``size`` responses of ``response`` tokens to prompts of ``prompt`` tokens."""
    made = []
    for seed in range(first, first + count):
        messages, images = question(shape, prompt, seed)
        assert image_hashes(messages)
        prepared = policy.prepare(messages, images)
        assert len(prepared.processed.token_ids) == prompt, len(prepared.processed.token_ids)
        responses = tuple(completions(size, response, seed))
        dice = random.Random(seed)
        engine = tuple(tuple(-10.0 for _ in one) for one in responses)
        rewards = tuple(dice.gauss(0, 1) for _ in responses)
        made.append(TrainingGroup(0, prompt, responses, engine, rewards, prepared))
    return made


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _tokenizer(special: list[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*special, "user", "assistant", "system"]
    words += [f"w{index}" for index in range(vocabulary - len(words))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={_NAMES[token]: token for token in special if token in _NAMES},
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [t for t in special[3:] if t not in _NAMES]})
    tokenizer.model_max_length = 8192
    return tokenizer


def _idefics3(text: dict[str, Any], ids: dict[str, int], tokenizer: Any, template: str) -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
        LlamaConfig,
    )
    from transformers.models.idefics3 import Idefics3VisionConfig

    vision = Idefics3VisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=_EDGE,
        patch_size=8,
    )
    config = Idefics3Config(
        vision_config=vision,
        text_config=LlamaConfig(**text),
        image_token_id=ids["<image>"],
        scale_factor=2,
        pad_token_id=text["pad_token_id"],
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    edge = {"longest_edge": _EDGE}
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False),
        tokenizer=tokenizer,
        image_seq_len=(_EDGE // 8 // 2) ** 2,
        chat_template=template,
    )
    return Idefics3ForConditionalGeneration(config), processor


def _gemma3(text: dict[str, Any], ids: dict[str, int], tokenizer: Any, template: str) -> tuple[Any, Any]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessorPil, Gemma3Processor

    head_dim = text["hidden_size"] // text["num_attention_heads"]
    tokens = (_EDGE // 8 // 2) ** 2
    config = Gemma3Config(
        text_config={**text, "head_dim": head_dim, "query_pre_attn_scalar": head_dim},
        vision_config={
            **{"model_type": "siglip_vision_model", "hidden_size": 192, "intermediate_size": 768},
            **{"num_hidden_layers": 4, "num_attention_heads": 3, "image_size": _EDGE, "patch_size": 8},
            "vision_use_head": False,
        },
        mm_tokens_per_image=tokens,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": _EDGE, "width": _EDGE}),
        tokenizer=tokenizer,
        image_seq_length=tokens,
        chat_template=template,
    )
    return Gemma3ForConditionalGeneration(config), processor


def _qwen3_5(text: dict[str, Any], ids: dict[str, int], tokenizer: Any, template: str) -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLImageProcessorPil,
        Qwen3_5Config,
        Qwen3_5ForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    head_dim = text["hidden_size"] // text["num_attention_heads"]
    eighth = head_dim // 8  # half of the head is rotated, its angles in three sections
    rope = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5, "mrope_interleaved": True}
    config = Qwen3_5Config(
        text_config={
            **{**text, "head_dim": head_dim},
            "rope_parameters": {**rope, "mrope_section": [2 * eighth - 2 * (eighth // 2), eighth // 2, eighth // 2]},
        },
        vision_config={
            **{"depth": 4, "hidden_size": 192, "num_heads": 3, "intermediate_size": 768, "patch_size": 16},
            **{"out_hidden_size": text["hidden_size"], "spatial_merge_size": 2, "temporal_patch_size": 2},
            "num_position_embeddings": 64,
        },
        tie_word_embeddings=text["tie_word_embeddings"],
        **_qwen_marks(ids),
    )
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**_PATCHES, size=_PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**_PATCHES),
        chat_template=template,
    )
    return Qwen3_5ForConditionalGeneration(config), processor


def _qwen_marks(ids: dict[str, int]) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _qwen(text: dict[str, Any], ids: dict[str, int], tokenizer: Any, template: str) -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
    )

    half = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half // 4, half * 3 // 8, half * 3 // 8]
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        },
        vision_config={
            **{"depth": 8, "hidden_size": 640, "num_heads": 8, "intermediate_size": 1712, "patch_size": 16},
            **{"out_hidden_size": text["hidden_size"], "spatial_merge_size": 2, "temporal_patch_size": 2},
            **{"in_channels": 3, "window_size": 64, "fullatt_block_indexes": [3, 7]},
        },
        tie_word_embeddings=text["tie_word_embeddings"],
        **_qwen_marks(ids),
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**_PATCHES, size=_PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**_PATCHES),
        chat_template=template,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor
