"""Whether MoR serves the objective that it was asked for, where two of them conflict."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from quality.arms import MixtureOfRewards
from quality.evidence import ANCHORS, Evidence, Table
from quality.ranking import lead
from quality.scored import Anchors, Groups, agreement

STYLES = ("complete", "brief")


def objectives(evidence: Evidence) -> Table:
    """Accuracy by the objective that was asked for and by the other one, percent, and what swapping them costs, points.

    Beside them, how well the client of each taste tells it alone: what no client knows no gate can find.
    """
    random = np.random.default_rng(0)
    rights: dict[tuple[str, str], list[Float[ndarray, " pairs"]]] = {}
    for _ in range(evidence.draws):
        rows = random.choice(len(evidence.styled.pairs), min(ANCHORS, len(evidence.styled.pairs)), replace=False)
        for fitted in STYLES:
            pairs = evidence.styled.pairs.take(rows)
            told = _relabelled(pairs, evidence.agrees[0][rows]) if fitted == "brief" else pairs
            right = agreement(MixtureOfRewards().fit(Anchors(told))(evidence.styled_held_out))
            for asked in STYLES:
                rights.setdefault((fitted, asked), []).append(_by(asked, right, evidence))
    mean = {key: np.mean(right, axis=0) for key, right in rights.items()}
    found: Table = {
        f"fitted {fitted}, asked {asked}": 100 * float(mean[fitted, asked].mean()) for fitted, asked in mean
    }
    for asked, other in zip(STYLES, reversed(STYLES), strict=True):
        cost = lead(mean[asked, asked], mean[other, asked], evidence.styled_held_out.domains).mean
        found[f"what the other's gate costs, asked {asked}, points"] = asdict(cost)
    found["pairs on which the objectives disagree"] = 100 * float((~evidence.agrees[1]).mean())
    for style in STYLES:
        if style not in evidence.clients:
            continue
        right = agreement(evidence.styled_held_out.scores[:, evidence.clients.index(style)])
        found[f"client {style} alone, asked {style}"] = 100 * float(_by(style, right, evidence).mean())
    return found


def _by(asked: str, right: Float[ndarray, " pairs"], evidence: Evidence) -> Float[ndarray, " pairs"]:
    """Whether pairs that are labelled by ``complete`` are ranked right by the objective asked."""
    return right if asked == "complete" else np.where(evidence.agrees[1], right, 1 - right)


def _relabelled(pairs: Groups, agrees: Bool[ndarray, " pairs"]) -> Groups:
    return pairs.said(np.where(agrees[:, None, None], pairs.scores, pairs.scores[:, :, ::-1]))
