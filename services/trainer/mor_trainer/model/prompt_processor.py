"""Prompts as the checkpoint's processor makes them, and the check that the engine sampled from the same prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from mor_core import images as guarded
from mor_core.errors import Invalid
from mor_core.pixel_hash import pixel_sha256
from mor_core.vision import encode_prompt
from mor_core.wire import Message, RolloutRecord, TokenBlock, image_hashes
from torch import Tensor

_SEQUENCE_INPUTS = ("input_ids", "attention_mask")
_TYPES = "mm_token_type_ids"


class PromptMismatch(Invalid):
    """Difference between the engine's prompt and the trainer's; the group must not be trained on."""


@dataclass(frozen=True)
class ProcessedPrompt:
    """Output of the processor for a prompt."""

    token_ids: tuple[int, ...]
    """Prompt tokens, image placeholders expanded."""
    token_types: Int[Tensor, " prompt"] | None
    """``mm_token_type_ids`` of the prompt, for models that take them."""
    vision: dict[str, Tensor]
    """All other processor outputs: pixel values and their masks or grids. Empty without images."""
    pixels: str | None
    """Hash of the processed pixel values."""


class PromptProcessor:
    """A checkpoint's processor."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def process(self, messages: tuple[Message, ...], images: Mapping[str, bytes]) -> ProcessedPrompt:
        """Run the processor. ``images``: encoded bytes by SHA-256, at least those that ``messages`` name."""
        pictures = {digest: guarded.decode(images[digest]) for digest in dict.fromkeys(image_hashes(messages))}
        outputs = encode_prompt(self._processor, messages, pictures)
        types = outputs.get(_TYPES)
        vision = {name: value for name, value in outputs.items() if name not in (*_SEQUENCE_INPUTS, _TYPES)}
        return ProcessedPrompt(
            token_ids=tuple(outputs["input_ids"][0].tolist()),
            token_types=None if types is None else types[0].to(torch.long),
            vision=vision,
            pixels=pixel_sha256(outputs),
        )


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
