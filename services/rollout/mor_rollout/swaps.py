"""The policy in use: which weights the engine holds, who samples from them, and when they are swapped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

import structlog
from mor_core import tracing
from mor_core.errors import MorError
from mor_core.wire import WeightsRef

from mor_rollout import metrics
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import Engine, EngineError, ReadBack, SwapFailed, gone
from mor_rollout.weights.pull import PreparedWeights, WeightsStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SwapTimes:
    """How long the last swap took, seconds."""

    pull_s: float
    drain_s: float
    swap_s: float


class Policy:
    """Lets many sample at once, and swaps weights in turns, in order of arrival, so that no version starves.

    Who needs other weights waits until what must end on the old ones has ended: everything of another run, and what was
    not entered as ``kept``. What was kept is paused meanwhile and goes on under the newer version, where the engine can
    do that. Who comes later waits for the swap.
    """

    def __init__(self, settings: RolloutSettings, engine: Engine, store: WeightsStore) -> None:
        self._engine = engine
        self._store = store
        self._drain_s = settings.generate_timeout_s + settings.swap_timeout_s
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        self._sampling = {True: 0, False: 0}
        """Who samples, by whether they may be kept over a swap."""
        self._weights: PreparedWeights | None = None
        self._newest: dict[str, WeightsRef] = {}
        self._failure: str | None = None
        self.read_back: ReadBack | None = None
        self.swaps = 0
        self.times: SwapTimes | None = None

    @property
    def failure(self) -> str | None:
        """Why nothing can be sampled any more; ``None`` while it can."""
        return self._failure or self._engine.failure

    @property
    def run(self) -> str | None:
        return self._weights.run if self._weights else None

    @property
    def version(self) -> int | None:
        """``None``: the base checkpoint, no version was asked for yet."""
        return self._weights.version if self._weights else None

    @asynccontextmanager
    async def sampling(self, run: str, ref: WeightsRef, *, kept: bool = False) -> AsyncIterator[int]:
        """Holds ``ref`` or a newer version of ``run`` in the engine for the length of the body; yields its version.

        ``kept``: a newer one may take its place meanwhile; the responses' spans tell which sampled what.

        Raises:
            WeightsError: the version cannot be had; what the engine held before stays in use.
            SwapFailed: the engine did not take it.
            EngineError: groups of the old version did not come to an end.
        """
        known = self._newest.get(run)
        if known is None or known.version < ref.version:
            known = ref
        prepared = None
        started = time.monotonic()
        if not self._serves(run, known):
            in_use = self._weights.folder if self._weights else None
            prepared = await self._store.pull(run, known, in_use=in_use)
            metrics.PULL.observe(time.monotonic() - started)
        async with self._turn:
            if not self._serves(run, ref):
                if prepared is None:
                    prepared = await self._store.pull(run, known)
                await self._swap_to(prepared, time.monotonic() - started)
                self._newest[run] = known
            version = self.version
            assert version is not None
            self._enter(kept)
        try:
            yield version
        finally:
            self._leave(kept)

    @asynccontextmanager
    async def sampling_current(self) -> AsyncIterator[None]:
        """Keeps whatever the engine holds for the length of the body."""
        async with self._turn:
            self._enter(kept=False)
        try:
            yield
        finally:
            self._leave(kept=False)

    def _serves(self, run: str, ref: WeightsRef) -> bool:
        return self._weights is not None and self._weights.run == run and self._weights.version >= ref.version

    def _enter(self, kept: bool) -> None:
        if self.failure is not None:
            raise gone(self._engine) if self._failure is None else EngineError(self._failure)
        self._sampling[kept] += 1

    def _leave(self, kept: bool) -> None:
        self._sampling[kept] -= 1
        self._left.set()

    async def _drained(self, *, kept_too: bool) -> None:
        try:
            async with asyncio.timeout(self._drain_s):
                while self._sampling[False] or (kept_too and self._sampling[True]):
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError as error:
            raise EngineError(f"groups of the old weights were still sampled after {self._drain_s:g} s") from error

    async def _swap_to(self, prepared: PreparedWeights, pull_s: float) -> None:
        waited = time.monotonic()
        async with self._nothing_sampled(prepared.run, prepared.kind) as started:
            with tracing.span("swap", run=prepared.run, weights_version=prepared.version):
                read_back = await self._load(prepared)
            self.took(prepared, read_back, SwapTimes(pull_s, started - waited, time.monotonic() - started))

    @asynccontextmanager
    async def exchanging(self, run: str) -> AsyncIterator[float]:
        """The body puts other full weights of ``run`` in the engine and tells of them by ``took``; nothing is sampled.

        What the engine held before is restored when the body fails. Yields when it began, in ``time.monotonic``.
        """
        async with self._turn, self._nothing_sampled(run, "full") as started:
            yield started

    @asynccontextmanager
    async def _nothing_sampled(self, run: str, kind: str) -> AsyncIterator[float]:
        previous, paused = self._weights, self._engine.paused
        goes_on = previous is not None and (previous.run, previous.kind) == (run, kind) and paused is not None
        await self._drained(kept_too=not goes_on)
        started = time.monotonic()
        kept = self._sampling[True]
        async with paused() if kept and paused else nullcontext():
            try:
                yield started
            except MorError as error:
                metrics.SWAPS.labels("failed").inc()
                log.error("swap failed", run=run, reason=str(error))
                await self._restore(previous)
                raise
        metrics.KEPT.inc(kept)

    def took(self, weights: PreparedWeights, read_back: ReadBack, times: SwapTimes) -> None:
        """The engine was seen to compute with ``weights``."""
        self._weights, self.read_back, self.times = weights, read_back, times
        self.swaps += 1
        metrics.SWAPS.labels("done").inc()
        metrics.DRAIN.observe(times.drain_s)
        metrics.SWAP.observe(times.swap_s)
        metrics.VERSION.set(weights.version)
        log.info("weights swapped", run=weights.run, version=weights.version, seconds=round(times.swap_s, 3))

    async def _load(self, weights: PreparedWeights | None) -> ReadBack:
        read_back = await self._engine.load(weights)
        if weights is not None and read_back.digest != weights.digest:
            raise SwapFailed(f"the engine holds {read_back.digest[:12]}, not {weights.digest[:12]}")
        self._weights = weights
        return read_back

    async def _restore(self, previous: PreparedWeights | None) -> None:
        try:
            self.read_back = await self._load(previous)
        except MorError as error:
            self._failure = f"the weights before a failed swap could not be restored: {error}"
