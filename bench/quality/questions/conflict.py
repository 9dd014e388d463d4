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
_BOTH = "both"
"""One gate without objective conditioning: half of its anchors are labelled by each."""


def objectives(evidence: Evidence) -> Table:
    """By the number of anchors: accuracy by the objective that was asked for and by the other one, percent, and what it
    costs to be served by the other's gate, or by one for both, points.

    Beside them, how well the client of each taste tells it alone: what no client knows no gate can find.
    """
    counts = sorted({min(ANCHORS, len(evidence.styled.pairs)), len(evidence.styled.pairs)})
    return {str(count): _conflict(evidence, count) for count in counts}


def _conflict(evidence: Evidence, count: int) -> Table:
    random = np.random.default_rng(0)
    rights: dict[tuple[str, str], list[Float[ndarray, " pairs"]]] = {}
    for _ in range(evidence.draws):
        rows = random.choice(len(evidence.styled.pairs), count, replace=False)
        for fitted in (*STYLES, _BOTH):
            told = _told(evidence.styled.pairs.take(rows), evidence.agrees[0][rows], fitted)
            right = agreement(MixtureOfRewards().fit(Anchors(told))(evidence.styled_held_out))
            for asked in STYLES:
                rights.setdefault((fitted, asked), []).append(_by(asked, right, evidence))
    judged: dict[tuple[str, str], Float[ndarray, "draws pairs"]] = {key: np.stack(on) for key, on in rights.items()}
    found: Table = {}
    for (fitted, asked), right in judged.items():
        found[f"fitted {fitted}, asked {asked}"] = 100 * float(right.mean())
    for asked, other in zip(STYLES, reversed(STYLES), strict=True):
        for fitted in (other, _BOTH):
            cost = lead(judged[asked, asked], judged[fitted, asked], evidence.styled_held_out.domains).mean
            found[f"what the gate fitted {fitted} costs, asked {asked}, points"] = asdict(cost)
    found["pairs on which the objectives disagree"] = 100 * float((~evidence.agrees[1]).mean())
    for style in STYLES:
        if style in evidence.clients:
            alone = agreement(evidence.styled_held_out.scores[:, evidence.clients.index(style)])
            found[f"client {style} alone, asked {style}"] = 100 * float(_by(style, alone, evidence).mean())
    return found


def _by(asked: str, right: Float[ndarray, " pairs"], evidence: Evidence) -> Float[ndarray, " pairs"]:
    """Whether pairs that are labelled by ``complete`` are ranked right by the objective asked."""
    return right if asked == "complete" else np.where(evidence.agrees[1], right, 1 - right)


def _told(pairs: Groups, agrees: Bool[ndarray, " pairs"], fitted: str) -> Groups:
    """Pairs that are labelled by ``complete``, labelled by ``fitted``."""
    by_complete = {
        "complete": np.ones(len(pairs), bool),
        "brief": agrees,
        _BOTH: agrees | (np.arange(len(pairs)) % 2 > 0),
    }
    return pairs.said(np.where(by_complete[fitted][:, None, None], pairs.scores, pairs.scores[:, :, ::-1]))
