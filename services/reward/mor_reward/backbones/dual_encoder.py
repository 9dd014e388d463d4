"""Dual encoder: frozen image and text encoders, joined by a small trained fusion head with a scalar output."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from mor_core.errors import MorError
from mor_core.wire import Message
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mor_reward.backbones.backbone import (
    Backbone,
    BackboneConfig,
    Example,
    Picture,
    Precision,
    resolve_precision,
    too_long_to_tokenize,
)
from mor_reward.backbones.encoders import PretrainedImageEncoder, PretrainedTextEncoder
from mor_reward.backbones.fusion_head import FusionHead

_CHUNK = 16
"""Pictures encoded at a time, and an eighth of the texts; larger chunks gain nothing on CPUs and take memory."""


class DualEncoderConfig(BackboneConfig):
    """Configuration of a dual encoder: an image encoder and a text encoder of any families."""

    kind: Literal["dual-encoder"] = "dual-encoder"
    vision: str
    """Image encoder: folder or hub name of a DINOv2, SigLIP, CLIP or TimmWrapper checkpoint."""
    text: str
    """Text encoder: folder or hub name of a MiniLM, BERT or similar checkpoint."""
    image_size: int = Field(224, ge=16, le=2048)
    """Width and height, in pixels, to which pictures are resized."""
    vision_layers: tuple[int, ...] = Field((-1,), min_length=1)
    """Hidden states of the image encoder that are concatenated; -1 is its output."""
    width: int = Field(128, ge=8)
    """Width of the fusion head; a multiple of ``heads``."""
    slots: int = Field(8, ge=1)
    """Number of query vectors by which the fusion head summarises the pictures for a question."""
    heads: int = Field(4, ge=1)
    """Attention heads of the fusion head."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Fraction of activations dropped in training."""
    max_length: int = Field(256, ge=8)
    """Maximum tokens of a prompt and of a response; a longer one is not scored."""
    max_images: int = Field(4, ge=1)
    """Maximum pictures of one prompt; a prompt with more is not scored."""
    precision: Precision = "auto"
    """Type in which the encoders compute; ``auto`` is bfloat16 if the hardware supports it."""
    freeze: bool = True
    """Freeze the encoders, so that each picture and text is encoded once; ``False`` trains them too."""


class DualEncoder(Backbone):
    """Reward model that joins text token features and picture patch features by a ``FusionHead``."""

    def __init__(self, config: DualEncoderConfig, root: Path, pretrained: bool) -> None:
        super().__init__()
        self.config = config
        self.vision = PretrainedImageEncoder(config.vision, root, pretrained, config.image_size, config.vision_layers)
        self.text = PretrainedTextEncoder(config.text, root, pretrained)
        self.fusion = FusionHead(
            self.text.dim,
            self.vision.dim,
            self.vision.patches,
            width=config.width,
            slots=config.slots,
            heads=config.heads,
            dropout=config.dropout,
        )
        if config.freeze:
            for encoder in (self.vision, self.text):
                encoder.requires_grad_(False).to(resolve_precision(config.precision))

    def train(self, mode: bool = True) -> DualEncoder:
        super().train(mode)
        if self.config.freeze:
            self.vision.eval()
            self.text.eval()
        return self

    def unscorable_reason(self, example: Example) -> str | None:
        if len(example.pictures) > self.config.max_images:
            return f"{len(example.pictures)} pictures; this model reads at most {self.config.max_images} in a prompt"
        for name, text in (("prompt", _prompt_text(example.messages)), ("response", example.response)):
            if (reason := too_long_to_tokenize(f"the {name} has", len(text), self.config.max_length)) is not None:
                return reason
            length = len(self.text.tokens(text))
            if length == 0:
                return f"the {name} has no token, by the tokenizer of this model"
            if length > self.config.max_length:
                return f"the {name} has {length} tokens; this model reads at most {self.config.max_length}"
        for picture in example.pictures:
            if picture.sha256 not in self.features:
                try:
                    picture.decode()
                except MorError as error:
                    return f"picture {picture.sha256[:12]}: {error}"
        return None

    def forward(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]:
        contexts = list({example.context: example for example in batch}.values())
        number = {example.context: index for index, example in enumerate(contexts)}
        pictures = {picture.sha256: picture for example in contexts for picture in example.pictures}
        prompts = {example.context: _prompt_text(example.messages) for example in contexts}
        texts = list(dict.fromkeys([*prompts.values(), *(example.response for example in batch)]))

        patches = self._features(list(pictures.items()), self._encode_pictures)
        words = self._features([(("text", text), text) for text in texts], self._encode_texts)

        device, empty = self.fusion.place.device, self.fusion.place.new_zeros(0, self.vision.dim)
        shown = [torch.cat([empty, *(patches[picture.sha256] for picture in example.pictures)]) for example in contexts]
        most = max(1, *(len(example.pictures) for example in contexts)) * self.vision.patches
        patch_mask = torch.tensor([len(features) for features in shown], device=device)[:, None] > torch.arange(
            most, device=device
        )
        memory = pad_sequence([*shown, empty.new_zeros(most, self.vision.dim)], batch_first=True)[:-1]
        question, question_mask = _padded([words["text", text] for text in prompts.values()], empty.dtype)
        response, response_mask = _padded([words["text", example.response] for example in batch], empty.dtype)
        context = torch.tensor([number[example.context] for example in batch], device=device)
        scores: Tensor = self.fusion(
            question=question,
            question_mask=question_mask,
            patches=memory,
            patch_mask=patch_mask,
            response=response,
            response_mask=response_mask,
            context=context,
        )
        return scores

    def linear_part(self) -> list[Tensor]:
        return [self.fusion.head.weight]

    def precompute_features(self, examples: Sequence[Example]) -> Iterator[int]:
        if not self.config.freeze:
            return
        pictures = {picture.sha256: picture for example in examples for picture in example.pictures}
        texts = {
            ("text", text): text for example in examples for text in (_prompt_text(example.messages), example.response)
        }
        # Texts of one length share a chunk, which avoids padding.
        by_length = sorted(texts.items(), key=lambda item: len(self.text.tokens(item[1])))
        for jobs, encode in ((list(pictures.items()), self._encode_pictures), (by_length, self._encode_texts)):
            size = _CHUNK if jobs and isinstance(jobs[0][1], Picture) else 8 * _CHUNK
            for start in range(0, len(jobs), size):
                before = self.features.bytes
                self._features(jobs[start : start + size], encode)
                yield self.features.bytes - before

    def export(self, folder: Path) -> DualEncoderConfig:
        self.vision.export(folder / "vision")
        self.text.export(folder / "text")
        dtype = "bfloat16" if next(self.vision.parameters()).dtype == torch.bfloat16 else "float32"
        return self.config.model_copy(update={"vision": "vision", "text": "text", "precision": dtype})

    def _features(
        self, jobs: Sequence[tuple[Hashable, object]], encode: Callable[[list[Any]], list[Tensor]]
    ) -> dict[Hashable, Tensor]:
        """Return features by key, from the cache or newly encoded and cached."""
        if not self.config.freeze:
            return dict(zip([key for key, _ in jobs], encode([job for _, job in jobs]), strict=True))
        known = {key: feature for key, _ in jobs if (feature := self.features.get(key)) is not None}
        missing = [(key, job) for key, job in jobs if key not in known]
        for start in range(0, len(missing), 8 * _CHUNK):
            chunk = missing[start : start + 8 * _CHUNK]
            with torch.no_grad():
                encoded = encode([job for _, job in chunk])
            for (key, _), feature in zip(chunk, encoded, strict=True):
                known[key] = feature.clone()
                self.features.put(key, known[key])
        return known

    def _encode_pictures(self, pictures: list[Picture]) -> list[Tensor]:
        if not pictures:
            return []
        pixels = torch.stack([self.vision.pixels(picture.decode()) for picture in pictures])
        return list(self.vision(pixels))

    def _encode_texts(self, texts: list[str]) -> list[Tensor]:
        hidden, mask = self.text([self.text.tokens(text) for text in texts])
        return [row[keep] for row, keep in zip(hidden, mask, strict=True)]


def _padded(
    features: Sequence[Float[Tensor, "_ dim"]], dtype: torch.dtype
) -> tuple[Float[Tensor, "rows tokens dim"], Bool[Tensor, "rows tokens"]]:
    lengths = torch.tensor([len(feature) for feature in features], device=features[0].device)
    padded = pad_sequence(list(features), batch_first=True).to(dtype)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


def _prompt_text(messages: Sequence[Message]) -> str:
    """Return the conversation as one text, with roles if it has more than one turn."""
    if len(messages) == 1:
        return messages[0].text
    return "\n".join(f"{message.role}: {message.text}" for message in messages)
