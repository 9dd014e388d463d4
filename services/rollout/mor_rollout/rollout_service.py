"""Start, state and shutdown of the rollout service."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import time
from dataclasses import asdict
from typing import Any

import structlog
from mor_core import service_info
from mor_core.background import in_background
from mor_core.disk_full import export_room
from mor_core.errors import MorError, Unavailable
from mor_core.failures import describe_failure, quote_failure
from mor_core.redis_permissions import RedisPermissions
from mor_core.streams import connect
from mor_core.tasks import is_cancelled, stop
from redis.asyncio import Redis

from mor_rollout import environment
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import Engine
from mor_rollout.engines.self_test import self_test
from mor_rollout.engines.vllm.native_libraries import import_failure
from mor_rollout.engines.vllm.vllm_engine import VllmEngine
from mor_rollout.group_sampler import GroupSampler
from mor_rollout.limits_report import report_limits
from mor_rollout.rollout_stage import RolloutStage
from mor_rollout.swaps import PolicySwapper
from mor_rollout.weight_receiver import WeightReceiver
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.pull import WeightsStore

log = structlog.get_logger(__name__)


class RolloutService:
    """The parts of a running rollout service.

    They start in the background, so that the service answers health checks meanwhile. In order: base checkpoint,
    ``PromptCodec``, engine, self-test, ``WeightsStore``, ``PolicySwapper``, ``WeightReceiver`` (with vLLM),
    ``GroupSampler``, ``RolloutStage``.
    """

    def __init__(self, settings: RolloutSettings) -> None:
        self.settings = settings
        self.state = "starting"
        self.failure: str | None = None
        """Reason why the service stopped itself."""
        self.engine: Engine | None = None
        self.swapper: PolicySwapper | None = None
        self.codec: PromptCodec | None = None
        self.sampler: GroupSampler | None = None
        self.stage: RolloutStage | None = None
        self.receiver: WeightReceiver | None = None
        self._redis: Redis | None = None
        self._permissions: RedisPermissions | None = None
        self._store: WeightsStore | None = None
        self._task: asyncio.Task[None] | None = None
        export_room({"pulled weights": settings.weights_dir})

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="rollout service")

    async def _run(self) -> None:
        try:
            await self._bring_up()
            assert self.stage is not None and self.swapper is not None
            self.state = "ready"
            async with in_background(others=[functools.partial(report_limits, self.settings)]):
                await self.stage.work()
            self.failure = self.swapper.failure
        except MorError as error:
            self.failure = str(error)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled():
                raise
            log.error("the service failed", exc_info=error)
            self.failure = describe_failure(error) if self.state == "ready" else quote_failure(error)
        self.state = "failed"
        log.critical("the rollout service stops", reason=self.failure)
        os.kill(os.getpid(), signal.SIGTERM)

    async def _bring_up(self) -> None:
        settings = self.settings
        environment.prepare(settings)
        started = time.monotonic()
        base = await asyncio.to_thread(BaseCheckpoint, settings.model)
        codec = await asyncio.to_thread(PromptCodec, settings, base)
        engine = _engine(settings, base, codec)
        self.engine = engine
        await engine.start()
        log.info("engine started", backend=engine.name, seconds=round(time.monotonic() - started, 1))
        if settings.self_test:
            self.state = "self-test"
            await self_test(settings, engine)
        self._store = WeightsStore(settings, base)
        self._redis = connect(settings)
        self._permissions = RedisPermissions(self._redis, "rollout")
        swapper = PolicySwapper(settings, engine, self._store)
        swapper.read_back = await engine.read_back()
        self.codec, self.swapper = codec, swapper
        if isinstance(engine, VllmEngine):
            self.receiver = WeightReceiver(settings, base, engine, swapper)
        self.sampler = GroupSampler(settings=settings, engine=engine, codec=codec, swapper=swapper)
        self.stage = RolloutStage(settings=settings, redis=self._redis, base=base, sampler=self.sampler)

    async def started(self) -> str | None:
        """Return the reason why the engine has not started; ``None`` once it has, whatever else is away."""
        return None if self.state == "ready" else f"{self.state}{f': {self.failure}' if self.failure else ''}"

    async def ready(self) -> str | None:
        """Return the reason why no groups can be sampled; ``None`` if they can."""
        if (starting := await self.started()) is not None or self.swapper is None:
            return starting
        return self.swapper.failure or (self.codec.calls.problem if self.codec is not None else None)

    async def stream_server(self) -> str | None:
        """Return the reason why the stream server cannot be used; ``None`` if it replies."""
        if self._redis is None:
            return "not connected yet"
        await self._redis.ping()
        if self._permissions is not None and (lacking := await self._permissions.missing()) is not None:
            return lacking
        return self.stage.problem if self.stage is not None else None

    async def host_info(self) -> service_info.HostInfo:
        """Return the machine's disks, devices and queue server for ``/v1/about``."""
        on_cuda = self.settings.device == "cuda"
        return service_info.HostInfo(
            disks=service_info.disks({"pulled weights": self.settings.weights_dir}),
            devices=service_info.cuda_devices() if on_cuda else (service_info.Device(name="cpu"),),
            queue_server=await service_info.queue_server(self._redis) if self._redis is not None else None,
        )

    def sampling_parts(self) -> tuple[Engine, PolicySwapper, PromptCodec]:
        """Return the engine, the swapper and the codec for a chat completion.

        Raises:
            Unavailable: the engine is not ready.
        """
        if self.state != "ready" or self.engine is None or self.swapper is None or self.codec is None:
            raise Unavailable(f"the engine is not ready ({self.state}); try again", retry_after_s=5)
        return self.engine, self.swapper, self.codec

    def status(self) -> dict[str, Any]:
        swapper, sampler, stage = self.swapper, self.sampler, self.stage
        read_back = swapper.read_back if swapper else None
        return {
            "state": self.state,
            "failure": self.failure,
            "model": self.settings.model,
            "backend": self.settings.backend,
            "dtype": self.settings.dtype,
            "run": swapper.run if swapper else None,
            "weights_version": swapper.version if swapper else None,
            "weights": asdict(read_back) if read_back else None,
            "swaps": swapper.swaps if swapper else 0,
            "last_swap": asdict(swapper.times) if swapper and swapper.times else None,
            "groups_in_flight": stage.in_flight if stage else 0,
            "tokens_per_second": round(sampler.tokens_per_second, 1) if sampler else None,
        }

    async def close(self) -> None:
        if self._task is not None:
            await stop([self._task])
        if self._store is not None:
            await self._store.aclose()
        if self.engine is not None:
            await self.engine.close()
        if self._redis is not None:
            await self._redis.aclose()


def _engine(settings: RolloutSettings, base: BaseCheckpoint, codec: PromptCodec) -> Engine:
    if settings.backend == "transformers":
        from mor_rollout.engines.transformers_engine import TransformersEngine

        return TransformersEngine(settings, base, codec)
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise import_failure(error) from error
    return VllmEngine(settings, base, codec)
