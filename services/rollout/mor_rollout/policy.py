"""The policy in use: which weights the engine holds, who samples from them, and when they are swapped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from mor_core import tracing
from mor_core.errors import MorError
from mor_core.wire import WeightsRef

from mor_rollout import metrics
from mor_rollout.config import RolloutSettings
from mor_rollout.engine import Engine, EngineError, ReadBack, SwapFailed, gone
from mor_rollout.weights import PreparedWeights, WeightsStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SwapTimes:
    """How long the last swap took, seconds."""

    pull_s: float
    drain_s: float
    swap_s: float


class Policy:
    """Lets many sample at once from one version, and one swap at a time when nobody samples.

    Turns are taken in order of arrival: who needs other weights waits until the groups before it are done, and who
    comes after it waits for the swap, so every token of a group is of one version and no version starves.
    """

    def __init__(self, settings: RolloutSettings, engine: Engine, store: WeightsStore) -> None:
        self._engine = engine
        self._store = store
        self._drain_s = settings.generate_timeout_s + settings.swap_timeout_s
        self._turn = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._sampling = 0
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
    async def sampling(self, run: str, ref: WeightsRef) -> AsyncIterator[int]:
        """Holds ``ref`` or a newer version of ``run`` in the engine for the length of the body; yields its version.

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
            self._enter()
        try:
            yield version
        finally:
            self._leave()

    @asynccontextmanager
    async def sampling_current(self) -> AsyncIterator[None]:
        """Keeps whatever the engine holds for the length of the body."""
        async with self._turn:
            self._enter()
        try:
            yield
        finally:
            self._leave()

    def _serves(self, run: str, ref: WeightsRef) -> bool:
        return self._weights is not None and self._weights.run == run and self._weights.version >= ref.version

    def _enter(self) -> None:
        if self.failure is not None:
            raise gone(self._engine) if self._failure is None else EngineError(self._failure)
        self._sampling += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._sampling -= 1
        if self._sampling == 0:
            self._idle.set()

    async def _swap_to(self, prepared: PreparedWeights, pull_s: float) -> None:
        waited = time.monotonic()
        try:
            async with asyncio.timeout(self._drain_s):
                await self._idle.wait()
        except TimeoutError as error:
            raise EngineError(f"groups of the old weights were still sampled after {self._drain_s:g} s") from error
        started = time.monotonic()
        previous = self._weights
        try:
            with tracing.span("swap", run=prepared.run, weights_version=prepared.version):
                self.read_back = await self._load(prepared)
        except MorError as error:
            metrics.SWAPS.labels("failed").inc()
            log.error("swap failed", run=prepared.run, version=prepared.version, reason=str(error))
            await self._restore(previous)
            raise
        self.swaps += 1
        self.times = SwapTimes(pull_s, started - waited, time.monotonic() - started)
        metrics.SWAPS.labels("done").inc()
        metrics.DRAIN.observe(self.times.drain_s)
        metrics.SWAP.observe(self.times.swap_s)
        metrics.VERSION.set(prepared.version)
        log.info("weights swapped", run=prepared.run, version=prepared.version, seconds=round(self.times.swap_s, 3))

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
