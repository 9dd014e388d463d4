"""Optimiser Muon (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon) in a chosen type of its products.

Deviation: PyTorch's implementation always multiplies in bfloat16, which is slower on a CPU without such products.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Coefficients of the quintic iteration, from the source."""
_ITERATIONS = 5
"""Iterations, as in the source."""


class Muon(torch.optim.Optimizer):
    """SGD with momentum whose updates are made nearly orthogonal; for matrices only."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """``dtype``: type in which updates are made orthogonal; parameters and momentum keep their own."""
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dtype": dtype})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._change(parameter, group)

    def _change(self, parameter: Tensor, options: dict[str, Any]) -> None:
        grad = parameter.grad
        assert grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(grad, 1 - options["momentum"])
        update = orthogonalised(grad.lerp(momentum, options["momentum"]).to(options["dtype"])).to(parameter.dtype)
        rows, columns = parameter.shape
        parameter.mul_(1 - options["lr"] * options["weight_decay"])
        parameter.add_(update, alpha=-options["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix with the same singular vectors and singular values near 1, by a Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if tall else found
