"""Agreement of the clients in a live group, beside what the fit expects of them: evidence of a change in one of them.

The stake is fixed before the scores are known, as ``e_process`` demands: it follows from the gate, and a limit on a
suspected client's say (``suspect_limit``), which depends on the scores, does not change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mor_router.mathematics import loo_agreement
from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.group_fusion import FusedGroup


@dataclass(frozen=True)
class LiveAgreement:
    """Agreement of one client with the others in one live group."""

    client: str
    agreement: float
    """z of ``loo_agreement``, in [0, 1]."""
    stake: float
    """Influence relative to the largest at the fit, at most 1."""
    least: float
    """Mean of z at the fit that live groups are tested against."""


def live_agreements(group: FusedGroup, expected: Mapping[str, DriftBaseline]) -> tuple[LiveAgreement, ...]:
    """Compare the clients of a group rewarded for one objective with their baselines; empty where none can be.

    ``expected``: the baseline of each client at the fit.
    """
    if not expected or len(group.clients) < loo_agreement.LEAST_CLIENTS or len(group.rewards) < 2:
        return ()
    agreement = loo_agreement.of_group(group.calibrated, group.weights)
    return tuple(
        LiveAgreement(client, z, min(1.0, share / baseline.influence), baseline.least_agreement)
        for client, z, share in zip(group.clients, agreement.tolist(), group.influence.tolist(), strict=True)
        if (baseline := expected.get(client)) is not None
        and baseline.influence > 0
        and 0 < baseline.least_agreement < 1
    )
