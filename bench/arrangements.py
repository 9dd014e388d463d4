"""Comparison of ways to share a prompt between responses, on the same model and groups: exactness and speed.

``python bench/arrangements.py`` writes ``bench/results/arrangements-SHAPE.json``: seconds of forward and backward pass,
the median of alternating rounds, and the relative difference of the gradient from ``plain``.

- ``plain``: each response with its prompt.
- ``cache``: the prompt fills transformers' key-value cache, which is then repeated for each response, with gradient.
- ``mask``: prompt and responses in one sequence, attended under one block mask by stock SDPA.
- ``packed``: the same sequence attended in parts, ``mor_trainer.model.shared_prompt``, as the trainer does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
import vlm
from machine import CLOCKS, record
from mor_trainer.model import packed_groups, shared_prompt
from torch import Tensor
from transformers import DynamicCache


class TokenGroups:
    """``count`` groups of random tokens; every way returns the states of all response tokens, in the same order."""

    def __init__(self, decoder: Any, vocabulary: int, *, count: int, prompt: int, size: int, response: int) -> None:
        ids = torch.Generator().manual_seed(0)
        self._decoder = decoder
        self._prompts = torch.randint(0, vocabulary, (count, prompt), generator=ids)
        self._responses = torch.randint(0, vocabulary, (count, size, response), generator=ids)
        self._count, self._prompt, self._size, self._response = count, prompt, size, response
        self._places = torch.cat([torch.arange(prompt), *[prompt + torch.arange(response)] * size])

    def plain(self) -> Tensor:
        prompts = self._prompts[:, None].expand(-1, self._size, -1)
        return self._states(input_ids=torch.cat([prompts, self._responses], 2).flatten(0, 1))[:, self._prompt :]

    def cache(self) -> Tensor:
        cache = DynamicCache(config=self._decoder.config)
        self._states(input_ids=self._prompts, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(self._size)
        places = (self._prompt + torch.arange(self._response))[None]
        return self._states(
            input_ids=self._responses.flatten(0, 1), past_key_values=cache, use_cache=True, position_ids=places
        )

    def mask(self) -> Tensor:
        number = torch.cat(
            [torch.zeros(self._prompt), (1 + torch.arange(self._size)).repeat_interleave(self._response)]
        )
        seen = ((number[:, None] == number[None, :]) | (number[None, :] == 0)).tril()
        sequence = torch.cat([self._prompts, self._responses.flatten(1)], 1)
        places = self._places[None].expand(self._count, -1)
        mask = seen.expand(self._count, 1, -1, -1)
        return self._states(input_ids=sequence, position_ids=places, attention_mask=mask)[:, self._prompt :]

    def packed(self) -> Tensor:
        length = len(self._places)
        sequence = torch.cat([self._prompts, self._responses.flatten(1)], 1).flatten()[None]
        groups = [packed_groups.PromptGroup(self._prompt, [self._response] * self._size)] * self._count
        places = self._places.repeat(self._count)[None]
        with packed_groups.packed(packed_groups.PackedGroups.of(groups, sequence.device)):
            states = self._states(input_ids=sequence, position_ids=places, attention_mask=torch.ones_like(sequence))
        return states.unflatten(1, (self._count, length))[0, :, self._prompt :]

    def _states(self, **inputs: Any) -> Tensor:
        states: Tensor = self._decoder(**{"use_cache": False, **inputs}).last_hidden_state
        return states


def gradient(decoder: Any, way: Callable[[], Tensor], clock: Callable[[], float]) -> tuple[float, Tensor]:
    """Run forward and backward pass; return the seconds and the gradient as a vector."""
    decoder.zero_grad(set_to_none=True)
    started = clock()
    states = way().flatten(0, -2)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    (states * weights).sum().backward()
    seconds = clock() - started
    return seconds, torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=("tiny", "smollm2-10-layers", "smollm2-135m"), default="smollm2-135m")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--cases", nargs="+", default=["256x16", "64x16", "1024x16", "256x128"], help="PROMPTxRESPONSE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    torch.set_num_threads(options.threads)
    shape = vlm.SHAPES[options.shape]
    decoder = vlm.build(shape)[0].get_decoder()
    shared_prompt.install(decoder)
    cases = []
    for name in options.cases:
        prompt, response = map(int, name.split("x"))
        groups = TokenGroups(
            decoder, shape.vocabulary, count=options.groups, prompt=prompt, size=options.size, response=response
        )
        ways = {"plain": groups.plain, "cache": groups.cache, "mask": groups.mask, "packed": groups.packed}
        wanted = gradient(decoder, groups.plain, clock)[1]
        times: dict[str, list[float]] = {way: [] for way in ways}
        differences = dict.fromkeys(ways, 0.0)
        for _ in range(options.rounds):
            for way, states in ways.items():
                seconds, found = gradient(decoder, states, clock)
                times[way].append(seconds)
                differences[way] = float((found - wanted).norm() / wanted.norm())
        cases.append({
            "prompt": prompt, "response": response,
            "seconds": {way: statistics.median(values) for way, values in times.items()},
            "gradient_difference": differences,
        })  # fmt: skip
        print(cases[-1], flush=True)
        record(f"arrangements-{options.shape}", {**vars(options), "cases": cases})


if __name__ == "__main__":
    main()
