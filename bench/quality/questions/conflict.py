"""Whether MoR serves the objective that it was asked for, where two of them conflict."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from quality.arms import MixtureOfRewards
from quality.evidence import ANCHORS, Evidence, Table
from quality.scored import Anchors, Groups, agreement


def objectives(evidence: Evidence) -> Table:
    """Accuracy by the objective that was asked for and by the other one, percent."""
    random = np.random.default_rng(0)
    rights: dict[tuple[str, str], list[Float[ndarray, " pairs"]]] = {}
    for _ in range(max(2, evidence.draws // 4)):
        rows = random.choice(len(evidence.styled.pairs), min(ANCHORS, len(evidence.styled.pairs)), replace=False)
        for fitted in ("complete", "brief"):
            pairs = evidence.styled.pairs.take(rows)
            told = _relabelled(pairs, evidence.agrees[0][rows]) if fitted == "brief" else pairs
            right = agreement(MixtureOfRewards().fit(Anchors(told))(evidence.styled_held_out))
            rights.setdefault((fitted, "complete"), []).append(right)
            rights.setdefault((fitted, "brief"), []).append(np.where(evidence.agrees[1], right, 1 - right))
    found = {
        f"fitted {fitted}, asked {asked}": 100 * float(np.mean(right)) for (fitted, asked), right in rights.items()
    }
    conflict = ~evidence.agrees[1]
    found["pairs on which the objectives disagree"] = 100 * float(conflict.mean())
    return found


def _relabelled(pairs: Groups, agrees: Bool[ndarray, " pairs"]) -> Groups:
    return pairs.said(np.where(agrees[:, None, None], pairs.scores, pairs.scores[:, :, ::-1]))
