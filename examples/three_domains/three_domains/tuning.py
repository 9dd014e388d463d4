"""Supervised tuning of the assembled model with its image encoder frozen.

Patch features are computed once per picture. All questions about one picture are packed after its image tokens. A block
mask and restarted positions separate them, so the picture is processed once for all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from three_domains.assembly import AROUND, END, IMAGE
from three_domains.muon import Muon
from three_domains.stage_progress import StageProgress

IGNORED = -100
"""Label of tokens that carry no loss: PyTorch's default of ``ignore_index``."""
_ROUNDED = 16
"""Multiple to which lengths are padded, because kernels are prepared again for each shape."""
_SORTED = 16
"""Batches whose pictures are sorted by length together, to reduce padding."""


@dataclass(frozen=True)
class TuningConfig:
    """Hyper-parameters: ``epochs`` passes over the pictures, ``batch`` pictures per step, warm-up and cosine decay.

    ``rate`` is AdamW's for connector, embeddings and head; ``decoder_rate`` is that of the decoder's layers, by Muon or
    AdamW.
    """

    epochs: int = 3
    batch: int = 16
    rate: float = 2e-3
    decoder_rate: float = 2e-2
    muon: bool = True
    weight_decay: float = 0.01


@dataclass(frozen=True)
class PackedPicture:
    """Picture with its questions: ids, restarted positions, segment (0 is the shared prefix), labels, all (length,)."""

    picture: int
    ids: list[int]
    positions: list[int]
    segments: list[int]
    labels: list[int]


def pack(rows: list[dict[str, Any]], processor: Idefics3Processor) -> tuple[list[str], list[PackedPicture]]:
    """Group rows of ``sft.jsonl`` by picture; return the picture files in order and one packed sequence for each."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["images"][0], []).append(row)
    prefix = image_prefix(rows[0], processor)
    return list(grouped), [_pack_one(index, group, processor, prefix) for index, group in enumerate(grouped.values())]


def _pack_one(
    picture: int, rows: list[dict[str, Any]], processor: Idefics3Processor, prefix: list[int]
) -> PackedPicture:
    packed = PackedPicture(picture, [], [], [], [])
    _extend(packed, prefix, 0, 0, [IGNORED] * len(prefix))
    for segment, row in enumerate(rows, start=1):
        text = processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        question = processor.tokenizer.encode(text.split(IMAGE)[1])
        answer = processor.tokenizer.encode(row["completion"][0]["content"] + END)
        _extend(packed, [*question, *answer], len(prefix), segment, [IGNORED] * len(question) + answer)
    return packed


def image_prefix(row: dict[str, Any], processor: Idefics3Processor) -> list[int]:
    """Return the token ids of the prompt up to the end of the picture, which are equal for every square picture."""
    text = processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    whole: list[int] = processor(text=[text], images=[[Image.new("RGB", (28, 28), (128, 128, 128))]])["input_ids"][0]
    return whole[: len(whole) - whole[::-1].index(processor.tokenizer.convert_tokens_to_ids(AROUND))]


def _extend(packed: PackedPicture, ids: list[int], start: int, segment: int, labels: list[int]) -> None:
    packed.ids.extend(ids)
    packed.positions.extend(range(start, start + len(ids)))
    packed.segments.extend([segment] * len(ids))
    packed.labels.extend(labels)


def encoder_features(
    model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, files: list[Path], batch: int = 32
) -> Tensor:
    """Return the frozen encoder's output for each picture, (pictures, patches, width), float32."""
    encoder = model.model.vision_model.eval()
    features: list[Tensor] = []
    with torch.inference_mode(), Progress() as progress:
        shown = StageProgress(progress, "picture features", len(files))
        for start in range(0, len(files), batch):
            images = [[Image.open(file).convert("RGB")] for file in files[start : start + batch]]
            pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].flatten(0, 1)
            side = pixels.shape[-1] // encoder.patch_size
            mask = torch.ones(len(pixels), side, side, dtype=torch.bool)
            with torch.autocast("cpu", torch.bfloat16, enabled=faster_in_bfloat16()):
                features.append(encoder(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state.float())
            shown.advance(len(images))
    return torch.cat(features).clone()


def tune(
    model: Idefics3ForConditionalGeneration,
    packed: list[PackedPicture],
    features: Tensor,
    config: TuningConfig,
    seed: int,
) -> list[float]:
    """Tune connector and language model on packed sequences; return the loss of every step.

    ``features``: (pictures, patches, width), the encoder's output.
    """
    model.model.vision_model.requires_grad_(False)
    if faster_in_bfloat16():
        # The fused kernel's backward pass in bfloat16 takes longer than all of eager attention.
        model.model.text_model.set_attn_implementation("eager")
    optimisers = _optimisers(model, config)
    steps = config.epochs * math.ceil(len(packed) / config.batch)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: _rate_factor(step, steps)) for each in optimisers]
    losses: list[float] = []
    model.train()
    with Progress() as progress:
        shown = StageProgress(progress, "tuning", steps)
        for batch in _batches(packed, config, seed):
            with torch.autocast("cpu", torch.bfloat16, enabled=faster_in_bfloat16()):
                loss = packed_loss(model, batch, features)
            model.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser, schedule in zip(optimisers, schedules, strict=True):
                optimiser.step()
                schedule.step()
            losses.append(loss.item())
            recent = losses[-50:]
            shown.advance(note=f"loss {sum(recent) / len(recent):.3f}")
    model.eval()
    return losses


def _optimisers(model: Idefics3ForConditionalGeneration, config: TuningConfig) -> list[torch.optim.Optimizer]:
    """Make the optimisers. Muon (Jordan et al. 2024) trains a new decoder in about two thirds of AdamW's steps."""
    decoder: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decoder if parameter.ndim == 2 and ".layers." in name else others).append(parameter)
    decay = config.weight_decay
    adam = torch.optim.AdamW(others, lr=config.rate, betas=(0.9, 0.98), weight_decay=decay, fused=True)
    if config.muon:
        rate = config.decoder_rate
        return [adam, Muon(decoder, lr=rate, momentum=0.95, weight_decay=decay, dtype=product_type())]
    return [adam, torch.optim.AdamW(decoder, lr=config.decoder_rate, betas=(0.9, 0.98), weight_decay=decay, fused=True)]


def packed_loss(model: Idefics3ForConditionalGeneration, batch: list[PackedPicture], features: Tensor) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens in ``batch`` (scalar)."""
    longest = max(len(item.ids) for item in batch)
    length = math.ceil(longest / _ROUNDED) * _ROUNDED
    ids, positions, segments, labels = (
        torch.tensor([[*values, *[filler] * (length - len(values))] for values in columns])
        for columns, filler in (
            ([item.ids for item in batch], model.config.pad_token_id or 0),
            ([item.positions for item in batch], 0),
            ([item.segments for item in batch], -1),
            ([item.labels for item in batch], IGNORED),
        )
    )
    image_tokens = model.model.connector(features[[item.picture for item in batch]])
    embeddings = model.model.text_model.embed_tokens(ids)
    is_image = (ids == model.config.image_token_id).unsqueeze(-1)
    embeddings = embeddings.masked_scatter(is_image, image_tokens.to(embeddings.dtype))
    hidden = model.model.text_model(
        inputs_embeds=embeddings,
        attention_mask=_block_mask(segments),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    # Only answer tokens are predicted, so only they go through the head.
    targets = labels[:, 1:]
    rows = targets != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[:, :-1][rows]).float(), targets[rows])


def _block_mask(segments: Tensor) -> Tensor:
    """Convert (batch, length) segments to a (batch, 1, length, length) mask: causal, own segment or prefix.

    It is added to the attention's scores: 0 where a token attends, else the type's lowest value.
    """
    dtype = product_type()
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    # Padding attends to itself alone: a row without any allowed key would be NaN.
    itself = torch.eye(segments.shape[1], dtype=torch.bool)
    hidden = ~((((query == key) | (key == 0)) & (key >= 0) & causal) | itself)[:, None]
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)


def _batches(packed: list[PackedPicture], config: TuningConfig, seed: int) -> Iterator[list[PackedPicture]]:
    rng = Random(seed)
    for _ in range(config.epochs):
        order = rng.sample(packed, len(packed))
        batches: list[list[PackedPicture]] = []
        for first in range(0, len(order), _SORTED * config.batch):
            sorted_by_length = sorted(order[first : first + _SORTED * config.batch], key=lambda item: len(item.ids))
            batches += (
                sorted_by_length[start : start + config.batch]
                for start in range(0, len(sorted_by_length), config.batch)
            )
        yield from rng.sample(batches, len(batches))


def _rate_factor(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


_BFLOAT16: list[bool] = []


def faster_in_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices clearly faster than float32 ones (measured once)."""
    if not _BFLOAT16:
        seconds = []
        for dtype in (torch.float32, torch.bfloat16):
            left, right = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
            left @ right
            start = time.perf_counter()
            for _ in range(10):
                left @ right
            seconds.append(time.perf_counter() - start)
        _BFLOAT16.append(seconds[1] < 0.7 * seconds[0])
    return _BFLOAT16[0]


def product_type() -> torch.dtype:
    """Return the type in which this CPU multiplies matrices fastest."""
    return torch.bfloat16 if faster_in_bfloat16() else torch.float32
