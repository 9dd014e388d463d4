"""Probability with which a live group is audited, after its clients have answered.

Uniform: every group of an objective has the same probability, so the clients can tell nothing from a group itself, and
plain means over audits are unbiased. The probability is stored with each audit, for importance weights.
"""

from __future__ import annotations


def audit_probability(share: float) -> float:
    """Return the probability for one group; its mean over groups is ``share``.

    Raises:
        ValueError: ``share`` is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"got an audit share of {share}; a share in [0, 1] is needed")
    return share
