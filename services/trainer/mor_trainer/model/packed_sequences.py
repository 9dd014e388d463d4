"""Sequences that go through the model, a prompt with responses to it, and the model's inputs for a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from mor_core.picture_features import PictureFeatures
from mor_core.processed_prompt import ProcessedPrompt, continued_token_inputs
from torch import Tensor

from mor_trainer.model import packed_groups


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt with its image features, or with its pixel values where features cannot be reused."""

    processed: ProcessedPrompt
    features: PictureFeatures | None
    positions: Int[Tensor, "axes prompt"]
    """Rotary positions of its tokens: one axis, or three (time, height, width) in multimodal rotary embeddings."""

    @property
    def bytes(self) -> int:
        return self.positions.nbytes + self.processed.nbytes + (self.features.nbytes if self.features else 0)


@dataclass(frozen=True)
class PackedSequence:
    """A prompt and non-empty responses to it. The last token of a response predicts nothing and is left out."""

    prompt: PreparedPrompt
    responses: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.prompt.processed.token_ids) + sum(len(response) - 1 for response in self.responses)

    @property
    def longest(self) -> int:
        """Tokens of the longest response with the prompt: the least that the sequence can be divided into."""
        return len(self.prompt.processed.token_ids) + max(map(len, self.responses)) - 1


def padded_inputs(
    sequences: Sequence[PackedSequence], padding_id: int, device: torch.device
) -> tuple[dict[str, Any], Int[Tensor, " n"]]:
    """Return the inputs that every model takes: sequences of one response each, padded on the right.

    Neither mask nor positions are passed: under causal attention no token sees the padding after it.

    Returns:
        Forward arguments, and the predicting places as in ``packed_inputs``.
    """
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), padding_id, dtype=torch.long)
    predicting: list[Tensor] = []
    for index, sequence in enumerate(sequences):
        prompt = sequence.prompt.processed
        start = len(prompt.token_ids)
        (response,) = sequence.responses
        ids[index, : len(sequence)] = torch.tensor(prompt.token_ids + response[:-1])
        predicting.append(index * width + torch.arange(start - 1, len(sequence)))
    processed = [sequence.prompt.processed for sequence in sequences]
    inputs = {"input_ids": ids.to(device), **continued_token_inputs(processed, width, device)}
    return inputs, torch.cat(predicting).to(device)


def packed_inputs(
    sequences: Sequence[PackedSequence], device: torch.device
) -> tuple[dict[str, Any], Int[Tensor, " n"]]:
    """Return the inputs of all sequences joined into one without padding, each prompt once.

    A response continues its prompt's positions and sees the prompt and itself only, so that every token is computed as
    if its response stood alone.

    Returns:
        Forward arguments: ``input_ids``, ``position_ids``, a mask without padding, token inputs where the model takes
        them, and ``packed_groups``, which is for ``packed_groups.packed``. And the predicting places: for each response
        token the place, in the flattened batch, whose hidden state predicts it, sequence after sequence, response after
        response. The last place of a prompt predicts the first token of all its responses.
    """
    ids: list[int] = []
    positions: list[Tensor] = []
    groups = []
    predicting: list[Tensor] = []
    for sequence in sequences:
        prompt = sequence.prompt.processed
        lengths = [len(response) - 1 for response in sequence.responses]
        groups.append(packed_groups.PromptGroup(len(prompt.token_ids), lengths))
        ids += prompt.token_ids
        positions.append(sequence.prompt.positions)
        axes, start = len(sequence.prompt.positions), int(sequence.prompt.positions.max()) + 1
        last = torch.tensor([len(ids) - 1])
        for response, length in zip(sequence.responses, lengths, strict=True):
            positions.append((start + torch.arange(length)).expand(axes, -1))
            predicting += [last, torch.arange(len(ids), len(ids) + length)]
            ids += response[:-1]
    joined = torch.cat(positions, 1)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": (joined if len(joined) == 1 else joined[:, None]).to(device),
        # Without a mask, models look for packed sequences in the positions themselves.
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long, device=device),
        "packed_groups": packed_groups.PackedGroups.of(groups, device),
    }
    inputs |= {
        name: torch.cat([row[: len(sequence)] for row, sequence in zip(rows, sequences, strict=True)])[None]
        for name, rows in continued_token_inputs(
            [sequence.prompt.processed for sequence in sequences], max(map(len, sequences)), device
        ).items()
    }
    return inputs, torch.cat(predicting).to(device)
