"""Sampling with one seed per response, inside transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mor_rollout.engines.protocol import SampleParams


class SeededSampler(LogitsProcessor):  # type: ignore[misc]
    """Logits processor that chooses the next token of each row and leaves that token as the only choice.

    ``logprobs`` holds, for each row, the log-probability of every token chosen, by the rule of ``mor_core.sampling``.
    """

    def __init__(
        self,
        params: SampleParams,
        seeds: Sequence[int],
        forbidden: Sequence[int],
        on_step: Callable[[list[tuple[int, float]]], None],
    ) -> None:
        """``on_step`` receives each step's chosen token and log-probability, by row."""
        self._params = params
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._forbidden = torch.tensor(forbidden, dtype=torch.long)
        self._on_step = on_step
        self.logprobs: list[list[float]] = [[] for _ in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Choose a token of each row. ``scores`` and the result: ``[row, vocab]``."""
        logits = scores.float().cpu().index_fill(1, self._forbidden, float("-inf"))
        if self._params.temperature > 0:
            logits = nucleus(logits / self._params.temperature, self._params.top_p)
        logprobs = torch.log_softmax(logits, dim=-1)
        if self._params.temperature > 0:
            rows = [
                torch.multinomial(row.exp(), 1, generator=g) for row, g in zip(logprobs, self._generators, strict=True)
            ]
            chosen = torch.cat(rows)
        else:
            chosen = logprobs.argmax(dim=-1)
        step = [(int(token), float(row[token])) for token, row in zip(chosen, logprobs, strict=True)]
        for row_logprobs, (_, logprob) in zip(self.logprobs, step, strict=True):
            row_logprobs.append(logprob)
        self._on_step(step)
        only = torch.full_like(scores, float("-inf"))
        return only.scatter(1, chosen.to(scores.device)[:, None], 0.0)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Set ``logits`` ``[row, vocab]`` to -inf outside the smallest set of likely tokens with probability ``top_p``."""
    if top_p >= 1:
        return logits
    ascending, order = logits.sort(dim=-1)
    outside = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    outside[:, -1] = False
    return logits.masked_fill(outside.scatter(1, order, outside), float("-inf"))
