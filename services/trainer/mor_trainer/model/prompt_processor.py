"""Prompts as the checkpoint's processor makes them, and the check that the engine sampled from the same prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mor_core import images as guarded
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure
from mor_core.processed_prompt import ProcessedPrompt
from mor_core.timed_calls import TimedCalls
from mor_core.vision import encode_prompt
from mor_core.wire import Message, RolloutRecord, TokenBlock, image_hashes


class PromptMismatch(Invalid):
    """Difference between the engine's prompt and the trainer's; the group must not be trained on."""


class UnusablePrompt(Invalid):
    """A prompt that the trainer cannot process; its groups must not be trained on."""


class PromptProcessor:
    """A checkpoint's processor, with a limit on the time of a prompt."""

    def __init__(self, processor: Any, timeout_s: float = 60.0) -> None:
        """``timeout_s``: longest processing of a prompt, seconds."""
        self._processor = processor
        self._calls = TimedCalls("the encoding of a prompt", timeout_s, "MOR_ENCODE_TIMEOUT_S")

    def process(self, messages: tuple[Message, ...], images: Mapping[str, bytes]) -> ProcessedPrompt:
        """Run the processor. ``images``: encoded bytes by SHA-256, at least those that ``messages`` name.

        Raises:
            UnusablePrompt: the prompt cannot be processed, or not in time.
            Unavailable: too many prompts were not processed in time.
        """
        try:
            return self._calls.run(self._process, messages, images)
        except Unavailable:
            raise
        except Exception as error:  # each family's processor refuses in its own ways
            raise UnusablePrompt(describe_failure(error)) from error

    def _process(self, messages: tuple[Message, ...], images: Mapping[str, bytes]) -> ProcessedPrompt:
        pictures = {digest: guarded.decode(images[digest]) for digest in dict.fromkeys(image_hashes(messages))}
        return ProcessedPrompt.of(encode_prompt(self._processor, messages, pictures))


def check_same_prompt(prompt: ProcessedPrompt, rollout: RolloutRecord, tokens: TokenBlock) -> None:
    """Refuse a group that the engine did not sample from exactly this prompt.

    Raises:
        PromptMismatch: other token ids, another pixel hash or another number of responses.
    """
    cure = (
        "run the same transformers version and the same checkpoint's processor in the rollout service and the trainer"
    )
    if tokens.prompt_token_ids != prompt.token_ids:
        theirs, ours = tokens.prompt_token_ids, prompt.token_ids
        first = next((i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), None)
        where = f"first difference at {first}" if first is not None else "one is the start of the other"
        raise PromptMismatch(
            f"group {rollout.group_id}: the engine's prompt has {len(theirs)} tokens, the trainer's {len(ours)} "
            f"({where}); {cure}"
        )
    if rollout.pixels != prompt.pixels:
        raise PromptMismatch(
            f"group {rollout.group_id}: the engine's pixels hash to {rollout.pixels}, the trainer's to "
            f"{prompt.pixels}; {cure}"
        )
    if len(tokens.response_token_ids) != len(rollout.responses):
        raise PromptMismatch(
            f"group {rollout.group_id}: {len(tokens.response_token_ids)} token sequences for "
            f"{len(rollout.responses)} responses; the rollout service must send one for each"
        )
