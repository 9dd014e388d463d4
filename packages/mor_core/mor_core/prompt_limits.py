"""Limits of engine and trainer on a prompt, the same in the services and in the check of a data set."""

from __future__ import annotations

from dataclasses import dataclass

from mor_core.errors import Invalid
from mor_core.image_budget import MOST_BYTES
from mor_core.wire import Message

_CHARACTERS_A_TOKEN = 32
"""Most characters of a prompt for each token of the engine; common words have four to ten."""


@dataclass(frozen=True)
class PromptLimits:
    """Most tokens and images of a prompt; ``None`` is no limit."""

    model_len: int | None = None
    """Tokens of prompt and response together."""
    images: int | None = None
    response: int = 1
    """Tokens that a response needs at least."""
    image_bytes: int = MOST_BYTES
    """Encoded bytes of all images."""
    micro_batch_tokens: int | None = None
    """Tokens of prompt and response that the trainer sends through the model at once."""

    def check_messages(self, messages: tuple[Message, ...]) -> None:
        """Check images and characters, before any work on them.

        Raises:
            Invalid: there are too many.
        """
        images = sum(len(message.image_hashes) for message in messages)
        if self.images is not None and images > self.images:
            raise Invalid(
                f"the prompt has {images} images, at most {self.images} are allowed; send fewer or raise MOR_MAX_IMAGES"
            )
        characters = sum(len(message.text) for message in messages)
        if self.model_len is not None and characters > _CHARACTERS_A_TOKEN * self.model_len:
            raise Invalid(
                f"the prompt has {characters} characters, too many for the {self.model_len} tokens that prompt and"
                " response together may have; shorten the prompt or raise MOR_MAX_MODEL_LEN"
            )

    def check_tokens(self, tokens: int) -> None:
        """Check the length of an encoded prompt.

        Raises:
            Invalid: it leaves no room for a response.
        """
        if self.model_len is not None and tokens + self.response > self.model_len:
            needed = f" and {self.response} for a response" if self.response > 1 else ""
            raise Invalid(
                f"the prompt has {tokens} tokens{needed}, prompt and response together may have {self.model_len};"
                " shorten the prompt or raise MOR_MAX_MODEL_LEN"
            )
        if self.micro_batch_tokens is not None and tokens + self.response - 1 > self.micro_batch_tokens:
            raise Invalid(
                f"the prompt has {tokens} tokens and with a response of sampling.max_tokens={self.response} does not "
                f"fit micro_batch_tokens={self.micro_batch_tokens}; raise micro_batch_tokens or shorten the prompt"
            )
