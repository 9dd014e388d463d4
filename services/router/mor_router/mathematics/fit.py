"""What each client is worth, fitted jointly on the anchors: logistic stacking whose coefficients depend on the input.

With d_nk the standardised difference (chosen − rejected) of pair n by client k, ψ the features of ``calibration``:

    L(θ) = Σ_n −log σ( Σ_k ψ(x_n)·θ_k d_nk ) + λ/2 Σ_jk θ_jk² / g_jk²       θ ≥ 0

ψ(x)·θ_k is the posterior mode of a varying coefficient under half-normal priors of widths g, see ``guidance``. With
θ = g φ, L − λ/2 ‖φ‖² is convex, so there is one optimum, and it is no further from a point φ than ‖∇‖/λ, where ∇ is the
gradient at φ without the entries by which it pulls a φ = 0 below 0. λ is chosen by cross-validation over anchors, over
a random part of them where there are many: the largest whose held-out loss is within a standard error of the least
(Breiman et al. 1984).

θ ≥ 0: no client's opinion is ever turned round. Breiman (1996) found the same constraint to pay in stacking, and here a
client that says the opposite of what it knows must not win weight by it.
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
"""λ to choose from."""

_FOLDS = 5
_LEAST_PAIRS = 128
"""Pairs below which none is left out of choices."""
_CHOICE_SCORES = 1 << 15
"""Scores (pairs x clients) that choices are made on at most, then in two folds."""
_MANY_SCORES = 1 << 16
"""Scores (pairs x clients) from which on the last digits of the optimum are given up."""
_MOST_STEPS = 1000
_MEMORY = 8


@dataclass(frozen=True)
class Anchors:
    """What the fit sees of N anchor pairs and K clients."""

    features: Float[ndarray, "pairs features"]
    differences: Float[ndarray, "pairs clients"]
    """Standardised score of the chosen response minus that of the rejected one; 0 where there is none."""
    known: Float[ndarray, " pairs"]
    """Log-odds that clients add whose coefficients are not fitted."""

    def take(self, pairs: Int[ndarray, " some"] | Bool[ndarray, " pairs"]) -> Anchors:
        return Anchors(self.features[pairs], self.differences[pairs], self.known[pairs])

    def guided(self) -> Guided:
        """The same with the priors' widths that they tell."""
        return Guided(self, widths(self.features, self.differences, self.known))

    def margins(self, coefficients: Coefficients) -> Float[ndarray, " pairs"]:
        """The mixture's log-odds that the chosen response is preferred."""
        return np.asarray(self.known + ((self.features @ coefficients) * self.differences).sum(axis=1))


@dataclass(frozen=True)
class Guided:
    """Anchors with the widths of the priors."""

    anchors: Anchors
    widths: Coefficients

    def loss_and_gradient(self, at: Coefficients, precision: float) -> tuple[float, Coefficients]:
        """L and its gradient at φ = ``at``."""
        anchors = self.anchors
        margins = anchors.margins(self.widths * at)
        small = np.exp(-np.abs(margins))
        surprise = np.log1p(small) + np.maximum(-margins, 0)
        wrong = np.where(margins >= 0, small, 1.0) / (1 + small)
        loss = surprise.sum() + precision / 2 * np.square(at).sum()
        pull = anchors.features.T @ (wrong[:, None] * anchors.differences)
        return float(loss), precision * at - self.widths * pull


@dataclass(frozen=True)
class Fitted:
    coefficients: Coefficients
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


def fit(anchors: Anchors, *, precisions: Sequence[float] = PRECISIONS) -> Fitted:
    """θ at the λ of ``choose``.

    Raises:
        ValueError: fewer pairs than cross-validation folds.
    """
    best, margins = choose(anchors, precisions)
    large = anchors.differences.size > _MANY_SCORES
    guided, start = anchors.guided(), None
    if len(margins) < len(anchors.differences):  # on the part that was enough to choose by, most of the way is cheap
        part = anchors.take(np.random.default_rng(1).permutation(len(anchors.differences))[: len(margins)])
        start = minimise(replace(guided, anchors=part), best, tolerance=1e-1)
    coefficients = guided.widths * minimise(guided, best, start=start, tolerance=1e-2 if large else 1e-9)
    return Fitted(
        coefficients=coefficients,
        precision=best,
        loss=_loss_of(anchors.margins(coefficients)),
        held_out_loss=_loss_of(margins),
        held_out_accuracy=float((margins > 0).mean() + (margins == 0).mean() / 2),
        held_out_pairs=len(margins),
    )


def choose(anchors: Anchors, precisions: Sequence[float]) -> tuple[float, Float[ndarray, " held"]]:
    """The largest λ whose held-out loss is not clearly over the least, and its held-out margins.

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
        seen, unseen, start = anchors.take(fold != held).guided(), anchors.take(fold == held), None
        for precision in sorted(precisions, reverse=True):
            start = minimise(seen, precision, start=start, tolerance=1e-3)
            margins[precision][fold == held] = unseen.margins(seen.widths * start)
    least = min(margins.values(), key=_loss_of)
    chosen = max(precision for precision in precisions if _no_worse(margins[precision], least))
    return chosen, margins[chosen]


def minimise(
    guided: Guided, precision: float, *, start: Coefficients | None = None, tolerance: float = 1e-9
) -> Coefficients:
    """φ where no entry of ∇ is over ``tolerance``.

    The spectral projected gradient method (Birgin, Martínez & Raydan 2000): steps of Barzilai and Borwein's length, and
    a line search that lets the loss rise for a while.
    """
    at = np.zeros_like(guided.widths) if start is None else start
    loss, gradient = guided.loss_and_gradient(at, precision)
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
            loss, slope = guided.loss_and_gradient(point, precision)
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
    """Whether the mean loss is within one standard error of the least, by paired differences."""
    excess = np.logaddexp(0, -margins) - np.logaddexp(0, -least)
    return bool(excess.mean() <= excess.std() / np.sqrt(len(excess)))


def _loss_of(margins: Float[ndarray, " pairs"]) -> float:
    return float(np.logaddexp(0, -margins).mean())
