"""Reception of full weights that a training process broadcasts to the engine, through vLLM's weight-transfer API.

The trainer makes four calls, those of vLLM's own ``VLLMWeightSyncClient``: enter a group, begin, receive, end. Nothing
is sampled between begin and end. Not tested on hardware, see ``RolloutSettings.weight_transfer``.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from mor_core.auth import Scope, require
from mor_core.errors import Conflict, Invalid, MorError, Unavailable
from mor_core.json_route import UploadRoute
from mor_core.openapi import problems
from mor_core.wire import Documented, Sha256
from pydantic import Field

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.vllm.vllm_engine import VllmEngine
from mor_rollout.swaps import PolicySwapper, SwapTimes
from mor_rollout.weights.base_checkpoint import BaseCheckpoint


class TransferStatus(Documented):
    """Part of this service in weight transfers."""

    workers: int
    """Ranks that the service takes in a group."""
    group: str | None
    """Name of the group that the service entered last; null for none."""


class JoinGroup(Documented):
    group: str
    """Name that the trainer gave the group."""
    init_info: dict[str, Any]
    """Argument of vLLM's ``init_weight_transfer_engine``."""


class BeginTransfer(Documented):
    run: str
    run_attempt: int = Field(default=0, ge=0)
    """Attempt at the run that sends; 0 from a worker of an earlier release."""
    base: str
    """Checkpoint with every tensor that is not broadcast."""


class ReceiveTensors(Documented):
    update_info: dict[str, Any]
    """Argument of vLLM's ``update_weights``: names, types and shapes."""


class EndTransfer(Documented):
    run: str
    version: int = Field(ge=0)
    tensors: dict[str, Sha256]
    """SHA-256 of each tensor that was broadcast."""


class WeightReceiver:
    """Receiver of one weight transfer at a time.

    A transfer that is not ended within ``swap_timeout_s`` fails the engine, because its weights are then unknown.
    """

    def __init__(
        self, settings: RolloutSettings, base: BaseCheckpoint, engine: VllmEngine, swapper: PolicySwapper
    ) -> None:
        self._settings = settings
        self._base = base
        self._engine = engine
        self._swapper = swapper
        self._transfer: AsyncExitStack | None = None
        """Holds sampling stopped while a transfer is in progress."""
        self._begun = 0.0
        self._deadline: asyncio.TimerHandle | None = None
        self._group: str | None = None
        self._attempts: dict[str, int] = {}
        """Run -> latest attempt that has sent."""

    def status(self) -> TransferStatus:
        return TransferStatus(workers=self._settings.tensor_parallel_size, group=self._group)

    async def join(self, request: JoinGroup) -> None:
        """Join a trainer's group. Return when all members have joined."""
        self._check_idle()
        self._group = None
        await self._engine.join_transfer_group(request.init_info)
        self._group = request.group

    async def begin(self, request: BeginTransfer) -> None:
        """Stop sampling and start the deadline of the transfer.

        Raises:
            Conflict: a transfer is in progress, or a later attempt at the run has sent.
        """
        self._check_idle()
        latest = self._attempts.get(request.run, 0)
        if request.run_attempt < latest:
            raise Conflict(
                f"attempt {request.run_attempt} at run {request.run} is superseded: attempt {latest} has sent weights"
            )
        if not await asyncio.to_thread(self._base.is_same, request.base):
            raise Invalid(
                f"the run trains {request.base!r}, this engine has {self._base.model!r};"
                " list a rollout service with the run's model in MOR_TRANSFER_ENGINES"
            )
        async with AsyncExitStack() as transfer:
            self._begun = await transfer.enter_async_context(self._swapper.replacing(request.run))
            await self._engine.begin_transfer()
            self._transfer = transfer.pop_all()
        self._attempts[request.run] = request.run_attempt
        limit = self._settings.swap_timeout_s
        reason = f"a weight transfer of {request.run} was not ended in {limit:g} s (MOR_SWAP_TIMEOUT_S)"
        self._deadline = asyncio.get_running_loop().call_later(limit, self._engine.mark_failed, reason)

    async def receive(self, request: ReceiveTensors) -> None:
        """Receive the tensors of one broadcast. A failure ends the transfer and restores the previous weights."""
        try:
            await self._engine.receive_tensors(request.update_info)
        except MorError:
            async with self._ending():
                raise

    async def end(self, request: EndTransfer) -> None:
        """Verify the received weights and resume sampling with them, or with the previous ones if they differ."""
        async with self._ending():
            weights, read_back = await self._engine.end_transfer(request.run, request.version, request.tensors)
            self._swapper.record_swap(weights, read_back, SwapTimes(0.0, 0.0, time.monotonic() - self._begun))

    def _check_idle(self) -> None:
        if self._transfer is not None:
            raise Conflict("a transfer is in progress; end it first")

    def _ending(self) -> AsyncExitStack:
        transfer, self._transfer = self._transfer, None
        if transfer is None:
            raise Conflict("no transfer is in progress; begin one first")
        if self._deadline is not None:
            self._deadline.cancel()
        return transfer


router = APIRouter(
    prefix="/v1/transfer",
    tags=["weight transfer, not tested on hardware"],
    dependencies=[Depends(require(Scope.service))],
    route_class=UploadRoute,  # a model's tensors are described in one request
    responses=problems(409, 503),
)


async def _receiver(request: Request) -> WeightReceiver:
    receiver: WeightReceiver | None = request.app.state.service.receiver
    if receiver is None:
        raise Unavailable("the engine is not ready; try again", retry_after_s=5)
    return receiver


Receiver = Annotated[WeightReceiver, Depends(_receiver)]


@router.get("", summary="State of the service in weight transfers")
async def transfer_status(receiver: Receiver) -> TransferStatus:
    return receiver.status()


@router.post("/enter", summary="Enter a trainer's group; returns when all members have entered")
async def enter(body: JoinGroup, receiver: Receiver) -> None:
    await receiver.join(body)


@router.post("/begin", summary="Stop sampling, to receive a version")
async def begin(body: BeginTransfer, receiver: Receiver) -> None:
    await receiver.begin(body)


@router.post("/receive", summary="Receive the described tensors; returns when all have arrived")
async def receive(body: ReceiveTensors, receiver: Receiver) -> None:
    await receiver.receive(body)


@router.post("/end", summary="Verify the received weights and sample from them")
async def end(body: EndTransfer, receiver: Receiver) -> None:
    await receiver.end(body)
