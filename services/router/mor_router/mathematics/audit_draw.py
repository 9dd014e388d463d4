"""Probability with which a live group is audited, after its clients have answered.

It depends on earlier groups, on the group's situation, and on how much the group would tell about a suspect
(``audit_test.worth``), never on whom the answers to it agree with: whether a client is right in an audited group is as
likely as in any other of its kind, so tests over them need no weights. With share s, worth ω (0 without suspicion) and
credit c, which starts at 16 audits, gains s with each group and loses 1 with each audit:

    c ≥ 1         max( ω / 2, s · ( ¼ + c / 16 ) )
    otherwise     s · ( ¼ + c / 16 )

The credit settles near 12 audits, where the probability is s; so in the long run the share of audited groups is s. The
credit is for suspicion: evidence within tens of groups needs several audits among them, and 2 % of them gives one in
fifty. After it is spent, the following groups have fewer audits until it is earned again.
"""

from __future__ import annotations

MOST_CREDIT = 16.0
"""Audits saved at most, and granted in advance at the start: enough evidence for one client that answers with noise."""
_LEAST = 0.25
"""Part of the share that is drawn without any credit: no group is ever safe from an audit."""
_SUSPICIOUS = 0.5
"""Probability under suspicion, for a group that tells most: the credit lasts for about 32 such groups."""


class AuditBudget:
    """Credit for the audits of one objective, in one process."""

    def __init__(self, share: float) -> None:
        """Raises:
        ValueError: ``share`` is not in [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"got an audit share of {share}; a share in [0, 1] is needed")
        self._share = share
        self._credit = MOST_CREDIT

    def probability(self, worth: float = 0.0) -> float:
        """Gain the credit of one more group, and return the probability with which it is audited.

        ``worth``: ω, in [0, 1].
        """
        self._credit = min(MOST_CREDIT, self._credit + self._share)
        if not self._share:
            return 0.0
        usual = min(1.0, self._share * (_LEAST + max(0.0, self._credit) / MOST_CREDIT))
        return max(usual, _SUSPICIOUS * worth) if self._credit >= 1 else usual

    def spend(self) -> None:
        """Lose the credit of one audit."""
        self._credit -= 1
