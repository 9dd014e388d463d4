"""Labellers of the policy's own responses: a checker or a judge that belongs to the server.

Neither a client nor the fused reward ever labels.
"""

from __future__ import annotations

from mor_router.learning.labels.labeller import Labeller, SampledGroup, ordered_pairs
from mor_router.learning.labels.labeller_choice import LabellerChoice, StoredLabeller
from mor_router.learning.labels.labeller_store import LabellerStore

__all__ = ["Labeller", "LabellerChoice", "LabellerStore", "SampledGroup", "StoredLabeller", "ordered_pairs"]
