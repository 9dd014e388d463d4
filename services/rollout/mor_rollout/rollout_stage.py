"""From stream ``prompts`` to stream ``rollouts``: one consumer for each active run, groups sampled side by side."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import AbstractContextManager

import stamina
import structlog
from mor_core import images as guarded
from mor_core import tracing
from mor_core.blobs import Blobs
from mor_core.errors import BlobMissing, Invalid, LeaseLost, MorError, StreamFull, TooLarge
from mor_core.sampling import response_seed
from mor_core.streams import Consumer, Entry, RunAnnouncement, Streams, active_runs
from mor_core.tasks import stop
from mor_core.wire import PromptRecord, RolloutRecord, TokenBlock, image_hashes
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_rollout import metrics
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import Engine, EnginePrompt, ImageMismatch, PromptInput, SampledResponse, SampleParams
from mor_rollout.swaps import PolicySwapper
from mor_rollout.weights.base_checkpoint import BaseCheckpoint

_HOPELESS = (BlobMissing, Invalid, TooLarge, ImageMismatch)
_READ_BLOCK_S = 1.0
_RATE_WINDOW_S = 60.0

log = structlog.get_logger(__name__)


class RolloutStage:
    """Works on every run that is announced, until it is cancelled or the engine fails."""

    def __init__(
        self,
        *,
        settings: RolloutSettings,
        redis: Redis,
        base: BaseCheckpoint,
        engine: Engine,
        codec: PromptCodec,
        swapper: PolicySwapper,
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._base = base
        self._engine = engine
        self._codec = codec
        self._swapper = swapper
        self._slots = asyncio.Semaphore(settings.max_groups_in_flight)
        self.in_flight = 0
        """Groups being worked on."""
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._recent: deque[tuple[float, int]] = deque(maxlen=10_000)

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second over the last minute."""
        horizon = time.monotonic() - _RATE_WINDOW_S
        return sum(tokens for when, tokens in self._recent if when > horizon) / _RATE_WINDOW_S

    async def run(self) -> None:
        """Follow the list of active runs.

        Raises:
            Unavailable: the engine failed.
        """
        try:
            while self._swapper.failure is None:
                try:
                    await self._follow(await active_runs(self._redis))
                except RedisError as error:
                    log.warning("cannot read the list of runs", reason=str(error))
                await asyncio.sleep(self._settings.watch_interval_s)
        finally:
            await stop(self._runs.values())

    async def _follow(self, announced: list[RunAnnouncement]) -> None:
        names = {announcement.run for announcement in announced}
        for run, task in list(self._runs.items()):
            if run not in names or task.done():
                (failure,) = await stop([task])
                if failure is not None:
                    log.error("work on the run stopped and starts again", run=run, exc_info=failure)
                del self._runs[run]
        for announcement in announced:
            if announcement.run not in self._runs:
                self._runs[announcement.run] = asyncio.create_task(
                    self._serve(announcement), name=f"run {announcement.run}"
                )

    async def _serve(self, announcement: RunAnnouncement) -> None:
        run = announcement.run
        streams = Streams(self._redis, run, self._settings.stream_bound)
        consumer: Consumer[PromptRecord] = Consumer(streams, "prompts", "rollout", self._settings.lease_s)
        blobs = Blobs(self._redis, run, self._settings.blob_dir)
        refusal = None
        if not await asyncio.to_thread(self._base.is_same, announcement.model):
            refusal = (
                f"run {run!r} trains {announcement.model!r}, this rollout service holds {self._base.model!r};"
                " start one with the run's model"
            )
            log.error("run refused", run=run, reason=refusal)
        async with consumer, asyncio.TaskGroup() as groups:
            while True:
                reserved = await self._reserve()
                entries: list[Entry[PromptRecord]] = []
                try:
                    entries = await consumer.read(reserved, _READ_BLOCK_S)
                except RedisError as error:
                    log.warning("cannot read prompts", run=run, reason=str(error))
                    await asyncio.sleep(self._settings.watch_interval_s)
                finally:
                    for _ in range(reserved - len(entries)):
                        self._slots.release()
                for entry in entries:
                    groups.create_task(self._work(consumer, blobs, entry, refusal))

    async def _reserve(self) -> int:
        """Take at least one slot, at most this run's share of all; a group keeps its slot until it is done."""
        share = max(1, self._settings.max_groups_in_flight // max(1, len(self._runs)))
        await self._slots.acquire()
        taken = 1
        while taken < share and not self._slots.locked():
            await self._slots.acquire()
            taken += 1
        return taken

    async def _work(
        self, consumer: Consumer[PromptRecord], blobs: Blobs, entry: Entry[PromptRecord], refusal: str | None
    ) -> None:
        self.in_flight += 1
        metrics.IN_FLIGHT.inc()
        record = entry.record
        if record.stamps:
            metrics.QUEUE_WAIT.observe(max(0.0, time.time() - max(record.stamps.values())))
        try:
            with _traced(record):
                async with consumer.leased([entry]):
                    if refusal is not None:
                        await self._give_up(consumer, entry, Invalid(refusal), 1)
                    else:
                        await self._attempt(consumer, blobs, entry)
        except LeaseLost as error:
            log.info("another service was first", group=record.group_id, reason=str(error))
        except (RedisError, StreamFull) as error:  # the entry stays pending and is taken over when its lease ends
            log.warning("group left in the stream", group=record.group_id, reason=str(error))
        finally:
            self.in_flight -= 1
            metrics.IN_FLIGHT.dec()
            self._slots.release()

    async def _attempt(self, consumer: Consumer[PromptRecord], blobs: Blobs, entry: Entry[PromptRecord]) -> None:
        attempts = 0
        try:
            async for attempt in stamina.retry_context(
                on=_worth_another_attempt,
                attempts=self._settings.max_attempts,
                wait_initial=0.2,
                wait_max=10.0,
                timeout=None,
            ):
                with attempt:
                    attempts += 1
                    rollout = await self._sample(blobs, entry.record)
        except (MorError, TimeoutError) as error:
            if self._swapper.failure is None:  # otherwise another service, or this one restarted, takes the group over
                await self._give_up(consumer, entry, error, attempts)
            return
        await consumer.forward(entry, "rollouts", rollout, timeout_s=self._settings.forward_timeout_s)
        metrics.GROUPS.labels(entry.record.purpose).inc()

    async def _give_up(
        self, consumer: Consumer[PromptRecord], entry: Entry[PromptRecord], error: Exception, attempts: int
    ) -> None:
        metrics.DEAD.labels(type(error).__name__).inc()
        tracing.current().fail(str(error))
        await consumer.give_up(entry, str(error) or type(error).__name__, attempts=max(attempts, entry.deliveries))

    async def _sample(self, blobs: Blobs, record: PromptRecord) -> RolloutRecord:
        try:
            with tracing.span("encode"):
                prompt = await self._encode(blobs, record)
            params = self._params(record, prompt)
            async with self._swapper.sampling(record.run, record.weights, interruptible=record.purpose == "train"):
                started = time.monotonic()
                with tracing.span("generate") as generating:
                    responses = await self._draw(record, prompt, params)
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
            tokens=await blobs.put(block.model_dump_json().encode(), record.group_id),
            weights_version=min(versions),
            newest_version=max(versions),
            image_tokens=prompt.image_tokens,
            pixels=prompt.pixels,
        )

    async def _encode(self, blobs: Blobs, record: PromptRecord) -> EnginePrompt:
        digests = sorted(set(image_hashes(record.messages)))
        contents = await asyncio.gather(*(blobs.get(digest) for digest in digests))
        decoded = await asyncio.to_thread(lambda: [guarded.decode(content) for content in contents])
        return await self._engine.encode(PromptInput(record.messages, dict(zip(digests, decoded, strict=True))))

    def _params(self, record: PromptRecord, prompt: EnginePrompt) -> SampleParams:
        sampling = record.sampling
        if len(prompt.token_ids) + sampling.max_tokens > self._settings.max_model_len:
            raise Invalid(
                f"group {record.group_id}: {len(prompt.token_ids)} prompt tokens and {sampling.max_tokens} to sample"
                f" are more than the {self._settings.max_model_len} that this engine holds; raise MOR_MAX_MODEL_LEN or"
                " sample fewer"
            )
        return SampleParams(sampling.max_tokens, sampling.temperature, sampling.top_p)

    async def _draw(self, record: PromptRecord, prompt: EnginePrompt, params: SampleParams) -> list[SampledResponse]:
        seeds = [
            response_seed(record.sampling.seed, record.run, record.group_id, index)
            for index in range(record.sampling.group_size)
        ]
        limit = self._settings.generate_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self._engine.sample(prompt, params, seeds)
        except TimeoutError as error:
            raise TimeoutError(f"not sampled in {limit:g} s (MOR_GENERATE_TIMEOUT_S)") from error

    def _count(
        self, record: PromptRecord, prompt: EnginePrompt, responses: list[SampledResponse], seconds: float
    ) -> None:
        tokens = sum(len(response.token_ids) for response in responses)
        metrics.TOKENS.labels(record.purpose).inc(tokens)
        metrics.PROMPT_TOKENS.inc(len(prompt.token_ids))
        metrics.GENERATE.observe(seconds)
        self._recent.append((time.monotonic(), tokens))


def _traced(record: PromptRecord) -> AbstractContextManager[tracing.Span]:
    """The span of sampling a group."""
    return tracing.span(
        "sample",
        parent=record.trace or "",
        kind="consumer",
        run=record.run,
        group=record.group_id,
        attempt=record.attempt,
    )


def _worth_another_attempt(error: Exception) -> bool:
    return isinstance(error, MorError | TimeoutError | RedisError) and not isinstance(error, (*_HOPELESS, LeaseLost))
