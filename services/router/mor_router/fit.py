"""Slopes and gate, fitted jointly on the anchors.

With d_nk the standardised difference (chosen − rejected) of pair n by client k, w and a as served (``gate.weights``,
``calibration.slopes``):

    L = mean_n −log σ( Σ_k w_k(x_n) a_k(x_n) d_nk )                         the mixture ranks the anchors
      + ρ · mean_k mean_n −log σ( a_k(x_n) d_nk )                           each slope alone is the client's log-odds
      + λ/2N · ( ‖c‖² + ‖T‖² ) + λ₀/2N · ( ‖prior‖² + ‖t − t₀‖² )            Gaussian priors: uniform trust, slope 1

The second term makes the factors of the product w·a identifiable: slopes calibrate, weights trust. From the uniform
start the priors make the problem well conditioned; L-BFGS reaches the same optimum from the same anchors, to rounding.
λ is chosen by cross-validation over anchors, over a random part of them where there are many: what is chosen there
hardly differs, and one fit of 5,000 anchors by 64 clients costs as much as a thousand on 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mor_router.calibration import UNIT
from mor_router.gate import uniform_share

_OWN_CALIBRATION = 0.5
_COMMON_PRECISION = 0.5
_FOLDS = 5
_LEAST_PAIRS = 128
"""Pairs below which none is left out of choices."""
_CHOICE_SCORES = 1 << 15
"""Scores (pairs x clients) that choices are made on at most, then in two folds."""
_MANY_SCORES = 1 << 16
"""Scores (pairs x clients) from which on the last digits of the optimum are given up."""
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
class Parameters:
    embeddings: Float[ndarray, "regions clients"]
    prior: Float[ndarray, " clients"]
    common: Float[ndarray, " clients"]
    regional: Float[ndarray, "regions clients"]

    @classmethod
    def start(cls, regions: int, clients: int) -> Parameters:
        """Uniform trust, slope 1."""
        return cls(
            np.zeros((regions, clients)), np.zeros(clients), np.full(clients, UNIT), np.zeros((regions, clients))
        )

    def flat(self) -> Float[ndarray, " parameters"]:
        return np.concatenate([self.embeddings.ravel(), self.prior, self.common, self.regional.ravel()])

    def like(self, flat: Float[ndarray, " parameters"]) -> Parameters:
        """The inverse of ``flat`` for parameters of this shape; no copy."""
        regions, clients = self.embeddings.shape
        ends = np.cumsum([regions * clients, clients, clients])
        embeddings, prior, common, regional = np.split(flat, ends)
        return Parameters(embeddings.reshape(regions, clients), prior, common, regional.reshape(regions, clients))


@dataclass(frozen=True)
class Fitted:
    parameters: Parameters
    precision: float
    """The λ that was chosen."""
    loss: float
    """Mean Bradley-Terry loss of the mixture on the anchors, nats."""
    held_out_loss: float
    """The same by cross-validation."""
    held_out_accuracy: float
    """Share of the pairs held out that the mixture ranks as labelled, each by a fit that did not see it."""
    held_out_pairs: int
    """Pairs that cross-validation went over."""


@dataclass(frozen=True)
class Frozen:
    """Where a fit begins that leaves some clients as they are."""

    start: Parameters
    free: Bool[ndarray, " clients"]
    """The clients whose parameters are fitted."""


def fit(
    anchors: Anchors,
    *,
    temperature: float,
    entropy_floor: float,
    precisions: Sequence[float] = PRECISIONS,
    frozen: Frozen | None = None,
) -> Fitted:
    """Fit slopes and gate: of all clients, or of those that ``frozen`` leaves free.

    Raises:
        ValueError: fewer pairs than cross-validation folds.
    """
    best, margins = choose(anchors, precisions, temperature, entropy_floor, frozen)
    objective = Objective(anchors, best, temperature, entropy_floor)
    start, free = (frozen.start, frozen.free) if frozen is not None else (objective.start(), None)
    if len(margins) < len(anchors.differences):  # on the part that was enough to choose by, most of the way is cheap
        part = anchors.take(np.random.default_rng(1).permutation(len(anchors.differences))[: len(margins)])
        start = minimise(Objective(part, best, temperature, entropy_floor), start, free=free, rough=True)
    parameters = minimise(objective, start, free=free)
    return Fitted(
        parameters=parameters,
        precision=best,
        loss=_loss_of(objective.margins(parameters)),
        held_out_loss=_loss_of(margins),
        held_out_accuracy=float((margins > 0).mean() + (margins == 0).mean() / 2),
        held_out_pairs=len(margins),
    )


def choose(
    anchors: Anchors,
    precisions: Sequence[float],
    temperature: float,
    entropy_floor: float,
    frozen: Frozen | None = None,
) -> tuple[float, Float[ndarray, " held"]]:
    """The λ whose held-out loss is least, and its held-out margins.

    Raises:
        ValueError: fewer pairs than cross-validation folds.
    """
    pairs = len(anchors.differences)
    if pairs < _FOLDS:
        raise ValueError(f"{pairs} anchor pairs; at least {_FOLDS} are needed to fit")
    order = np.random.default_rng(0).permutation(pairs)
    folds = _FOLDS
    most = _CHOICE_SCORES // anchors.differences.shape[1]
    if pairs > max(most, _LEAST_PAIRS):
        order = order[: max(most, _LEAST_PAIRS)]
        anchors, order, folds = anchors.take(order), np.arange(len(order)), 2
    fold = order % folds
    margins = {precision: np.zeros(len(fold)) for precision in precisions}
    for held in range(folds):
        seen, unseen = anchors.take(fold != held), anchors.take(fold == held)
        for precision in precisions:
            objective = Objective(seen, precision, temperature, entropy_floor)
            start, free = (frozen.start, frozen.free) if frozen is not None else (objective.start(), None)
            found = minimise(objective, start, free=free, rough=True)
            margins[precision][fold == held] = objective.margins(found, unseen)
    best = min(margins, key=lambda precision: (_loss_of(margins[precision]), -precision))
    return best, margins[best]


class Objective:
    """The loss of the module's docstring on one set of anchors, with its gradient."""

    def __init__(self, anchors: Anchors, precision: float, temperature: float, entropy_floor: float) -> None:
        self._anchors = anchors
        self._precision = precision
        self._temperature = temperature
        clients = anchors.differences.shape[1]
        self._shares = np.array([uniform_share(count, entropy_floor) for count in range(clients + 1)])
        self._alone = anchors.answered / np.maximum(anchors.answered.sum(axis=0), 1) / clients

    def start(self) -> Parameters:
        return Parameters.start(self._anchors.responsibilities.shape[1], self._anchors.differences.shape[1])

    @property
    def size(self) -> int:
        """Scores that one evaluation goes over."""
        return int(self._anchors.differences.size)

    def margins(self, at: Parameters, anchors: Anchors | None = None) -> Float[ndarray, " pairs"]:
        """The mixture's log-odds that the chosen response is preferred, on ``anchors`` or its own."""
        anchors = anchors or self._anchors
        trust, share, floor = self._trust(at, anchors)
        own = (anchors.responsibilities @ np.logaddexp(0, at.common + at.regional)) * anchors.differences
        return np.asarray((((1 - share) * trust + floor) * own).sum(axis=1))

    def __call__(self, at: Parameters) -> tuple[float, Parameters]:
        """Loss and gradient."""
        anchors, phi = self._anchors, self._anchors.responsibilities
        pairs = len(anchors.differences)
        raw = at.common + at.regional
        own = (phi @ np.logaddexp(0, raw)) * anchors.differences
        trust, share, floor = self._trust(at, anchors)
        weights = (1 - share) * trust + floor
        surprise, pull = _softplus(-(weights * own).sum(axis=1))
        alone, own_pull = _softplus(-own)
        deviation = at.common - UNIT
        regional = np.square(at.embeddings).sum() + np.square(at.regional).sum()
        common = np.square(at.prior).sum() + np.square(deviation).sum()
        priors = (self._precision * regional + _COMMON_PRECISION * common) / (2 * pairs)
        loss = surprise.mean() + _OWN_CALIBRATION * (alone * self._alone).sum() + priors

        upstream = -pull[:, None] / pairs
        slope = phi.T @ ((upstream * weights - _OWN_CALIBRATION * self._alone * own_pull) * anchors.differences)
        slope *= _softplus(raw)[1]
        gain = (1 - share) * upstream * own
        logits = trust * (gain - (trust * gain).sum(axis=1, keepdims=True)) / self._temperature
        gradient = Parameters(
            embeddings=phi.T @ logits + self._precision / pairs * at.embeddings,
            prior=logits.sum(axis=0) + _COMMON_PRECISION / pairs * at.prior,
            common=slope.sum(axis=0) + _COMMON_PRECISION / pairs * deviation,
            regional=slope + self._precision / pairs * at.regional,
        )
        return float(loss), gradient

    def _trust(
        self, at: Parameters, anchors: Anchors
    ) -> tuple[Float[ndarray, "pairs clients"], Float[ndarray, "pairs 1"], Float[ndarray, "pairs clients"]]:
        """Softmax over those that answered, ε, and the uniform part of the weights."""
        logits = (anchors.responsibilities @ at.embeddings + at.prior) / self._temperature
        logits = np.where(anchors.answered, logits, -1e30)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        count = anchors.answered.sum(axis=1)
        share = self._shares[count][:, None]
        floor = share * anchors.answered / np.maximum(count, 1)[:, None]
        return odds / odds.sum(axis=1, keepdims=True), share, floor


def minimise(
    objective: Objective, start: Parameters, *, free: Bool[ndarray, " clients"] | None = None, rough: bool = False
) -> Parameters:
    """The minimum by L-BFGS. ``free``: clients whose parameters may move; ``rough``: enough to compare choices."""
    mask = None
    if free is not None:
        everywhere = np.broadcast_to(free, start.embeddings.shape)
        mask = Parameters(everywhere, free, free, everywhere).flat()
    point = torch.from_numpy(start.flat().copy()).requires_grad_()
    large = objective.size > _MANY_SCORES
    optimiser = torch.optim.LBFGS(
        [point],
        max_iter=30 if rough else 40 if large else 300,
        tolerance_grad=1e-4 if rough else 1e-6 if large else 1e-10,
        tolerance_change=1e-6 if rough else 1e-9 if large else 1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        loss, gradient = objective(start.like(point.detach().numpy()))
        flat = gradient.flat()
        point.grad = torch.from_numpy(flat if mask is None else flat * mask)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return start.like(point.detach().numpy())


def _softplus(x: Float[ndarray, "*shape"]) -> tuple[Float[ndarray, "*shape"], Float[ndarray, "*shape"]]:
    """log(1 + exp x) and its derivative, from one exponential."""
    small = np.abs(x)
    np.negative(small, out=small)
    np.exp(small, out=small)
    whole = 1 + small
    slope = np.where(x >= 0, 1.0, small)
    slope /= whole
    np.log(whole, out=whole)
    whole += np.maximum(x, 0)
    return whole, slope


def _loss_of(margins: Float[ndarray, " pairs"]) -> float:
    return float(np.logaddexp(0, -margins).mean())
