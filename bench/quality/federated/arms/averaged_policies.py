from __future__ import annotations

from quality.federated.adapters import size, weighted_mean
from quality.federated.federation import Federation, Trained
from quality.federated.local_training import RATES, Objective, Recipe, train

_PROX = 0.01
"""μ of FedProx: one of the four values that its paper tries (0.001 to 1)."""


class AveragedPolicies:
    """FedAvg or FedProx of LoRA: in each round every client trains the common adapter, and the server takes the mean.

    FedAvg: McMahan et al. 2017 (arXiv 1602.05629); FedProx: Li et al. 2020 (arXiv 1812.06127). All clients take part
    in each round. They take equally many steps, so that compute is equal, and weigh by the number of their pairs.
    """

    local, server = True, False

    def __init__(self, objective: Objective, *, prox: bool = False) -> None:
        self.title = f"{'FedProx' if prox else 'FedAvg'} of LoRA by {objective.upper()}"
        self._objective: Objective = objective
        self._prox = _PROX if prox else 0.0

    def train(self, federation: Federation) -> Trained:
        policy, budget, ledger = federation.policy, federation.budget, federation.ledger
        recipe = Recipe(self._objective, budget.batch, RATES[self._objective] * federation.rate, self._prox)
        common = policy.start
        weights = [float(len(pairs)) for pairs in federation.pairs.values()]
        for number in range(budget.rounds):
            found = []
            for client, pairs in federation.pairs.items():
                policy.load(common)
                seed = f"{federation.seed}/{client}/{number}"
                found.append(train(policy, pairs, budget.steps_of_a_round, recipe, ledger, client, seed))
                ledger.sent(to_clients=size(common), from_clients=size(found[-1]))
            common = weighted_mean(found, weights)
        return Trained({"": common})
