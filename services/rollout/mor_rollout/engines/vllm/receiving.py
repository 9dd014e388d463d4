"""What a weight transfer does to the vLLM engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mor_rollout.engines.protocol import ReadBack, SwapFailed
from mor_rollout.weights import checkpoint
from mor_rollout.weights.base import BaseModel
from mor_rollout.weights.pull import PreparedWeights

UNKNOWN = "unknown"
"""In the place of a tensor's hash."""


class Receiving:
    """Part of ``mor_rollout.engines.vllm.engine.VllmEngine``: takes full weights that a trainer broadcasts."""

    _engine: Any
    _adapter: Any
    _base: BaseModel
    _loaded: PreparedWeights | None
    _noise: int | None
    _held: dict[str, str]
    _before: dict[str, str]
    _broadcast: frozenset[str]
    _failure: str | None
    _call: Any
    _in_time: Any
    _forget: Any
    _label: Any
    _swap: Any
    _digest: Any
    read_back: Any

    async def join(self, init_info: dict[str, Any]) -> None:
        """Enter a trainer's group, out of an earlier one; returns when all of the group have entered."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._in_time("leaving a group", self._engine.shutdown_weight_transfer_engine())
        request = WeightTransferInitRequest(init_info=init_info)
        await self._in_time("entering a group", self._engine.init_weight_transfer_engine(request))

    async def begin_receiving(self) -> None:
        """From here to ``end_receiving`` nothing is sampled, and the engine holds no version."""
        self._before, self._held = self._held, dict.fromkeys(self._held, UNKNOWN)
        await self._call("mor_begin_transfer")

    async def receive(self, update_info: dict[str, Any]) -> None:
        """Take what the group broadcasts next, as ``update_info`` describes it."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        request = WeightTransferUpdateRequest(update_info=update_info)
        await self._in_time("receiving weights", self._engine.update_weights(request))

    async def end_receiving(self, run: str, version: int, sums: Mapping[str, str]) -> tuple[PreparedWeights, ReadBack]:
        """The version that was received, ``sums`` the SHA-256 of each of its tensors.

        Raises:
            SwapFailed: other tensors came, or the engine does not compute with them.
        """
        report = (await self._call("mor_end_transfer"))[0]
        if report["received"] != dict(sums):
            wrong = sorted({name for name, _ in report["received"].items() ^ sums.items()})
            raise SwapFailed(f"tensor {wrong[0]!r} did not come as it was sent, of {len(wrong)} such")
        if report["mismatched"]:
            raise SwapFailed(f"{report['mismatched'][0]} does not compute with the weights that came")
        self._broadcast, self._adapter, self._noise = frozenset(sums), None, None
        await self._take_the_rest_from_the_base(sums)
        self._loaded = PreparedWeights(run, version, "full", None, {}, self._digest())
        await self._in_time("emptying the caches", self._forget(sums))
        read_back = await self.read_back(names=[])
        await self._label(self._loaded)
        return self._loaded, read_back

    async def _take_the_rest_from_the_base(self, sums: Mapping[str, str]) -> None:
        """What was not broadcast is the base's: the version before may have changed it."""
        base = self._base.tensors
        held = {name: source.sha256 for name, source in base.items()} | dict(sums)
        changed = [name for name in base if name not in sums and self._before[name] != held[name]]
        files = {name: base[name].file for name in checkpoint.with_units(base, changed)}
        if not sums.keys().isdisjoint(files):
            raise SwapFailed(f"{changed[0]!r} is of another version and in one layer with what was broadcast")
        await self._swap(files, held, changed)
        self._held = held

    def give_up(self, reason: str) -> None:
        """Nobody knows what the engine computes with: the service restarts."""
        self._failure = reason
