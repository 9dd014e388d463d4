"""vLLM's ``nccl`` weight transfer with gloo in NCCL's place: the same calls in the same order, on CPUs.

Only the device's part is replaced: how a group is joined and how a tensor is broadcast. vLLM's worker imports this
module too, for the worker extension.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mor_rollout.engines.vllm.worker_extension import WeightsExtension
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine, NCCLWeightTransferEngine

_TIMEOUT = timedelta(seconds=30)


class Group:
    """Replacement of a ``PyNcclCommunicator``."""

    def __init__(self, info: Any, rank: int) -> None:
        store = dist.TCPStore(info.master_address, info.master_port, info.world_size, rank == 0, _TIMEOUT)
        self._group = dist.ProcessGroupGloo(store, rank, info.world_size, _TIMEOUT)

    def broadcast(self, tensor: Tensor, src: int) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self._group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        del self._group


class GlooEngine(NCCLWeightTransferEngine):  # type: ignore[misc]
    def init_transfer_engine(self, init_info: Any) -> None:
        self.model_update_group = Group(init_info, init_info.rank_offset + self.parallel_config.rank)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Any) -> None:
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            self.model_update_group.broadcast(weight, src=0)
            self.model.load_weights([(name, weight)])


class GlooTrainer(NCCLTrainerWeightTransferEngine):  # type: ignore[misc]
    damage: Callable[[str, Tensor], Tensor] = staticmethod(lambda name, tensor: tensor)

    def _broadcast(self, source: Any, meta: Any) -> None:
        for name, tensor in self._checked_iter(source, meta):
            self.model_update_group.broadcast(self.damage(name, tensor).contiguous(), src=0)


class GlooWeightsExtension(WeightsExtension):
    """The worker extension, unchanged."""


WeightTransferEngineFactory._registry["nccl"] = lambda: GlooEngine
