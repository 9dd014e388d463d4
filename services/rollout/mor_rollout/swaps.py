"""Weight swaps: coordination of sampling with the replacement of the engine's weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass

import structlog
from mor_core import tracing
from mor_core.errors import MorError
from mor_core.failures import quote_failure
from mor_core.wire import WeightsRef

from mor_rollout import metrics
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import Engine, EngineError, ReadBack, SwapFailed, engine_stopped
from mor_rollout.weights.pull import PreparedWeights, WeightsStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SwapTimes:
    """Durations of one swap, seconds."""

    pull_s: float
    drain_s: float
    swap_s: float


class PolicySwapper:
    """Coordinator of sampling and weight swaps. Many groups sample at once; swaps run one by one in order of arrival.

    A swap waits until two kinds of groups have ended: those of another run, and those that are not interruptible.
    Interruptible groups are paused during the swap and continue under the newer version, if the engine can pause.
    Groups that arrive later wait for the swap, so no version starves.
    """

    def __init__(self, settings: RolloutSettings, engine: Engine, store: WeightsStore) -> None:
        self._engine = engine
        self._store = store
        # A group ends within the first limit; the second is a margin.
        self._drain_s = settings.generate_timeout_s + settings.swap_timeout_s
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        self._sampling = {True: 0, False: 0}
        """Number of groups that are being sampled, by whether they are interruptible."""
        self._weights: PreparedWeights | None = None
        self._newest: dict[str, WeightsRef] = {}
        """Newest version that was loaded, by run."""
        self._failure: str | None = None
        self.read_back: ReadBack | None = None
        self.swaps = 0
        self.times: SwapTimes | None = None

    @property
    def failure(self) -> str | None:
        """Reason why nothing can be sampled any more; ``None`` while sampling works."""
        return self._failure or self._engine.failure

    @property
    def run(self) -> str | None:
        """Run whose policy the engine holds; ``None`` for the base checkpoint."""
        return self._weights.run if self._weights else None

    @property
    def version(self) -> int | None:
        """Version that the engine holds; ``None`` for the base checkpoint."""
        return self._weights.version if self._weights else None

    @asynccontextmanager
    async def sampling(self, run: str, ref: WeightsRef, *, interruptible: bool = False) -> AsyncIterator[int]:
        """Load ``ref`` or a newer version of ``run`` if needed, keep it for the body and yield its version.

        With ``interruptible`` a newer version may replace it during the body. The spans of the responses record which
        version sampled which tokens.

        Raises:
            WeightsError: the version cannot be downloaded. The engine keeps its weights.
            SwapFailed: the engine did not load the version.
            EngineError: groups of the old version did not end in time.
        """
        newest = self._newest.get(run)
        if newest is None or newest.version < ref.version:
            newest = ref
        started = time.monotonic()
        with ExitStack() as kept:
            prepared = None
            if not self._serves(run, newest):
                prepared = await self._pull(run, newest, kept)
                metrics.PULL.observe(time.monotonic() - started)
            async with self._turn:
                if not self._serves(run, ref):
                    prepared = prepared or await self._pull(run, newest, kept)
                    await self._swap_to(prepared, time.monotonic() - started)
                    self._newest[run] = newest
                version = self.version
                assert version is not None
                self._enter(interruptible)
        try:
            yield version
        finally:
            self._leave(interruptible)

    async def _pull(self, run: str, ref: WeightsRef, kept: ExitStack) -> PreparedWeights:
        """Download a version, which stays on this machine until ``kept`` ends, however long its turn takes to come."""
        prepared = await self._store.pull(run, ref, in_use=self._weights.folder if self._weights else None)
        if prepared.folder is not None:
            kept.enter_context(self._store.protected(prepared.folder))
        return prepared

    @asynccontextmanager
    async def sampling_current(self) -> AsyncIterator[None]:
        """Keep the engine's present weights for the body."""
        async with self._turn:
            self._enter(interruptible=False)
        try:
            yield
        finally:
            self._leave(interruptible=False)

    def _serves(self, run: str, ref: WeightsRef) -> bool:
        return self._weights is not None and self._weights.run == run and self._weights.version >= ref.version

    def _enter(self, interruptible: bool) -> None:
        if self.failure is not None:
            raise engine_stopped(self._engine) if self._failure is None else EngineError(self._failure)
        self._sampling[interruptible] += 1

    def _leave(self, interruptible: bool) -> None:
        self._sampling[interruptible] -= 1
        self._left.set()

    async def _drain(self, *, interruptible_too: bool) -> None:
        """Wait until the groups that a swap cannot pause have ended."""
        try:
            async with asyncio.timeout(self._drain_s):
                while self._sampling[False] or (interruptible_too and self._sampling[True]):
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError as error:
            raise EngineError(
                f"groups of the old weights were still being sampled after {self._drain_s:g} s"
                " (MOR_GENERATE_TIMEOUT_S and MOR_SWAP_TIMEOUT_S); raise these limits or sample fewer tokens"
            ) from error

    async def _swap_to(self, prepared: PreparedWeights, pull_s: float) -> None:
        waited = time.monotonic()
        async with self._sampling_stopped(prepared.run, prepared.kind) as started:
            with tracing.span("swap", run=prepared.run, weights_version=prepared.version):
                read_back = await self._load(prepared)
            self.record_swap(prepared, read_back, SwapTimes(pull_s, started - waited, time.monotonic() - started))

    @asynccontextmanager
    async def replacing(self, run: str) -> AsyncIterator[float]:
        """Stop sampling while the body puts other full weights of ``run`` in the engine and calls ``record_swap``.

        If the body fails, the previous weights are restored. Yields the start time, by ``time.monotonic``.
        """
        async with self._turn, self._sampling_stopped(run, "full") as started:
            yield started

    @asynccontextmanager
    async def _sampling_stopped(self, run: str, kind: str) -> AsyncIterator[float]:
        previous, paused = self._weights, self._engine.paused
        continues = previous is not None and (previous.run, previous.kind) == (run, kind) and paused is not None
        await self._drain(interruptible_too=not continues)
        started = time.monotonic()
        interrupted = self._sampling[True]
        async with paused() if interrupted and paused else nullcontext():
            try:
                yield started
            except MorError as error:
                metrics.SWAPS.labels("failed").inc()
                log.error("swap failed", run=run, reason=str(error))
                await self._restore(previous)
                raise
        metrics.KEPT.inc(interrupted)

    def record_swap(self, weights: PreparedWeights, read_back: ReadBack, times: SwapTimes) -> None:
        """Record that the engine computes with ``weights``."""
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
            raise SwapFailed(f"the engine holds weights {read_back.digest[:12]}, expected {weights.digest[:12]}")
        self._weights = weights
        return read_back

    async def _restore(self, previous: PreparedWeights | None) -> None:
        try:
            self.read_back = await self._load(previous)
        except MorError as error:
            self._failure = f"the weights could not be restored after a failed swap: {quote_failure(error)}"
