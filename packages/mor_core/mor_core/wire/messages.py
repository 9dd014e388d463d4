"""Conversations in OpenAI's chat shape, with images named by hash; the bytes are sent apart, once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from mor_core.wire.base import Wire

_IMAGE_SCHEME = "sha256:"
MOST_TEXT = 1 << 20
"""Characters of a conversation that services work on: about the longest context of any model, 256k tokens."""


class TextPart(Wire):
    type: Literal["text"] = "text"
    text: str


def _check_image_url(url: str) -> str:
    digest = url.removeprefix(_IMAGE_SCHEME)
    if digest == url or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"an image is named by 'sha256:<64 hex digits>', got {url[:80]!r}; send its bytes in 'images'")
    return url


class ImageUrl(Wire):
    url: Annotated[str, AfterValidator(_check_image_url)]


class ImagePart(Wire):
    """OpenAI's image part, with ``sha256:<hex>`` as its URL."""

    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl

    @classmethod
    def of(cls, sha256: str) -> ImagePart:
        return cls(image_url=ImageUrl(url=_IMAGE_SCHEME + sha256))

    @property
    def sha256(self) -> str:
        return self.image_url.url.removeprefix(_IMAGE_SCHEME)


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Wire):
    role: Literal["system", "user", "assistant"]
    content: str | tuple[Part, ...]

    @property
    def image_hashes(self) -> tuple[str, ...]:
        if isinstance(self.content, str):
            return ()
        return tuple(part.sha256 for part in self.content if isinstance(part, ImagePart))

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


Messages = Annotated[tuple[Message, ...], Field(min_length=1)]


def image_hashes(messages: tuple[Message, ...]) -> tuple[str, ...]:
    """Return the hashes of a conversation's images in the order of their appearance, repeats included."""
    return tuple(digest for message in messages for digest in message.image_hashes)


def chat_template_messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Return the conversation in the form of Hugging Face chat templates, ``{"type": "image"}`` for each image."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message.content, str):
            content = [{"type": "text", "text": message.content}]
        else:
            content = [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                for part in message.content
            ]
        turns.append({"role": message.role, "content": content})
    return turns
