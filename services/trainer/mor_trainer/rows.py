"""Rows of a micro-batch: a prompt once, and after it one or more of its responses, which do not see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mor_trainer.encoding import EncodedPrompt
from mor_trainer.features import ImageFeatures

_PADDING = -1


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt with its image features, or with its pixel values where features cannot be reused."""

    encoded: EncodedPrompt
    features: ImageFeatures | None

    @property
    def bytes(self) -> int:
        kept = sum(value.nbytes for value in self.encoded.vision.values())
        return kept + 8 * len(self.encoded.token_ids) + (self.features.bytes if self.features else 0)


@dataclass(frozen=True)
class Row:
    """A prompt and non-empty responses to it. The last token of a response predicts nothing and is left out."""

    prompt: PreparedPrompt
    responses: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.prompt.encoded.token_ids) + sum(len(response) - 1 for response in self.responses)


@dataclass(frozen=True)
class Layout:
    """A micro-batch as the model takes it."""

    inputs: dict[str, Tensor]
    """``input_ids`` and, where needed, ``position_ids``, ``attention_mask`` and ``mm_token_type_ids``."""
    predicting: Int[Tensor, " n"]
    """Place, in the flattened batch, whose hidden state predicts each response token: row after row, response after
    response. The first tokens of all responses of a row are predicted by the last place of the prompt."""


def lay_out(rows: Sequence[Row], padding_id: int) -> Layout:
    """Pad ``rows`` on the right.

    With one response to a row neither mask nor positions are passed: under causal attention no token sees the padding
    after it. With more, each response sees the prompt and itself only, and continues the prompt's positions, so that
    every token is computed as if its response stood alone.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), padding_id, dtype=torch.long)
    positions, types = torch.zeros_like(ids), torch.zeros_like(ids)
    segments = torch.full_like(ids, _PADDING)
    predicting: list[Tensor] = []
    for index, row in enumerate(rows):
        prompt = row.prompt.encoded
        end = len(prompt.token_ids)
        ids[index, :end] = torch.tensor(prompt.token_ids)
        positions[index, :end] = torch.arange(end)
        segments[index, :end] = 0
        if prompt.token_types is not None:
            types[index, :end] = prompt.token_types
        last = torch.tensor([index * width + end - 1])
        for number, response in enumerate(row.responses, 1):
            place = slice(end, end + len(response) - 1)
            ids[index, place] = torch.tensor(response[:-1], dtype=torch.long)
            positions[index, place] = len(prompt.token_ids) + torch.arange(len(response) - 1)
            segments[index, place] = number
            predicting += [last, index * width + torch.arange(place.start, place.stop)]
            end = place.stop
    inputs = {"input_ids": ids}
    if any(row.prompt.encoded.token_types is not None for row in rows):
        inputs["mm_token_type_ids"] = types
    if any(len(row.responses) > 1 for row in rows):
        inputs |= {"position_ids": positions, "attention_mask": _mask(segments)}
    return Layout(inputs, torch.cat(predicting))


def _mask(segments: Int[Tensor, "rows width"]) -> Bool[Tensor, "rows 1 width width"]:
    """Which place (third dimension) sees which (fourth): earlier ones of the prompt and of its own response."""
    width = segments.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    own = segments[:, :, None] == segments[:, None, :]
    prompt = segments[:, None, :] == 0
    return (earlier & (own | prompt))[:, None]
