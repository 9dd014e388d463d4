"""Membership attacks: from a model's margins r⁺ − r⁻ to one number per unit, larger where it was trained on.

A unit is a pair, or a picture or person with the mean margin of its pairs. Shadow models have the same recipe and other
data; ``included`` tells which shadow was trained on which unit, and each unit has shadows with and without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

Margins = Float[np.ndarray, " units"]
ShadowMargins = Float[np.ndarray, "shadows units"]
Included = Bool[np.ndarray, "shadows units"]

_TINY = 1e-12
"""Spread below which margins count as equal."""


@dataclass(frozen=True)
class MarginSet:
    """Margins of the audited model and of the models that it is compared with."""

    target: Margins
    untrained: Margins | None
    """Margins before training; null where the untrained model scores every response alike."""
    shadows: ShadowMargins
    included: Included

    def means(self, unit: Int[np.ndarray, " units"]) -> MarginSet:
        """Return the means over the pairs of each larger ``unit``, which is numbered from 0 without a gap."""
        size = np.bincount(unit)

        def mean(values: np.ndarray) -> np.ndarray:
            return np.bincount(unit, weights=values, minlength=len(size)) / size

        rows = [mean(shadow) for shadow in self.shadows]
        return MarginSet(
            mean(self.target),
            None if self.untrained is None else mean(self.untrained),
            np.array(rows).reshape(len(rows), len(size)),
            self.included[:, np.unique(unit, return_index=True)[1]],
        )

    def attacks(self) -> Iterator[tuple[str, Margins]]:
        """Yield the name and the numbers of each attack, the strongest in theory last."""
        yield "margin", self.target
        if self.untrained is not None:
            yield "reference difference, untrained", unit_scale(self.target) - unit_scale(self.untrained)
        if len(self.shadows):
            yield "reference difference, shadows", unit_scale(self.target) - self.without()
            if (ratio := self.likelihood_ratio()) is not None:
                yield "likelihood ratio, shadows", ratio

    def without(self) -> Margins:
        """Return the mean margin of each unit over the shadows that were not trained on it, in ``unit_scale``."""
        scaled = np.array([unit_scale(shadow) for shadow in self.shadows])
        mean: Margins = _mean(scaled, ~self.included)
        return mean

    def likelihood_ratio(self) -> Margins | None:
        """Return log p(margin | trained on) − log p(margin | not trained on), LiRA (Carlini et al. 2022, section IV).

        Margins are logits, so they are taken as normal. Each unit has means of its own; the variances are pooled over
        the units, as the paper advises for few shadows. ``None`` where shadows with a unit, or without it, do not vary
        or are one alone: numbers that are all equal would count as an attack that is sure to fail.
        """
        scaled = np.array([unit_scale(shadow) for shadow in self.shadows])
        target = unit_scale(self.target)
        ratio = np.zeros_like(target)
        for sign, where in ((1, self.included), (-1, ~self.included)):
            mean = _mean(scaled, where)
            variance = ((scaled - mean) ** 2)[where].sum() / max(1, where.sum() - where.shape[1])
            if variance < _TINY:
                return None
            ratio -= sign * ((target - mean) ** 2 / (2 * variance) + np.log(variance) / 2)
        return ratio


def unit_scale(margins: Margins) -> Margins:
    """Divide margins by their root mean square: models trained on fewer pairs have another temperature."""
    size = float(np.sqrt((margins**2).mean()))
    return margins / size if size > _TINY else margins


def _mean(values: ShadowMargins, where: Included) -> Margins:
    mean: Margins = np.where(where, values, 0.0).sum(0) / where.sum(0)
    return mean
