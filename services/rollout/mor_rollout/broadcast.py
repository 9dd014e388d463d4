"""Full weights that a training process broadcasts to the engine, through vLLM's weight-transfer API.

The trainer drives it by four calls, vLLM's own (``VLLMWeightSyncClient``): enter a group, begin, receive, end. Between
begin and end nothing is sampled. Not tested on hardware, see ``RolloutSettings.weight_transfer``.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from mor_core.auth import Scope, require
from mor_core.errors import Conflict, Invalid, MorError, Unavailable
from mor_core.wire.base import Sha256
from pydantic import BaseModel, ConfigDict, Field

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.vllm.engine import VllmEngine
from mor_rollout.swaps import Policy, SwapTimes
from mor_rollout.weights.base import BaseModel as Base


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Standing(_Schema):
    """This service in a weight transfer."""

    workers: int
    """Ranks that it takes in a group."""
    group: str | None
    """The group that it entered last; null for none."""


class Entry(_Schema):
    group: str
    """Name that the trainer gave the group."""
    init_info: dict[str, Any]
    """As vLLM's ``init_weight_transfer_engine`` takes it."""


class Beginning(_Schema):
    run: str
    base: str
    """Checkpoint that holds every tensor which is not broadcast."""


class Update(_Schema):
    update_info: dict[str, Any]
    """As vLLM's ``update_weights`` takes it: names, types and shapes."""


class End(_Schema):
    run: str
    version: int = Field(ge=0)
    tensors: dict[str, Sha256]
    """SHA-256 of each tensor that was broadcast."""


class Receiver:
    """One transfer at a time; one that is not ended in ``swap_timeout_s`` takes the service with it."""

    def __init__(self, settings: RolloutSettings, base: Base, engine: VllmEngine, policy: Policy) -> None:
        self._settings = settings
        self._base = base
        self._engine = engine
        self._policy = policy
        self._exchange: AsyncExitStack | None = None
        self._begun = 0.0
        self._overdue: asyncio.TimerHandle | None = None
        self._group: str | None = None

    def standing(self) -> Standing:
        return Standing(workers=self._settings.tensor_parallel_size, group=self._group)

    async def enter(self, entry: Entry) -> None:
        self._expect_none()
        self._group = None
        await self._engine.join(entry.init_info)
        self._group = entry.group

    async def begin(self, beginning: Beginning) -> None:
        self._expect_none()
        if not await asyncio.to_thread(self._base.is_same, beginning.base):
            raise Invalid(f"the run trains {beginning.base!r}, this engine holds {self._base.model!r}")
        async with AsyncExitStack() as exchange:
            self._begun = await exchange.enter_async_context(self._policy.exchanging(beginning.run))
            await self._engine.begin_receiving()
            self._exchange = exchange.pop_all()
        limit = self._settings.swap_timeout_s
        reason = f"a weight transfer of {beginning.run} was not ended in {limit:g} s (MOR_SWAP_TIMEOUT_S)"
        self._overdue = asyncio.get_running_loop().call_later(limit, self._engine.give_up, reason)

    async def receive(self, update: Update) -> None:
        try:
            await self._engine.receive(update.update_info)
        except MorError:
            async with self._ending():
                raise

    async def end(self, end: End) -> None:
        async with self._ending():
            weights, read_back = await self._engine.end_receiving(end.run, end.version, end.tensors)
            self._policy.took(weights, read_back, SwapTimes(0.0, 0.0, time.monotonic() - self._begun))

    def _expect_none(self) -> None:
        if self._exchange is not None:
            raise Conflict("a transfer is under way; end it first")

    def _ending(self) -> AsyncExitStack:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            raise Conflict("no transfer was begun")
        if self._overdue is not None:
            self._overdue.cancel()
        return exchange


router = APIRouter(
    prefix="/v1/transfer",
    tags=["weight transfer, not tested on hardware"],
    dependencies=[Depends(require(Scope.service))],
)


async def _receiver(request: Request) -> Receiver:
    receiver: Receiver | None = request.app.state.service.receiver
    if receiver is None:
        raise Unavailable("the engine is not ready", retry_after_s=5)
    return receiver


Receiving = Annotated[Receiver, Depends(_receiver)]


@router.get("", summary="Where the service stands")
async def standing(receiver: Receiving) -> Standing:
    return receiver.standing()


@router.post("/enter", summary="Enter a trainer's group; answers when all have entered")
async def enter(entry: Entry, receiver: Receiving) -> None:
    await receiver.enter(entry)


@router.post("/begin", summary="Pause sampling, to receive a version")
async def begin(beginning: Beginning, receiver: Receiving) -> None:
    await receiver.begin(beginning)


@router.post("/receive", summary="Receive the tensors described; answers when all are there")
async def receive(update: Update, receiver: Receiving) -> None:
    await receiver.receive(update)


@router.post("/end", summary="Compare what came with what is computed with, and sample from it")
async def end(ended: End, receiver: Receiving) -> None:
    await receiver.end(ended)
