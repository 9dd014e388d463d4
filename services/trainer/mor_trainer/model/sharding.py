"""Models in one piece, or in shards over ranks (FSDP2, arXiv 2304.11277, ``torch.distributed.fsdp.fully_shard``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from mor_trainer.model.loading import decoder_of
from mor_trainer.ranks import Ranks

T = TypeVar("T")


class ShardedModel(nn.Module):
    """A model whose parameters may be in shards over ranks, and are gathered for the time of a call.

    All that is computed with the language model goes through a call. The backward pass gathers again the parameters
    that it needs.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def __call__(self, compute: Callable[[Any], T]) -> T:
        result: T = super().__call__(compute)
        return result

    def forward(self, compute: Callable[[Any], T]) -> T:
        return compute(self.model)


def replicated_parameters(model: Any) -> set[str]:
    """Return the names of the parameters that every rank keeps whole: frozen ones outside the language model.

    They are those of a frozen vision tower. One rank can then compute the features of a picture without the others.
    """
    language = {id(p) for p in (*decoder_of(model).parameters(), *model.get_output_embeddings().parameters())}
    return {name for name, p in model.named_parameters() if not p.requires_grad and id(p) not in language}


def shard(model: Any, ranks: Ranks, replicated: set[str]) -> ShardedModel:
    """Move ``model`` to the ranks' devices, in shards where there are several ranks.

    Each layer of the language model is a unit, gathered and freed by itself. Gradients are summed over ranks, not
    averaged: token weights of the loss are those of the whole update. The parameters named in ``replicated`` are not
    divided.
    """
    if ranks.mesh is None:
        model.to(ranks.device)
        return ShardedModel(model)
    from torch.distributed.fsdp import FSDPModule, fully_shard

    ignored = {parameter for name, parameter in model.named_parameters() if name in replicated}
    for parameter in ignored:
        parameter.data = parameter.data.to(ranks.device)
    units = [m for m in decoder_of(model).modules() if type(m).__name__ in set(model._no_split_modules or ())]
    root = ShardedModel(model)
    for unit in (*units, root):
        fully_shard(unit, mesh=ranks.mesh, reshard_after_forward=True, ignored_params=ignored)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply as it sums
            module.set_reduce_scatter_unused_params(True, recurse=False)  # a rank's prompts may have no picture
    return root


def reset(sharded: ShardedModel) -> None:
    """Make a model usable again after a call that failed on every rank at the same place."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(sharded, FSDPModule):
        sharded.reset_iter_state()


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be in shards; all ranks call it together."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
