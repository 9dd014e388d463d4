"""Sampling of one group: encoding of its prompt, responses from the right weights, and the rollout record."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from mor_core import images as guarded
from mor_core import tracing
from mor_core.blobs import Blobs
from mor_core.errors import Invalid
from mor_core.image_budget import ImageBudget
from mor_core.sampling import response_seed
from mor_core.wire import PromptRecord, RolloutRecord, TokenBlock, image_hashes
from PIL import Image

from mor_rollout import metrics
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import Engine, EnginePrompt, PromptInput, SampledResponse, SampleParams
from mor_rollout.swaps import PolicySwapper

_RATE_WINDOW_S = 60.0
"""Time over which the sampling rate is averaged, seconds: several groups even of a slow engine."""
_RECENT_GROUPS = 10_000
"""Groups remembered for the rate: more than a minute's worth of any engine."""


class GroupSampler:
    """Sampler of groups for all runs, from the weights that each prompt names."""

    def __init__(
        self, *, settings: RolloutSettings, engine: Engine, codec: PromptCodec, swapper: PolicySwapper
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._codec = codec
        self._swapper = swapper
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT_GROUPS)
        """Time and number of tokens of each group."""

    @property
    def failure(self) -> str | None:
        """Reason why nothing can be sampled any more; ``None`` while sampling works."""
        return self._swapper.failure

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second over the last minute."""
        horizon = time.monotonic() - _RATE_WINDOW_S
        return sum(tokens for when, tokens in self._recent if when > horizon) / _RATE_WINDOW_S

    async def sample(self, blobs: Blobs, record: PromptRecord) -> RolloutRecord:
        """Sample the group of a prompt and store its tokens in ``blobs``.

        Raises:
            BlobMissing: an image of the prompt is gone.
            Invalid, TooLarge: the prompt cannot be encoded, or prompt and response do not fit the engine.
            ImageMismatch: the engine made other image tokens or pixels than the processor.
            WeightsError, EngineError: the weights cannot be used, or the engine failed.
            TimeoutError: the group was not sampled within ``generate_timeout_s``.
        """
        try:
            with tracing.span("encode"):
                prompt = await self._encode(blobs, record)
            params = self._params(record, prompt)
            async with self._swapper.sampling(record.run, record.weights, interruptible=record.purpose == "train"):
                started = time.monotonic()
                with tracing.span("generate") as generating:
                    responses = await self._generate(record, prompt, params)
                    versions = {part.version for one in responses for part in one.spans if part.version is not None}
                    tokens = sum(len(response.token_ids) for response in responses)
                    generating.set(tokens=tokens, weights_version=min(versions))
        except Exception as error:
            metrics.FAILURES.labels(type(error).__name__).inc()
            raise
        self._count(record, prompt, responses, time.monotonic() - started)
        block = TokenBlock(
            prompt_token_ids=prompt.token_ids,
            response_token_ids=tuple(response.token_ids for response in responses),
            response_logprobs=tuple(response.logprobs for response in responses),
        )
        return RolloutRecord(
            run=record.run,
            group_id=record.group_id,
            trace=record.trace,
            stamps=record.stamped("rollout"),
            prompt=record,
            responses=tuple(self._codec.decode(response.token_ids) for response in responses),
            finish_reasons=tuple(response.finish_reason for response in responses),
            tokens=await blobs.put(block.model_dump_json().encode(), record.group_id, record.run_attempt),
            weights_version=min(versions),
            newest_version=max(versions),
            image_tokens=prompt.image_tokens,
            pixels=prompt.pixels,
        )

    async def _encode(self, blobs: Blobs, record: PromptRecord) -> EnginePrompt:
        self._codec.check_messages(record.messages)
        digests = sorted(set(image_hashes(record.messages)))
        contents = await asyncio.gather(*(blobs.get(digest) for digest in digests))
        decoded = await self._codec.calls.run_async(self._decode, contents)
        return await self._engine.encode(PromptInput(record.messages, dict(zip(digests, decoded, strict=True))))

    def _decode(self, contents: Sequence[bytes]) -> list[Image.Image]:
        budget = ImageBudget(self._settings.max_request_bytes)
        for content in contents:
            budget.spend(content)
        return [guarded.decode(content) for content in contents]

    def _params(self, record: PromptRecord, prompt: EnginePrompt) -> SampleParams:
        sampling = record.sampling
        if len(prompt.token_ids) + sampling.max_tokens > self._settings.max_model_len:
            raise Invalid(
                f"group {record.group_id}: {len(prompt.token_ids)} prompt tokens and {sampling.max_tokens} to sample"
                f" exceed the {self._settings.max_model_len} tokens of this engine; raise MOR_MAX_MODEL_LEN or sample"
                " fewer"
            )
        return SampleParams(sampling.max_tokens, sampling.temperature, sampling.top_p)

    async def _generate(
        self, record: PromptRecord, prompt: EnginePrompt, params: SampleParams
    ) -> list[SampledResponse]:
        seeds = [
            response_seed(record.sampling.seed, record.run, record.group_id, index)
            for index in range(record.sampling.group_size)
        ]
        limit = self._settings.generate_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self._engine.sample(prompt, params, seeds)
        except TimeoutError as error:
            raise TimeoutError(
                f"not sampled in {limit:g} s (MOR_GENERATE_TIMEOUT_S); raise the limit or sample fewer tokens"
            ) from error

    def _count(
        self, record: PromptRecord, prompt: EnginePrompt, responses: list[SampledResponse], seconds: float
    ) -> None:
        tokens = sum(len(response.token_ids) for response in responses)
        metrics.TOKENS.labels(record.purpose).inc(tokens)
        metrics.PROMPT_TOKENS.inc(len(prompt.token_ids))
        metrics.GENERATE.observe(seconds)
        self._recent.append((time.monotonic(), tokens))
