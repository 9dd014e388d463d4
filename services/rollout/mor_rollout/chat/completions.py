"""Sampling of chat completions: text from tokens as they are sampled, up to a stop text."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from mor_core.errors import Invalid, MorError, NotFound, Unavailable
from mor_core.fair_share import FairShare
from mor_core.image_budget import on_decoder
from mor_core.sampling import response_seed

from mor_rollout import metrics
from mor_rollout.chat.openai_schema import (
    POLICY,
    AssistantMessage,
    ChatRequest,
    ChatResponse,
    Choice,
    ChoiceLogprobs,
    TokenLogprob,
    Usage,
)
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import Engine, EnginePrompt, PromptInput, SampleParams
from mor_rollout.rollout_service import RolloutService
from mor_rollout.swaps import PolicySwapper

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""Decoded in place of a character whose bytes are not complete yet."""
_QUEUE_LENGTH = 64
"""Deltas that may wait for a slow reader before no more tokens are taken from the engine."""


@dataclass
class ResponseText:
    """Text of a response while it is sampled, without the end that a stop text or later bytes may still change."""

    codec: PromptCodec
    stops: list[str]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    sent: int = 0
    stopped: bool = False

    def add(self, token_id: int) -> str:
        """Add a token and return the new text that can be sent."""
        self.token_ids.append(token_id)
        self.text = self.codec.decode(tuple(self.token_ids))
        ends = [position for stop in self.stops if (position := self.text.find(stop)) >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)], True
            return self.rest()
        if self.text.endswith(_UNFINISHED):
            return ""
        withheld = max((len(stop) - 1 for stop in self.stops), default=0)
        return self._upto(max(self.sent, len(self.text) - withheld))

    def rest(self) -> str:
        """Return the text that was withheld."""
        return self._upto(len(self.text))

    def _upto(self, end: int) -> str:
        delta, self.sent = self.text[self.sent : end], max(self.sent, end)
        return delta


@dataclass(frozen=True)
class Delta:
    """Piece of one response. Only the last has a ``finish_reason``."""

    index: int
    text: str
    logprob: TokenLogprob | None
    finish_reason: Literal["stop", "length"] | None


class Completions:
    """Sampling of chat completions on the current policy, at most ``max_chats`` at a time."""

    def __init__(self, settings: RolloutSettings, service: RolloutService) -> None:
        self._settings = settings
        self._service = service
        self._in_flight = FairShare(settings.max_chats)

    async def check(self, request: ChatRequest) -> None:
        """Check that the request can be served.

        Raises:
            NotFound: the request names another model.
            Invalid: ``n`` is over the limit, or the stop texts are not valid.
        """
        if request.model not in (POLICY, self._settings.model):
            raise NotFound(f"model {request.model!r} is not served; use {POLICY!r}")
        if request.n > self._settings.max_chat_choices:
            raise Invalid(
                f"n: got {request.n}, at most {self._settings.max_chat_choices} responses are sampled; lower n or raise"
                " MOR_MAX_CHAT_CHOICES"
            )
        request.stops()

    @contextmanager
    def _admitted(self, caller: str) -> Iterator[None]:
        full = Unavailable(
            f"{self._in_flight.total} chat completions are in flight, the limit (MOR_MAX_CHATS); try again",
            retry_after_s=2,
        )
        with self._in_flight.hold(caller, full), metrics.CHATS.track_inprogress():
            yield

    @asynccontextmanager
    async def _session(self, request: ChatRequest, caller: str) -> AsyncIterator[_Session]:
        """Encode the prompt and keep the policy unchanged for the body."""
        engine, swapper, codec = self._service.sampling_parts()
        with self._admitted(caller):
            messages, images = await on_decoder(
                partial(request.conversation, self._settings.max_images, self._settings.max_request_bytes)
            )
            prompt = await engine.encode(PromptInput(messages, images))
            limit = request.limit(len(prompt.token_ids), self._settings.max_model_len)
            params = SampleParams(limit, request.temperature, request.top_p)
            try:
                async with asyncio.timeout(self._settings.generate_timeout_s), swapper.sampling_current():
                    yield _Session(request, engine, codec, prompt, params, _fingerprint(swapper))
            except TimeoutError as error:
                raise Unavailable(
                    f"not sampled in {self._settings.generate_timeout_s:g} s (MOR_GENERATE_TIMEOUT_S);"
                    " try again with fewer tokens"
                ) from error

    async def complete(self, request: ChatRequest, caller: str) -> ChatResponse:
        """Sample all responses and return them together."""
        async with self._session(request, caller) as session:
            texts = [""] * request.n
            logprobs: list[list[TokenLogprob]] = [[] for _ in range(request.n)]
            reasons: list[Literal["stop", "length"]] = ["stop"] * request.n
            async with aclosing(session.deltas()) as deltas:
                async for delta in deltas:
                    texts[delta.index] += delta.text
                    if delta.logprob is not None:
                        logprobs[delta.index].append(delta.logprob)
                    if delta.finish_reason is not None:
                        reasons[delta.index] = delta.finish_reason
            choices = [
                Choice(
                    index=index,
                    message=AssistantMessage(content=text),
                    finish_reason=reason,
                    logprobs=ChoiceLogprobs(content=content) if request.logprobs else None,
                )
                for index, (text, content, reason) in enumerate(zip(texts, logprobs, reasons, strict=True))
            ]
            return ChatResponse(
                id=session.id,
                created=session.created,
                model=POLICY,
                system_fingerprint=session.fingerprint,
                choices=choices,
                usage=session.usage(),
            )

    async def events(self, request: ChatRequest, caller: str) -> AsyncIterator[str]:
        """Yield the data of each server-sent event. An error becomes an event, as the HTTP status is sent before it."""
        try:
            async with self._session(request, caller) as session, aclosing(session.deltas()) as deltas:
                for index in range(request.n):
                    yield session.chunk(index, {"role": "assistant", "content": ""}, None, None)
                async for delta in deltas:
                    content = {"content": delta.text} if delta.text else {}
                    logprob = delta.logprob if request.logprobs else None
                    yield session.chunk(delta.index, content, logprob, delta.finish_reason)
                if request.stream_options is not None and request.stream_options.include_usage:
                    yield json.dumps({**session.envelope(), "choices": [], "usage": session.usage().model_dump()})
            yield "[DONE]"
        except MorError as error:
            yield json.dumps({"error": {"message": str(error), "type": error.title, "code": error.status}})


@dataclass
class _Session:
    """State of one chat completion."""

    request: ChatRequest
    engine: Engine
    codec: PromptCodec
    prompt: EnginePrompt
    params: SampleParams
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: int = 0

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield the deltas of all responses as they are sampled."""
        seed = secrets.randbits(62) if self.request.seed is None else self.request.seed
        queue: asyncio.Queue[Delta | BaseException] = asyncio.Queue(maxsize=_QUEUE_LENGTH)
        tasks = [
            asyncio.create_task(self._stream_response(index, response_seed(seed, "chat", "", index), queue))
            for index in range(self.request.n)
        ]
        left = len(tasks)
        try:
            while left:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                left -= item.finish_reason is not None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stream_response(self, index: int, seed: int, queue: asyncio.Queue[Delta | BaseException]) -> None:
        text = ResponseText(self.codec, self.request.stops())
        try:
            async with aclosing(self.engine.stream(self.prompt, self.params, seed)) as tokens:
                async for token in tokens:
                    self.tokens += 1
                    metrics.TOKENS.labels("chat").inc()
                    piece = text.add(token.token_id)
                    reason = "stop" if text.stopped else token.finish_reason
                    if reason is not None:
                        piece += text.rest()
                    await queue.put(Delta(index, piece, self._logprob(token.token_id, token.logprob), reason))
                    if reason is not None:
                        return
        except Exception as error:
            await queue.put(error)

    def _logprob(self, token_id: int, logprob: float) -> TokenLogprob:
        token = self.codec.processor.tokenizer.decode([token_id])
        return TokenLogprob(token=token, logprob=logprob, bytes=None if _UNFINISHED in token else list(token.encode()))

    def envelope(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": POLICY,
            "system_fingerprint": self.fingerprint,
        }

    def chunk(self, index: int, delta: dict[str, str], logprob: TokenLogprob | None, reason: str | None) -> str:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": [logprob.model_dump()]} if logprob is not None else None,
            "finish_reason": reason,
        }
        return json.dumps({**self.envelope(), "choices": [choice]})

    def usage(self) -> Usage:
        prompt = len(self.prompt.token_ids)
        return Usage(prompt_tokens=prompt, completion_tokens=self.tokens, total_tokens=prompt + self.tokens)


def _fingerprint(swapper: PolicySwapper) -> str:
    return "base" if swapper.version is None else f"{swapper.run}:{swapper.version}"
