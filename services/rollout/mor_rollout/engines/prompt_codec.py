"""Encoding of prompts by the checkpoint's processor, and decoding of sampled tokens."""

from __future__ import annotations

from typing import Any

from mor_core import vision
from mor_core.model_family import generation_end_tokens, model_class
from mor_core.pixel_hash import pixel_sha256
from mor_core.prompt_limits import PromptLimits
from mor_core.sampling import forbidden_token_ids
from mor_core.timed_calls import TimedCalls
from mor_core.wire import Message

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import PromptInput
from mor_rollout.weights.base_checkpoint import BaseCheckpoint


class PromptCodec:
    """The checkpoint's processor, its stop tokens and its forbidden tokens.

    Raises:
        Invalid: the checkpoint has no processor that can be used.
    """

    def __init__(self, settings: RolloutSettings, base: BaseCheckpoint) -> None:
        self._limits = PromptLimits(settings.max_model_len, settings.max_images)
        self.calls = TimedCalls("the encoding of a prompt", settings.encode_timeout_s, "MOR_ENCODE_TIMEOUT_S")
        model_class(str(base.folder))  # refuses a family that no engine samples from
        self.processor = vision.load_processor(str(base.folder))
        self.forbidden = forbidden_token_ids(self.processor, base.vocabulary_size)
        self.stops = _stop_token_ids(self.processor, base)
        self._placeholder = base.placeholder

    def encode(self, prompt: PromptInput) -> tuple[dict[str, Any], tuple[int, ...], int, str | None]:
        """Return the model inputs as tensors, the token ids, the number of image placeholders and the pixel hash.

        Raises:
            Invalid: the prompt has too many images, or leaves no room for a response.
        """
        self.check_messages(prompt.messages)
        inputs = vision.encode_prompt(self.processor, prompt.messages, prompt.images)
        token_ids = tuple(inputs["input_ids"][0].tolist())
        self._limits.check_tokens(len(token_ids))
        return inputs, token_ids, token_ids.count(self._placeholder), pixel_sha256(inputs)

    async def encode_in_time(self, prompt: PromptInput) -> tuple[dict[str, Any], tuple[int, ...], int, str | None]:
        """Do the same on another thread.

        Raises:
            Invalid: as ``encode``, or the prompt was not encoded within ``encode_timeout_s``.
            Unavailable: too many threads are stuck.
        """
        return await self.calls.run_async(self.encode, prompt)

    def check_messages(self, messages: tuple[Message, ...]) -> None:
        """Check a prompt's images and characters, before any work on them.

        Raises:
            Invalid: there are too many.
        """
        self._limits.check_messages(messages)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Return the text of a response, without special tokens."""
        return str(self.processor.tokenizer.decode(token_ids, skip_special_tokens=True))


def _stop_token_ids(processor: Any, base: BaseCheckpoint) -> tuple[int, ...]:
    """Return the ids that end a response, ascending: the tokenizer's, and those of ``generation_config.json``.

    A checkpoint without that file may name them in its configuration, where old defaults name plain words too.
    """
    tokenizer = processor.tokenizer
    listed = generation_end_tokens(base.folder)
    if listed is None:
        listed = [token for token in base.end_tokens if token in tokenizer.added_tokens_decoder]
    return tuple(sorted(stop for stop in {tokenizer.eos_token_id, *listed} if 0 <= stop < base.vocabulary_size))
