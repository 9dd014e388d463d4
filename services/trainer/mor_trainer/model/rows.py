"""Rows of a micro-batch, a prompt with responses to it, laid out as the model takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mor_trainer.model import shared_prompt
from mor_trainer.model.encoding import EncodedPrompt
from mor_trainer.model.features import ImageFeatures


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt with its image features, or with its pixel values where features cannot be reused."""

    encoded: EncodedPrompt
    features: ImageFeatures | None
    positions: Int[Tensor, "axes prompt"]
    """Rotary positions of its tokens: one axis, or three (time, height, width) in multimodal rotary embeddings."""

    @property
    def bytes(self) -> int:
        kept = self.positions.nbytes + sum(value.nbytes for value in self.encoded.vision.values())
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

    inputs: dict[str, Any]
    """Forward arguments: ``input_ids`` and, where needed, ``position_ids``, ``mm_token_type_ids`` and packed groups."""
    predicting: Int[Tensor, " n"]
    """Place, in the flattened batch, whose hidden state predicts each response token: row after row, response after
    response. The first tokens of all responses of a row are predicted by the last place of the prompt."""


def padded(rows: Sequence[Row], padding_id: int, device: torch.device) -> Layout:
    """Rows of one response each, padded on the right: what every model takes.

    Neither mask nor positions are passed: under causal attention no token sees the padding after it.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), padding_id, dtype=torch.long)
    types = torch.zeros_like(ids)
    predicting: list[Tensor] = []
    for index, row in enumerate(rows):
        prompt = row.prompt.encoded
        start = len(prompt.token_ids)
        (response,) = row.responses
        ids[index, : len(row)] = torch.tensor(prompt.token_ids + response[:-1])
        if prompt.token_types is not None:
            types[index, :start] = prompt.token_types
        predicting.append(index * width + torch.arange(start - 1, len(row)))
    inputs = {"input_ids": ids.to(device)}
    if any(row.prompt.encoded.token_types is not None for row in rows):
        inputs["mm_token_type_ids"] = types.to(device)
    return Layout(inputs, torch.cat(predicting).to(device))


def packed(rows: Sequence[Row], device: torch.device) -> Layout:
    """All rows in one sequence without padding, each prompt once.

    A response continues its prompt's positions and sees the prompt and itself only, so that every token is computed as
    if its response stood alone.
    """
    ids: list[int] = []
    positions: list[Tensor] = []
    types: list[Tensor] = []
    groups = []
    predicting: list[Tensor] = []
    for row in rows:
        prompt = row.prompt.encoded
        lengths = [len(response) - 1 for response in row.responses]
        groups.append(shared_prompt.Group(len(prompt.token_ids), lengths))
        ids += prompt.token_ids
        positions.append(row.prompt.positions)
        axes, start = len(row.prompt.positions), int(row.prompt.positions.max()) + 1
        last = torch.tensor([len(ids) - 1])
        for response, length in zip(row.responses, lengths, strict=True):
            positions.append((start + torch.arange(length)).expand(axes, -1))
            predicting += [last, torch.arange(len(ids), len(ids) + length)]
            ids += response[:-1]
        seen = torch.zeros(len(row), dtype=torch.long)
        if prompt.token_types is not None:
            seen[: len(prompt.token_ids)] = prompt.token_types
        types.append(seen)
    places = torch.cat(positions, 1)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": (places if len(places) == 1 else places[:, None]).to(device),
        **shared_prompt.arguments(groups, device),
    }
    if any(row.prompt.encoded.token_types is not None for row in rows):
        inputs["mm_token_type_ids"] = torch.cat(types)[None].to(device)
    return Layout(inputs, torch.cat(predicting).to(device))
