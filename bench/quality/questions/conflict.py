"""Effect of the requested objective if two objectives conflict."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from quality.arms import MixtureOfRewards
from quality.evidence import ANCHORS, ExperimentData, Table
from quality.group_scores import AnchorPairs, GroupScores, agreement
from quality.ranking import lead

STYLES = ("complete", "brief")
_BOTH = "both"
"""Gate without objective conditioning; each objective labels half of its anchors."""


def objectives(evidence: ExperimentData) -> Table:
    """Compute accuracy by the requested and by the other objective, percent, by the number of anchors.

    The loss, in points, is that with the other's gate, or with one gate for both.

    The accuracy of each taste's client alone is the limit: a gate cannot find what no client knows.
    """
    counts = sorted({min(ANCHORS, len(evidence.styled.pairs)), len(evidence.styled.pairs)})
    return {str(count): _conflict(evidence, count) for count in counts}


def _conflict(evidence: ExperimentData, count: int) -> Table:
    random = np.random.default_rng(0)
    rights: dict[tuple[str, str], list[Float[ndarray, " pairs"]]] = {}
    for _ in range(evidence.draws):
        rows = random.choice(len(evidence.styled.pairs), count, replace=False)
        for fitted in (*STYLES, _BOTH):
            relabelled = _relabelled(evidence.styled.pairs.take(rows), evidence.agrees[0][rows], fitted)
            right = agreement(MixtureOfRewards().fit(AnchorPairs(relabelled))(evidence.styled_held_out))
            for requested in STYLES:
                rights.setdefault((fitted, requested), []).append(_by(requested, right, evidence))
    judged: dict[tuple[str, str], Float[ndarray, "draws pairs"]] = {key: np.stack(on) for key, on in rights.items()}
    found: Table = {}
    for (fitted, requested), right in judged.items():
        found[f"fitted {fitted}, evaluated on {requested}"] = 100 * float(right.mean())
    for requested, other in zip(STYLES, reversed(STYLES), strict=True):
        for fitted in (other, _BOTH):
            cost = lead(judged[requested, requested], judged[fitted, requested], evidence.styled_held_out.domains).mean
            found[f"cost of the gate fitted {fitted}, evaluated on {requested}, points"] = asdict(cost)
    found["pairs on which the objectives disagree"] = 100 * float((~evidence.agrees[1]).mean())
    for style in STYLES:
        if style in evidence.clients:
            alone = agreement(evidence.styled_held_out.scores[:, evidence.clients.index(style)])
            found[f"client {style} alone, evaluated on {style}"] = 100 * float(_by(style, alone, evidence).mean())
    return found


def _by(requested: str, right: Float[ndarray, " pairs"], evidence: ExperimentData) -> Float[ndarray, " pairs"]:
    """Convert correctness by the label of ``complete`` to correctness by the requested objective."""
    return right if requested == "complete" else np.where(evidence.agrees[1], right, 1 - right)


def _relabelled(pairs: GroupScores, agrees: Bool[ndarray, " pairs"], fitted: str) -> GroupScores:
    """Relabel pairs that are labelled by ``complete`` by ``fitted``."""
    by_complete = {
        "complete": np.ones(len(pairs), bool),
        "brief": agrees,
        _BOTH: agrees | (np.arange(len(pairs)) % 2 > 0),
    }
    return pairs.with_scores(np.where(by_complete[fitted][:, None, None], pairs.scores, pairs.scores[:, :, ::-1]))
