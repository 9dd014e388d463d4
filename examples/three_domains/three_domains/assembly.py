"""Assembly of image encoder, language model, tokenizer and processor as one Idefics3 checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from mor_core import atomic
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from three_domains.export_encoders import dinov2_small
from three_domains.image_encoder import PATCH, WIDTH, siglip_state
from three_domains.questions import PICTURE_SIZE

START, END, IMAGE, AROUND, WHOLE = "<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>"
SPECIALS = [START, END, AROUND, IMAGE, "<end_of_utterance>", WHOLE]
"""Special tokens; Idefics3's processor needs all of them even if it never splits a picture."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the assembled model. ``encoder_layers`` DINOv2 layers are kept; ``scale``² patches become one
    image token.
    """

    encoder_layers: int = 9
    scale: int = 2
    hidden: int = 256
    layers: int = 4
    vocabulary: int = 1024

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture in the prompt."""
        return (PICTURE_SIZE // PATCH // self.scale) ** 2


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most ``vocabulary`` entries on ``texts``; any string can be encoded."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=START, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [token for token in SPECIALS if token not in (START, END)]}
    )
    tokenizer.model_max_length = 2048
    return tokenizer


def build_processor(tokenizer: PreTrainedTokenizerFast, shape: ModelShape) -> Idefics3Processor:
    """Return the processor: one square picture, never split, in DINOv2's (ImageNet) normalisation."""
    edge = {"longest_edge": PICTURE_SIZE}
    images = Idefics3ImageProcessor(
        size=edge,
        max_image_size=edge,
        do_image_splitting=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return Idefics3Processor(
        image_processor=images, tokenizer=tokenizer, image_seq_len=shape.image_tokens, chat_template=CHAT_TEMPLATE
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, shape: ModelShape, language: LlamaForCausalLM | None = None
) -> Idefics3ForConditionalGeneration:
    """Return the model with the pretrained encoder, a fresh connector, and a new small Llama or ``language``."""
    model = untrained_model(tokenizer, shape, language)
    model.model.vision_model.load_state_dict(siglip_state(dinov2_small(), shape.encoder_layers, PICTURE_SIZE))
    return model


def untrained_model(
    tokenizer: PreTrainedTokenizerFast, shape: ModelShape, language: LlamaForCausalLM | None = None
) -> Idefics3ForConditionalGeneration:
    """Return the model with a fresh encoder.

    The vocabulary is padded to a multiple of 64. Head and embedding are not tied: vLLM's CPU build keeps a stale copy
    of a tied head when weights are swapped.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (START, END, IMAGE)}
    text = language.config if language else _small_llama(shape)
    text.vocab_size = -(-len(tokenizer) // 64) * 64
    text.bos_token_id, text.eos_token_id, text.pad_token_id = ids[START], ids[END], ids[END]
    vision = Idefics3VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=shape.encoder_layers,
        num_attention_heads=6,
        image_size=PICTURE_SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    config = Idefics3Config(
        vision_config=vision,
        text_config=text,
        image_token_id=ids[IMAGE],
        scale_factor=shape.scale,
        pad_token_id=ids[END],
        tie_word_embeddings=False,
    )
    model = Idefics3ForConditionalGeneration(config).to(torch.float32)
    if language:
        model.model.text_model.load_state_dict(language.model.state_dict())
        model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config.eos_token_id = ids[END]
    model.generation_config.pad_token_id = ids[END]
    model.generation_config.bos_token_id = ids[START]
    return model


def save(model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, out: Path) -> None:
    """Write a checkpoint folder atomically."""
    with atomic.folder(out, replace=False, durable=False) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def _small_llama(shape: ModelShape) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 11 // 4,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=shape.hidden // 64,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
