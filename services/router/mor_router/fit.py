"""Slopes and gate, fitted jointly on the anchors.

With d_nk the standardised difference (chosen − rejected) of pair n by client k, w and a as served (``gate.weights``,
``calibration.slopes``):

    L = mean_n −log σ( Σ_k w_k(x_n) a_k(x_n) d_nk )                         the mixture ranks the anchors
      + ρ · mean_k mean_n −log σ( a_k(x_n) d_nk )                           each slope alone is the client's log-odds
      + λ/2N · ( ‖c‖² + ‖T‖² ) + λ₀/2N · ( ‖prior‖² + ‖t − t₀‖² )            Gaussian priors: uniform trust, slope 1

The second term makes the factors of the product w·a identifiable: slopes calibrate, weights trust. From the uniform
start the priors make the problem well conditioned; L-BFGS reaches the same optimum from the same anchors, to rounding.
λ is chosen by cross-validation over anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import softplus

from mor_router.calibration import UNIT
from mor_router.gate import uniform_share

_OWN_CALIBRATION = 0.5
_COMMON_PRECISION = 0.5
_FOLDS = 5
PRECISIONS = (0.0625, 0.25, 1.0, 4.0, 16.0)
"""λ to choose from: the precision of a regional deviation from a client's common value."""


@dataclass(frozen=True)
class Anchors:
    """What the fit sees of N anchor pairs and K clients."""

    responsibilities: Float[ndarray, "pairs regions"]
    differences: Float[ndarray, "pairs clients"]
    """Standardised score of the chosen response minus that of the rejected one; 0 where there is none."""
    answered: Bool[ndarray, "pairs clients"]

    def take(self, pairs: Int[ndarray, " some"] | Bool[ndarray, " pairs"]) -> Anchors:
        return Anchors(self.responsibilities[pairs], self.differences[pairs], self.answered[pairs])


@dataclass(frozen=True)
class Fitted:
    embeddings: Float[ndarray, "regions clients"]
    prior: Float[ndarray, " clients"]
    common: Float[ndarray, " clients"]
    regional: Float[ndarray, "regions clients"]
    precision: float
    """The λ that was chosen."""
    loss: float
    """Mean Bradley-Terry loss of the mixture on the anchors, nats."""
    held_out_loss: float
    """The same by cross-validation."""
    held_out_accuracy: float
    """Share of anchors that the mixture ranks as labelled, each by a fit that did not see it."""


def fit(
    anchors: Anchors, *, temperature: float, entropy_floor: float, precisions: Sequence[float] = PRECISIONS
) -> Fitted:
    """Fit slopes and gate.

    Raises:
        ValueError: fewer pairs than cross-validation folds.
    """
    pairs = len(anchors.differences)
    if pairs < _FOLDS:
        raise ValueError(f"{pairs} anchor pairs; at least {_FOLDS} are needed to fit")
    fold = np.random.default_rng(0).permutation(pairs) % _FOLDS
    margins = {precision: _held_out(anchors, fold, precision, temperature, entropy_floor) for precision in precisions}
    losses = {precision: float(np.logaddexp(0, -margin).mean()) for precision, margin in margins.items()}
    best = min(losses, key=lambda precision: (losses[precision], -precision))
    model = _Mixture(anchors, best, temperature, entropy_floor).optimise()
    return Fitted(
        embeddings=_numpy(model.embeddings),
        prior=_numpy(model.prior),
        common=_numpy(model.common),
        regional=_numpy(model.regional),
        precision=best,
        loss=float(np.logaddexp(0, -model.margins(anchors)).mean()),
        held_out_loss=losses[best],
        held_out_accuracy=float((margins[best] > 0).mean() + (margins[best] == 0).mean() / 2),
    )


def _held_out(
    anchors: Anchors, fold: Int[ndarray, " pairs"], precision: float, temperature: float, entropy_floor: float
) -> Float[ndarray, " pairs"]:
    margins = np.zeros(len(fold))
    for held in range(_FOLDS):
        model = _Mixture(anchors.take(fold != held), precision, temperature, entropy_floor).optimise(rough=True)
        margins[fold == held] = model.margins(anchors.take(fold == held))
    return margins


class _Mixture:
    """The parameters, and the loss of the module's docstring on one set of anchors."""

    def __init__(self, anchors: Anchors, precision: float, temperature: float, entropy_floor: float) -> None:
        regions, clients = anchors.responsibilities.shape[1], anchors.differences.shape[1]
        self._anchors = anchors
        self._precision = precision
        self._temperature = temperature
        shares = [uniform_share(count, entropy_floor) for count in range(clients + 1)]
        self._shares = torch.tensor(shares, dtype=torch.float64)
        self.embeddings = torch.zeros(regions, clients, dtype=torch.float64, requires_grad=True)
        self.prior = torch.zeros(clients, dtype=torch.float64, requires_grad=True)
        self.common = torch.full((clients,), UNIT, dtype=torch.float64, requires_grad=True)
        self.regional = torch.zeros(regions, clients, dtype=torch.float64, requires_grad=True)

    def optimise(self, *, rough: bool = False) -> _Mixture:
        """Minimise the loss. ``rough`` is enough to compare one choice with another."""
        data = _tensors(self._anchors)
        optimiser = torch.optim.LBFGS(
            [self.embeddings, self.prior, self.common, self.regional],
            max_iter=40 if rough else 300,
            tolerance_grad=1e-4 if rough else 1e-10,
            tolerance_change=1e-6 if rough else 1e-14,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            optimiser.zero_grad()
            loss = self._loss(*data)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return self

    def margins(self, anchors: Anchors) -> Float[ndarray, " pairs"]:
        """The mixture's log-odds that the chosen response is preferred."""
        with torch.no_grad():
            return _numpy(self._margins(*_tensors(anchors))[0])

    def _margins(
        self,
        responsibilities: Float[Tensor, "pairs regions"],
        differences: Float[Tensor, "pairs clients"],
        answered: Bool[Tensor, "pairs clients"],
    ) -> tuple[Float[Tensor, " pairs"], Float[Tensor, "pairs clients"]]:
        own = (responsibilities @ softplus(self.common + self.regional)) * differences
        logits = (responsibilities @ self.embeddings + self.prior) / self._temperature
        count = answered.sum(dim=1)
        share = self._shares[count].unsqueeze(1)
        weights = (1 - share) * torch.softmax(logits.masked_fill(~answered, -1e30), dim=1)
        weights = weights + share * answered / count.clamp(min=1).unsqueeze(1)
        return (weights * own).sum(dim=1), own

    def _loss(
        self,
        responsibilities: Float[Tensor, "pairs regions"],
        differences: Float[Tensor, "pairs clients"],
        answered: Bool[Tensor, "pairs clients"],
    ) -> Float[Tensor, ""]:
        mixture, own = self._margins(responsibilities, differences, answered)
        alone = (softplus(-own) * answered).sum(dim=0) / answered.sum(dim=0).clamp(min=1)
        regional = self.embeddings.square().sum() + self.regional.square().sum()
        common = self.prior.square().sum() + (self.common - UNIT).square().sum()
        priors = (self._precision * regional + _COMMON_PRECISION * common) / (2 * len(differences))
        return softplus(-mixture).mean() + _OWN_CALIBRATION * alone.mean() + priors


def _tensors(anchors: Anchors) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(anchors.responsibilities),
        torch.from_numpy(anchors.differences),
        torch.from_numpy(anchors.answered),
    )


def _numpy(tensor: Tensor) -> ndarray:
    return np.asarray(tensor.detach().numpy())
