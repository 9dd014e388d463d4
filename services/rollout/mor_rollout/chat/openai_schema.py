"""Schema of OpenAI chat completions: the supported fields. Requests with any other field are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mor_core import images as guarded
from mor_core.errors import Invalid, TooLarge
from mor_core.image_budget import ImageBudget
from mor_core.wire import MOST_TEXT, ImagePart, Message, TextPart
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

POLICY = "policy"
"""Model name of the current policy."""


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ChatText(_Schema):
    type: Literal["text"]
    text: str


class ChatImageUrl(_Schema):
    url: str
    """Data URI (``data:image/png;base64,…``) or plain base64. Other URLs are not fetched."""


class ChatImage(_Schema):
    type: Literal["image_url"]
    image_url: ChatImageUrl


class ChatMessage(_Schema):
    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[ChatText | ChatImage, Field(discriminator="type")]]

    @property
    def characters(self) -> int:
        """Length of the message's text."""
        if isinstance(self.content, str):
            return len(self.content)
        return sum(len(part.text) for part in self.content if isinstance(part, ChatText))

    @property
    def images(self) -> int:
        """Number of the message's images."""
        return sum(isinstance(part, ChatImage) for part in self.content)


class StreamOptions(_Schema):
    include_usage: bool = False
    """Send the token counts in the last chunk."""


class ChatRequest(_Schema):
    """Request body of ``/v1/chat/completions``."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "example": {
                "model": POLICY,
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo…"}},
                            {"type": "text", "text": "What is in the picture?"},
                        ],
                    }
                ],
                "max_tokens": 64,
                "seed": 7,
            }
        },
    )

    model: str = POLICY
    """``policy`` or the base checkpoint's name; both mean the current policy."""
    messages: list[ChatMessage] = Field(min_length=1)
    n: int = Field(1, ge=1)
    """Number of responses."""
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    """Longest response, tokens; by default, the engine's length less the prompt."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Newer name of ``max_tokens``; give only one of the two."""
    seed: int | None = Field(None, ge=0)
    """The same seed, messages and weights give the same responses."""
    stop: str | list[str] | None = Field(None)
    """At most four texts. A response ends before the first of them."""
    logprobs: bool = False
    """Return the log-probability of every sampled token."""
    stream: bool = False
    """Send the responses as server-sent events while they are sampled."""
    stream_options: StreamOptions | None = None

    def stops(self) -> list[str]:
        """Return the texts that end a response.

        Raises:
            Invalid: there are more than four, or one is empty.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 4 or not all(stops):
            raise Invalid(f"stop: got {len(stops)} texts; give at most four, none of them empty")
        return stops

    def limit(self, prompt_tokens: int, max_model_len: int) -> int:
        """Return the largest number of tokens of a response.

        Raises:
            Invalid: both names are given, or prompt and response do not fit.
        """
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise Invalid("got max_tokens and max_completion_tokens; give only one of them")
        wanted = self.max_tokens or self.max_completion_tokens
        left = max_model_len - prompt_tokens
        if wanted is not None and wanted > left:
            raise Invalid(
                f"the prompt has {prompt_tokens} tokens, which leaves {left} for the response, not {wanted};"
                " lower max_tokens or raise MOR_MAX_MODEL_LEN"
            )
        return wanted or left

    def conversation(
        self, most_images: int, most_image_bytes: int
    ) -> tuple[tuple[Message, ...], dict[str, Image.Image]]:
        """Return the messages, which name images by hash, and the decoded images by hash.

        Raises:
            Invalid: an image is neither a data URI nor base64, or not readable.
            TooLarge: an image is over the limits, the images are over the budget of a request, or the text is too
                long.
        """
        characters = sum(message.characters for message in self.messages)
        if characters > MOST_TEXT:
            raise TooLarge(f"the conversation has {characters} characters, of at most {MOST_TEXT}; shorten it")
        shown = sum(message.images for message in self.messages)
        if shown > most_images:
            raise Invalid(
                f"the prompt has {shown} images, at most {most_images} are allowed; send fewer or raise MOR_MAX_IMAGES"
            )
        budget = ImageBudget(most_image_bytes)
        images: dict[str, Image.Image] = {}
        messages = []
        for message in self.messages:
            if isinstance(message.content, str):
                messages.append(Message(role=message.role, content=message.content))
                continue
            parts: list[TextPart | ImagePart] = []
            for part in message.content:
                if isinstance(part, ChatText):
                    parts.append(TextPart(text=part.text))
                    continue
                content = guarded.bytes_of_url(part.image_url.url)
                digest = guarded.sha256(content)
                if digest not in images:
                    budget.spend(content)
                    images[digest] = guarded.decode(content)
                parts.append(ImagePart.of(digest))
            messages.append(Message(role=message.role, content=tuple(parts)))
        return tuple(messages), images


class TokenLogprob(_Schema):
    token: str
    logprob: float
    """In nats, of the distribution that the token was sampled from."""
    bytes: list[int] | None
    top_logprobs: list[Any] = Field(default_factory=list)


class ChoiceLogprobs(_Schema):
    content: list[TokenLogprob]


class AssistantMessage(_Schema):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(_Schema):
    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChoiceLogprobs | None


class Usage(_Schema):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(_Schema):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    """Run and weights version that sampled the response, ``run:version``, or ``base``."""
    choices: list[Choice]
    usage: Usage
