"""Who says which of the policy's own responses is better: a checker or a judge of the server's own, never a client and
never the fused reward."""

from __future__ import annotations

from mor_router.learning.labels.choice import LabellerChoice, StoredLabeller
from mor_router.learning.labels.labeller import Labeller, Sampled, best_and_worst
from mor_router.learning.labels.labellers import Labellers

__all__ = ["Labeller", "LabellerChoice", "Labellers", "Sampled", "StoredLabeller", "best_and_worst"]
