"""Frozen encoders by folder or Hugging Face hub name: a sentence encoder for text, a vision encoder for images."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from mor_core import images
from mor_core.errors import Invalid
from mor_core.failures import quote_failure
from mor_core.folder_links import check_model_folder
from mor_core.special_tokens import escape_control
from numpy import ndarray

from mor_router.embedding.hashed_features import unit

_MAX_TOKENS = 512
"""Longest text in tokens: the context of common sentence encoders."""
_CHARACTERS_A_TOKEN = 32
"""Characters for each token that a text may have before it is cut; words of most languages have a tenth to a half."""


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise Invalid(
            "an embedding model is set but transformers is not installed; install mor-router[transformers] "
            "or unset MOR_EMBED_TEXT_MODEL and MOR_EMBED_IMAGE_MODEL"
        ) from error
    return transformers


def _load(loader: Any, path: str, setting: str) -> Any:
    check_model_folder(path)
    try:
        return loader.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise Invalid(
            f"{setting}: {path!r} cannot be loaded ({quote_failure(error)}); give a model folder or hub name"
        ) from error


class TextModel:
    """Mean of the last hidden states over the text's tokens, length 1 (Reimers & Gurevych 2019, as MiniLM is used)."""

    def __init__(self, path: str) -> None:
        transformers = _transformers()
        self.name = f"text-model-{path}"
        self._tokenizer = _load(transformers.AutoTokenizer, path, "MOR_EMBED_TEXT_MODEL")
        self._model = _load(transformers.AutoModel, path, "MOR_EMBED_TEXT_MODEL").eval()
        self._max_tokens = min(_MAX_TOKENS, getattr(self._model.config, "max_position_embeddings", _MAX_TOKENS))
        self.most_characters = _CHARACTERS_A_TOKEN * self._max_tokens
        self.size: int = self._model.config.hidden_size
        self._one_thread = threading.Lock()

    def __call__(self, text: str) -> Float[ndarray, " features"]:
        with self._one_thread:  # a tokenizer fails where two threads use it together
            plain = escape_control(self._tokenizer, text)
            tokens = self._tokenizer(plain, return_tensors="pt", truncation=True, max_length=self._max_tokens)
        with torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return unit(np.asarray(mean[0].double().numpy()))


class ImageModel:
    """Mean of the last hidden states of a vision encoder (DINOv2, SigLIP, ViT ...), length 1."""

    def __init__(self, path: str) -> None:
        transformers = _transformers()
        self.name = f"image-model-{path}"
        self._processor = _load(transformers.AutoImageProcessor, path, "MOR_EMBED_IMAGE_MODEL")
        model = _load(transformers.AutoModel, path, "MOR_EMBED_IMAGE_MODEL").eval()
        self._model = getattr(model, "vision_model", model)
        self.size: int = self._model.config.hidden_size

    def __call__(self, content: bytes) -> Float[ndarray, " features"]:
        pixels = self._processor(images=images.decode(content), return_tensors="pt")
        with torch.inference_mode():
            hidden = self._model(pixel_values=pixels["pixel_values"]).last_hidden_state
        return unit(np.asarray(hidden[0].mean(dim=0).double().numpy()))
