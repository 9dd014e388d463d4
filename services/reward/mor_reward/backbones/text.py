"""Text-only reward model: a sequence-classification checkpoint, or an encoder with a new head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from mor_core.chat_template import chat_text
from mor_core.errors import Invalid, MorError
from mor_core.special_tokens import begin_once, escape_control
from mor_core.wire import Message
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

from mor_reward.backbones.backbone import (
    Backbone,
    BackboneConfig,
    Example,
    Precision,
    resolve_precision,
    too_long_to_tokenize,
)
from mor_reward.backbones.encoders import load_model, load_tokenizer


class TextConfig(BackboneConfig):
    """Configuration of a classifier of prompt and response without pictures."""

    kind: Literal["text"] = "text"
    model: str
    """Folder or hub name of a sequence-classification checkpoint with one label, or of a plain encoder."""
    max_length: int = Field(512, ge=8)
    """Maximum tokens of prompt and response together; longer ones are not scored."""
    precision: Precision = "auto"
    """Type in which the model computes; its weights stay float32. ``auto`` is bfloat16 if the hardware supports it."""


class TextClassifier(Backbone):
    """Sequence classifier with one logit. A checkpoint without such a head gets a new one, which is trained.

    Prompt and response are formatted by the tokenizer's chat template, or passed as two texts if it has none.
    ``model``: classifier to use in place of the checkpoint's.
    """

    uses_pictures = False

    def __init__(self, config: TextConfig, root: Path, pretrained: bool, model: Any = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = load_tokenizer(config.model, root)
        self.model: Any = model
        if model is None:
            auto = AutoModelForSequenceClassification
            self.model = load_model(auto, config.model, root, pretrained, "model", num_labels=1)
        self.pad_token_id: int | None = self._text_config.pad_token_id
        """Padding of the checkpoint: it scores at the last token that is another. None: it scores at the last token."""
        self.precision = resolve_precision(config.precision)

    @property
    def _text_config(self) -> Any:
        return self.model.config.get_text_config()

    def unscorable_reason(self, example: Example) -> str | None:
        characters = sum(len(message.text) for message in example.messages) + len(example.response)
        if (reason := too_long_to_tokenize("prompt and response have", characters, self.config.max_length)) is not None:
            return reason
        try:
            length = len(self._encode(example)["input_ids"])
        except MorError as error:
            return str(error)
        if length == 0:
            return "prompt and response have no token, by the chat template of this model"
        if length > self.config.max_length:
            return f"prompt and response have {length} tokens; this model reads at most {self.config.max_length}"
        return None

    def forward(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]:
        device = next(self.model.parameters()).device
        encoded = {name: rows.to(device) for name, rows in self._padded(batch).items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16):
            logits: Tensor = self.model(**encoded).logits
        return logits.squeeze(-1).float()

    def linear_part(self) -> list[Tensor]:
        layers = [layer for layer in self.model.modules() if isinstance(layer, nn.Linear) and layer.out_features == 1]
        if not layers:
            raise Invalid(
                f"model {self.config.model!r}: its score is not the output of a linear layer, which --dp-part head "
                "trains; give --dp-part trained"
            )
        return [layers[-1].weight]

    def export(self, folder: Path) -> TextConfig:
        self._text_config.pad_token_id = self.pad_token_id
        self.model.config.save_pretrained(folder / "model")
        self.tokenizer.save_pretrained(folder / "model")
        return self.config.model_copy(update={"model": "model"})

    def _padded(self, batch: Sequence[Example]) -> dict[str, Int[Tensor, "batch tokens"]]:
        """Encode examples, padded at the end, and tell the model its padding: without one, a token that ends none."""
        encoded = [{name: list(ids) for name, ids in self._encode(example).items()} for example in batch]
        last = {row["input_ids"][-1] for row in encoded}
        pad = (
            self.pad_token_id
            if self.pad_token_id is not None
            else next(token for token in count() if token not in last)
        )
        self._text_config.pad_token_id = pad
        return {
            name: pad_sequence(
                [torch.tensor(row[name]) for row in encoded], True, padding_value=pad if name == "input_ids" else 0
            )
            for name in encoded[0]
        }

    def _encode(self, example: Example) -> Any:
        if self.tokenizer.chat_template:
            conversation = (*example.messages, Message(role="assistant", content=example.response))
            text = chat_text(self.tokenizer, conversation, cue=False, parts=False)
            return self.tokenizer(begin_once(self.tokenizer, text), add_special_tokens=False, verbose=False)
        prompt = "\n".join(message.text for message in example.messages)
        pair = (escape_control(self.tokenizer, text) for text in (prompt, example.response))
        return _begun_once(self.tokenizer(*pair, verbose=False), self.tokenizer.bos_token_id)


def _begun_once(encoded: Any, bos: int | None) -> dict[str, list[int]]:
    """Remove the beginning-of-sequence token that decoders' tokenizers write before the second text of a pair too."""
    ids = encoded["input_ids"]
    begins = [place for place, token in enumerate(ids) if token == bos]
    return {name: [v for place, v in enumerate(values) if place not in begins[1:]] for name, values in encoded.items()}
