"""A prompt that the trainer cannot process, or not in time, costs its own groups and is not tried again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from mor_core.datafiles import Prompt
from mor_core.processed_prompt import ProcessedPrompt
from mor_core.wire import Message
from mor_trainer.model.prompt_processor import PromptProcessor, UnusablePrompt
from mor_trainer.run.processed_prompts import ProcessedPrompts

from tests.model_families import FAMILIES
from tests.trainer.kit import make_spec


class SlowProcessor:
    """A family's processor that needs long for some texts, as one with a quadratic pattern does."""

    def __init__(self, slow_s: float) -> None:
        self._processor = FAMILIES["qwen2_vl"]().processor
        self._slow_s = slow_s
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *, text: list[str], **given: Any) -> Any:
        self.calls += 1
        if "stop here" in text[0]:
            raise StopIteration
        if "slow" in text[0]:
            time.sleep(self._slow_s)
        return self._processor(text=text, **given)


def said(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def test_a_prompt_has_a_limited_time_and_its_failure_is_its_own() -> None:
    processor = PromptProcessor(SlowProcessor(5.0), timeout_s=0.3)
    begun = time.monotonic()
    with pytest.raises(UnusablePrompt, match=r"did not end within 0.3 s \(MOR_ENCODE_TIMEOUT_S\)"):
        processor.process(said("slow"), {})
    assert time.monotonic() - begun < 4
    with pytest.raises(UnusablePrompt):
        processor.process(said("stop here"), {})
    assert processor.process(said("fine"), {}).token_ids


class OneLearner:
    """The part of a learner that processes prompts."""

    def __init__(self, processor: PromptProcessor, spec: Any) -> None:
        self._processor = processor
        self.spec = spec

    def process_prompt(self, prompt: Prompt) -> ProcessedPrompt:
        return self._processor.process(prompt.messages, prompt.images)


def test_an_unusable_prompt_takes_its_time_once(tiny: Path, prompts: Path) -> None:
    slow = SlowProcessor(5.0)
    rows: Any = [Prompt(name, said(name), {}, None) for name in ("fine", "slow", "long " * 200)]
    learner: Any = OneLearner(PromptProcessor(slow, timeout_s=0.3), make_spec(tiny, prompts, micro_batch_tokens=120))
    processed = ProcessedPrompts(rows, learner)
    processed.expect(range(3))
    while processed.expected:
        processed.process_expected()
    calls = slow.calls
    for place, reason in ((1, "did not end within"), (2, "does not fit micro_batch_tokens=120")):
        with pytest.raises(UnusablePrompt, match=reason):
            processed[place]
    assert slow.calls == calls, "nothing is tried again"
    assert processed[0].token_ids
    calls = slow.calls
    processed.forget_failures()
    with pytest.raises(UnusablePrompt):
        processed[1]
    assert slow.calls == calls + 1, "an operator asked for it"


def test_a_prompt_is_processed_ahead_once_while_its_group_is_under_way(tiny: Path, prompts: Path) -> None:
    counted = SlowProcessor(0.0)
    rows: Any = [Prompt(name, said(name), {}, None) for name in ("one", "two", "three")]
    learner: Any = OneLearner(PromptProcessor(counted), make_spec(tiny, prompts))
    processed = ProcessedPrompts(rows, learner)
    processed.process_expected()
    assert counted.calls == 0, "nothing is expected"

    def calls_after(*under_way: int) -> int:
        before = counted.calls
        processed.expect(under_way)
        while processed.expected:
            processed.process_expected()
        return counted.calls - before

    assert calls_after(0, 1, 0) == 2, "several groups may have one prompt"
    assert calls_after(0, 1, 2) == 1
    assert calls_after(1, 2) == 0
    assert calls_after(0) == 1, "the learner's cache decides whether an earlier prompt costs anything"
