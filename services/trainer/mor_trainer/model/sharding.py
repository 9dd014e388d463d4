"""A model in one piece, or in shards over ranks (FSDP2, arXiv 2304.11277, ``torch.distributed.fsdp.fully_shard``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from mor_trainer.model.loading import decoder_of
from mor_trainer.ranks import Ranks

T = TypeVar("T")


class Whole(nn.Module):
    """A model whose parameters are whole within a call, and may be in shards outside.

    Whatever is computed with the language model goes through here: its parameters are gathered for a call, and what the
    backward pass needs of them is gathered then.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def __call__(self, compute: Callable[[Any], T]) -> T:
        result: T = super().__call__(compute)
        return result

    def forward(self, compute: Callable[[Any], T]) -> T:
        return compute(self.model)


def beside(model: Any) -> set[str]:
    """Names of the parameters that every rank keeps whole: frozen ones outside the language model, as those of a frozen
    vision tower. Features of a picture are then computed by one rank without the others."""
    language = {id(p) for p in (*decoder_of(model).parameters(), *model.get_output_embeddings().parameters())}
    return {name for name, p in model.named_parameters() if not p.requires_grad and id(p) not in language}


def place(model: Any, ranks: Ranks, whole: set[str]) -> Whole:
    """Move ``model`` to the ranks' devices: one layer of the language model is a unit, gathered and freed at a time.

    Gradients are summed over ranks, not averaged: shares of the loss are those of the whole update. The parameters
    named in ``whole`` are not divided.
    """
    if ranks.mesh is None:
        model.to(ranks.device)
        return Whole(model)
    from torch.distributed.fsdp import FSDPModule, fully_shard

    ignored = {parameter for name, parameter in model.named_parameters() if name in whole}
    for parameter in ignored:
        parameter.data = parameter.data.to(ranks.device)
    units = [m for m in decoder_of(model).modules() if type(m).__name__ in set(model._no_split_modules or ())]
    root = Whole(model)
    for unit in (*units, root):
        fully_shard(unit, mesh=ranks.mesh, reshard_after_forward=True, ignored_params=ignored)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply as it sums
            module.set_reduce_scatter_unused_params(True, recurse=False)  # a rank's prompts may have no picture
    return root


def recover(whole: Whole) -> None:
    """Make a model usable again after a call that failed on every rank at the same place."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(whole, FSDPModule):
        whole.reset_iter_state()


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be in shards; all ranks call it together."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
