"""Tiny real encoders, drawn pictures and preference files for the reward tests."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from random import Random
from typing import Any

from mor_core.datafiles import read_preferences
from mor_core.images import sha256
from mor_reward.preference_trainer import PreferencePair
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
QUESTION = "Which colour is the shape?"


def draw(colour: str, seed: int = 0) -> bytes:
    """Draw a PNG of one shape of ``colour`` on grey; each seed gives different bytes."""
    rng = Random(seed)
    image = Image.new("RGB", (64, 64), (200, 200, 200))
    left, top = rng.randrange(4, 20), rng.randrange(4, 20)
    shape = ImageDraw.Draw(image)
    (shape.ellipse if seed % 2 else shape.rectangle)((left, top, left + 40, top + 40), fill=COLOURS[colour])
    image.putpixel((0, 0), (seed % 256, seed // 256 % 256, 7))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_colour_preferences(folder: Path, pictures: int, seed: int = 0) -> Path:
    """Write preferences that depend on the picture: the right colour over a wrong one, two rows per picture."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(seed)
    lines = []
    for number in range(pictures):
        colour = rng.choice(sorted(COLOURS))
        content = draw(colour, 1000 * seed + number)
        (folder / f"{number}.png").write_bytes(content)
        for wrong in rng.sample([other for other in sorted(COLOURS) if other != colour], 2):
            lines.append(
                {
                    "prompt": QUESTION,
                    "images": [f"{number}.png"],
                    "chosen": f"It is {colour}",
                    "rejected": f"It is {wrong}",
                }
            )
    return write_lines(folder / "prefs.jsonl", lines)


def write_style_preferences(folder: Path, rows: int, first: int = 0) -> Path:
    """Write preferences of style, without pictures: the response with a place is preferred. ``first``: number of the
    first question."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(0)
    lines = []
    for number in range(first, first + rows):
        colour = rng.choice(sorted(COLOURS))
        side = rng.choice(["left", "right"])
        lines.append(
            {
                "prompt": f"What is in picture {number}?",
                "chosen": f"a {colour} circle on the {side}",
                "rejected": f"a {colour} circle",
            }
        )
    return write_lines(folder / "prefs.jsonl", lines)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def build_text_encoder(folder: Path) -> Path:
    """Build a BERT of two layers with random weights and a word-piece tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    text = "which colour is the shape it a circle on left right what in picture ? . ##s"
    words = sorted({*text.split(), *COLOURS})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *map(str, range(100))]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def pairs_of(data: Path) -> list[PreferencePair]:
    """Read the pairs of a preference file."""
    return [PreferencePair.of(row) for row in read_preferences(data)]


def build_vision_encoder(folder: Path, kind: str = "dinov2", layers: int = 2) -> Path:
    """Build an image encoder with random weights: ``dinov2``, ``siglip`` or ``timm`` (with its own layers)."""
    import torch
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        SiglipVisionConfig,
        SiglipVisionModel,
        TimmWrapperConfig,
        TimmWrapperModel,
    )

    torch.manual_seed(2)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    }
    if kind == "dinov2":
        Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).save_pretrained(folder)
    elif kind == "siglip":
        SiglipVisionModel(SiglipVisionConfig(**sizes, intermediate_size=64)).save_pretrained(folder)
    else:
        model = TimmWrapperModel(TimmWrapperConfig(architecture="test_efficientnet", do_pooling=False)).train()
        with torch.no_grad():
            for _ in range(50):  # the running statistics of batch normalisation keep the signal from fading
                model(torch.randn(4, 3, 64, 64))
        model.save_pretrained(folder)
    return folder


def score_body(responses: list[str], *images: bytes, item_id: str = "one", send: bool = True) -> dict[str, Any]:
    """Make a score request of one item with ``images``; ``send`` includes their bytes."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"sha256:{sha256(image)}"}} for image in images
    ]
    item = {
        "item_id": item_id,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}],
        "responses": responses,
    }
    bodies = {sha256(image): base64.b64encode(image).decode() for image in images} if send else {}
    return {"contract": "mor.reward/1", "items": [item], "images": bodies}
