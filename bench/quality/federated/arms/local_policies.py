from __future__ import annotations

from quality.federated.federation import Federation, Trained
from quality.federated.local_training import RATES, Objective, Recipe, train


class LocalPolicies:
    """Each client tunes the base model on its own pairs, alone: no communication, and one policy for each client."""

    local, server = True, False

    def __init__(self, objective: Objective) -> None:
        self.title = f"local {objective.upper()} alone"
        self._objective: Objective = objective

    def train(self, federation: Federation) -> Trained:
        policy, budget = federation.policy, federation.budget
        recipe = Recipe(self._objective, budget.batch, RATES[self._objective] * federation.rate)
        found = {}
        for client, pairs in federation.pairs.items():
            policy.load(policy.start)
            seed = f"{federation.seed}/{client}"
            found[client] = train(policy, pairs, budget.steps, recipe, federation.ledger, client, seed)
        return Trained(found)
