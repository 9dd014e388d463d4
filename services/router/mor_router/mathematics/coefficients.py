"""Joint fit of the coefficients θ on the anchors: logistic stacking whose coefficients depend on the input.

Deviations: stacking (Wolpert 1992) has one coefficient a client, MoR (arXiv 2602.00485) trains a router; here a
client's coefficient varies with the input, is never negative, and has a prior of its own width (``prior_widths``).

With d_nk the standardised difference (chosen − rejected) of pair n by client k, ψ the features of
``regional_slopes``:

    L(θ) = Σ_n −log σ( Σ_k ψ(x_n)·θ_k d_nk ) + λ/2 Σ_jk θ_jk² / g_jk²       θ ≥ 0

ψ(x)·θ_k is the posterior mode of a varying coefficient under half-normal priors of widths g. With θ = g φ,
L − λ/2 ‖φ‖² is convex. So there is one optimum, at most ‖∇‖/λ away from a point φ, where ∇ is the gradient at φ without
the entries that pull a φ = 0 below 0. Cross-validation over anchors chooses λ, over a random part of them where there
are many: the largest λ whose held-out loss is within a standard error of the least (Breiman et al. 1984).

θ ≥ 0: no client's scores are ever inverted. Breiman (1996) found that the same constraint pays in stacking. Here it
also keeps a client from gaining weight by scoring the opposite of what it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mor_router.mathematics.prior_widths import widths

Coefficients = Float[ndarray, "features clients"]

PRECISIONS = (1.0, 3.0)
"""Candidates for λ."""

_FOLDS = 5
"""Folds of cross-validation; two where only a part of the pairs is used."""
_LEAST_PAIRS = 128
"""Pairs up to which cross-validation uses all."""
_CHOICE_SCORES = 1 << 15
"""Most scores (pairs x clients) in cross-validation: beyond that λ is chosen on a random part, to bound the time."""
_MANY_SCORES = 1 << 16
"""Scores (pairs x clients) above which the optimum is found to fewer digits, to bound the time of a fit."""
_MOST_STEPS = 1000
"""Bound on the steps of the minimiser, which ends far earlier."""
_MEMORY = 8
"""Latest losses among which the line search may rise (non-monotone search)."""


@dataclass(frozen=True)
class Anchors:
    """Data of a fit: N anchor pairs scored by K clients."""

    features: Float[ndarray, "pairs features"]
    differences: Float[ndarray, "pairs clients"]
    """Standardised score of the chosen response minus that of the rejected one; 0 where there is none."""
    known: Float[ndarray, " pairs"]
    """Log-odds from clients whose coefficients stay fixed."""

    def take(self, pairs: Int[ndarray, " some"] | Bool[ndarray, " pairs"]) -> Anchors:
        """Return some of the pairs."""
        return Anchors(self.features[pairs], self.differences[pairs], self.known[pairs])

    def penalised_loss(self) -> PenalisedLoss:
        """Return the loss on these anchors, with the prior widths that they imply."""
        return PenalisedLoss(self, widths(self.features, self.differences, self.known))

    def margins(self, coefficients: Coefficients) -> Float[ndarray, " pairs"]:
        """Compute the mixture's log-odds that the chosen response is preferred."""
        return np.asarray(self.known + ((self.features @ coefficients) * self.differences).sum(axis=1))


@dataclass(frozen=True)
class PenalisedLoss:
    """L on some anchors, with the widths of the priors."""

    anchors: Anchors
    widths: Coefficients

    def loss_and_gradient(self, at: Coefficients, precision: float) -> tuple[float, Coefficients]:
        """Compute L and its gradient at φ = ``at``."""
        anchors = self.anchors
        margins = anchors.margins(self.widths * at)
        small = np.exp(-np.abs(margins))
        surprise = np.log1p(small) + np.maximum(-margins, 0)
        wrong = np.where(margins >= 0, small, 1.0) / (1 + small)
        loss = surprise.sum() + precision / 2 * np.square(at).sum()
        pull = anchors.features.T @ (wrong[:, None] * anchors.differences)
        return float(loss), precision * at - self.widths * pull


@dataclass(frozen=True)
class FitResult:
    """Coefficients of a fit, and how well they predict the anchors' labels."""

    coefficients: Coefficients
    precision: float
    """The chosen λ."""
    loss: float
    """Mean Bradley-Terry loss of the mixture on the anchors, nats."""
    held_out_loss: float
    """Mean Bradley-Terry loss by cross-validation, nats."""
    held_out_accuracy: float
    """Share of the held-out pairs that the mixture ranks as labelled, each by a fit that did not see it."""
    held_out_pairs: int
    """Pairs used in cross-validation."""


def fit(anchors: Anchors, *, precisions: Sequence[float] = PRECISIONS) -> FitResult:
    """Fit θ at the λ of ``choose``.

    Raises:
        ValueError: fewer pairs than cross-validation folds.
    """
    best, margins = choose(anchors, precisions)
    large = anchors.differences.size > _MANY_SCORES
    penalised, start = anchors.penalised_loss(), None
    if len(margins) < len(anchors.differences):  # start on the smaller part, where steps are cheap
        part = anchors.take(np.random.default_rng(1).permutation(len(anchors.differences))[: len(margins)])
        start = minimise(replace(penalised, anchors=part), best, tolerance=1e-1)
    coefficients = penalised.widths * minimise(penalised, best, start=start, tolerance=1e-2 if large else 1e-9)
    return FitResult(
        coefficients=coefficients,
        precision=best,
        loss=_loss_of(anchors.margins(coefficients)),
        held_out_loss=_loss_of(margins),
        held_out_accuracy=float((margins > 0).mean() + (margins == 0).mean() / 2),
        held_out_pairs=len(margins),
    )


def choose(anchors: Anchors, precisions: Sequence[float]) -> tuple[float, Float[ndarray, " held"]]:
    """Choose the largest λ whose held-out loss is within a standard error of the least; return its held-out margins.

    Raises:
        ValueError: fewer pairs than cross-validation folds.
    """
    pairs = len(anchors.differences)
    if pairs < _FOLDS:
        raise ValueError(f"got {pairs} anchor pairs; at least {_FOLDS} are needed to fit")
    order = np.random.default_rng(0).permutation(pairs)
    folds = _FOLDS
    most = _CHOICE_SCORES // anchors.differences.shape[1]
    if pairs > max(most, _LEAST_PAIRS):
        order = order[: max(most, _LEAST_PAIRS)]
        anchors, order, folds = anchors.take(order), np.arange(len(order)), 2
    fold = order % folds
    margins = {precision: np.zeros(len(fold)) for precision in precisions}
    for held in range(folds):
        seen, unseen, start = anchors.take(fold != held).penalised_loss(), anchors.take(fold == held), None
        for precision in sorted(precisions, reverse=True):
            start = minimise(seen, precision, start=start, tolerance=1e-3)
            margins[precision][fold == held] = unseen.margins(seen.widths * start)
    least = min(margins.values(), key=_loss_of)
    chosen = max(precision for precision in precisions if _no_worse(margins[precision], least))
    return chosen, margins[chosen]


def minimise(
    penalised: PenalisedLoss, precision: float, *, start: Coefficients | None = None, tolerance: float = 1e-9
) -> Coefficients:
    """Find a φ where no entry of ∇ exceeds ``tolerance``.

    Spectral projected gradients (Birgin, Martínez & Raydan 2000): steps of Barzilai and Borwein's length, and a
    line search that lets the loss rise for a while.
    """
    at = np.zeros_like(penalised.widths) if start is None else start
    loss, gradient = penalised.loss_and_gradient(at, precision)
    losses = [loss]
    length = 1 / max(1.0, float(np.abs(gradient).max()))
    for _ in range(_MOST_STEPS):
        if np.abs(np.where((at > 0) | (gradient < 0), gradient, 0)).max() <= tolerance:
            break
        direction = np.maximum(at - length * gradient, 0) - at
        fall, part = float((gradient * direction).sum()), 1.0
        highest = max(losses[-_MEMORY:])
        while True:
            point = at + part * direction
            loss, slope = penalised.loss_and_gradient(point, precision)
            if loss <= highest + 1e-4 * part * fall or part < 1e-9:
                break
            part /= 2
        moved, turned = point - at, slope - gradient
        curvature = float((moved * turned).sum())
        length = float(np.square(moved).sum()) / curvature if curvature > 0 else 1 / precision
        at, gradient = point, slope
        losses.append(loss)
    return at


def _no_worse(margins: Float[ndarray, " pairs"], least: Float[ndarray, " pairs"]) -> bool:
    """Return whether the mean loss is within one standard error of the least, by paired differences."""
    excess = np.logaddexp(0, -margins) - np.logaddexp(0, -least)
    return bool(excess.mean() <= excess.std() / np.sqrt(len(excess)))


def _loss_of(margins: Float[ndarray, " pairs"]) -> float:
    return float(np.logaddexp(0, -margins).mean())
