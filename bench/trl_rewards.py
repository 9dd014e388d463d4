"""Steps of TRL's ``GRPOTrainer`` that the mixture rewards, and steps that a local function of the same latency does.

``bench/integrations.py`` runs this with TRL's Python. One training of a tiny model has both, in turns of alternating
order, so that both meet the same machine. It prints the seconds of each side's steps as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trl_baseline
from mor_client.training.trl import reward

WARM_UP = 4
"""Steps that are not measured: both sides open their first connections, and the model's first steps take longer."""
_ORDER = ("local", "mixture", "mixture", "local")


class Turns:
    """Reward function that takes the mixture's rewards at every other step, and local ones at the others."""

    __name__ = "turns"

    def __init__(self, latency_s: float, size: int) -> None:
        self._latency_s = latency_s
        self._mixture = reward(num_generations=size)
        self.calls = 0

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        side = _ORDER[self.calls % len(_ORDER)]
        self.calls += 1
        if side == "mixture":
            found = self._mixture(prompts, completions, **columns)
            assert None not in found, "the mixture had no reward"
            return found
        time.sleep(self._latency_s)
        return [float(len(str(completion))) for completion in completions]


def train(options: Namespace) -> dict[str, list[float]]:
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOTrainer

    total = WARM_UP + options.steps
    begun: list[float] = []
    ended: list[float] = []

    class Timed(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            begun.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.perf_counter())

    turns = Turns(options.latency_s, options.size)
    prompts = [[{"role": "user", "content": f"Question {number}?"}] for number in range(total)]
    trainer = GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(options.model),
        processing_class=AutoProcessor.from_pretrained(options.model),
        args=trl_baseline.config(options, total),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        reward_funcs=turns,
        callbacks=[Timed()],
    )
    trainer.train()
    assert turns.calls == len(begun) == len(ended) == total, (turns.calls, len(begun), total)
    seconds: dict[str, list[float]] = {side: [] for side in _ORDER}
    for step in range(WARM_UP, total):
        seconds[_ORDER[step % len(_ORDER)]].append(ended[step] - begun[step])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True, help="a multiple of 4")
    parser.add_argument("--size", type=int, required=True, help="responses to a prompt")
    parser.add_argument("--response", type=int, required=True, help="tokens of a response")
    parser.add_argument("--latency-s", type=float, required=True, help="seconds that the local function takes")
    parser.set_defaults(groups=1)
    warnings.simplefilter("ignore")  # TRL's and those of its libraries
    json.dump(train(parser.parse_args()), sys.stdout)


if __name__ == "__main__":
    main()
