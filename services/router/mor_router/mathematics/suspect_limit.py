"""Limit of a suspected client's say in a group: it cannot outvote the clients that are not suspected.

Until audits show who is wrong (``audit_test``), a client that suddenly opposes the others or disagrees with them
(``suspicion``) keeps a voice, but not the decision. With c_k = W_k · (calibrated deviations of client k), R the clients
without suspicion and u_k the shares of influence, a suspected client's deviations are multiplied by

    f_k = min( 1, ¼ · ‖ r ‖ / ‖ c_k ‖ )     where Σ_{j ∈ R} u_j ≥ ¼;   r = Σ_{j ∈ R} c_j
    f_k = 1                                 elsewhere

The condition keeps the say of the only expert for an input: others who know nothing of it must not outvote it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

_LARGEST = 0.25
"""Largest norm of a suspect's part, relative to that of the clients without suspicion: they keep the majority."""
_LEAST_INFLUENCE = 0.25
"""Influence that these clients must hold together."""


def limits(
    contributions: Float[ndarray, "clients group"],
    influence: Float[ndarray, " clients"],
    suspected: Bool[ndarray, " clients"],
) -> Float[ndarray, " clients"]:
    """Compute f of each client; 1 for those without suspicion."""
    if not suspected.any() or influence[~suspected].sum() < _LEAST_INFLUENCE:
        return np.ones(len(suspected))
    rest = contributions[~suspected].sum(axis=0)
    most = _LARGEST * np.linalg.norm(rest)
    own = np.linalg.norm(contributions, axis=1)
    return np.where(suspected & (own > most), most / np.maximum(own, 1e-300), 1.0)
