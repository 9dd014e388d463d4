from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

from quality.federated.adapters import Adapter, size, weighted_mean
from quality.federated.compute import SERVER
from quality.federated.federation import Federation, Trained
from quality.federated.local_training import RATES, Pair, Recipe, batches, step, train
from quality.federated.policy import Asked, Policy

_NAMES = ("A", "B")
"""Tokens by which the selector names the first and the second answer."""


class BinarySelector:
    """FedBis (Wu et al. 2024, arXiv 2407.03038): clients train a selector of the better answer, the server uses it.

    As in the paper: the selector is the base model with LoRA, trained by FedAvg to name the better of two answers; the
    server draws pairs of answers from its policy, the selector labels them, and the policy learns from them by DPO.
    Decided here: the selector sees both orders of a pair, and their mean counts, because a small model learns a place
    as easily as a preference; the server's answers are those of the base model, and it labels as many pairs as its
    budget has. Both the clients' budget and the server's are spent.
    """

    title = "binary selector (FedBis) and DPO"
    local, server = True, True

    def train(self, federation: Federation) -> Trained:
        selector = self._selector(federation)
        labelled = self._label(federation, selector)
        policy = federation.policy
        policy.load(policy.start)
        batch = len(federation.pairs) * federation.budget.batch
        recipe = Recipe("dpo", batch, RATES["dpo"] * federation.rate)
        adapter = train(
            policy, labelled, federation.budget.steps, recipe, federation.ledger, SERVER, str(federation.seed)
        )
        return Trained({"": adapter})

    def _selector(self, federation: Federation) -> Adapter:
        policy, budget, ledger = federation.policy, federation.budget, federation.ledger
        common = policy.start
        weights = [float(len(pairs)) for pairs in federation.pairs.values()]
        rate = RATES["sft"] * federation.rate
        for number in range(budget.rounds):
            found = []
            for client, pairs in federation.pairs.items():
                policy.load(common)
                optimiser = torch.optim.AdamW(policy.parameters().values(), lr=rate, weight_decay=0.0)
                drawn = batches(pairs, budget.batch, f"{federation.seed}/{client}/{number}")
                for batch in islice(drawn, budget.steps_of_a_round):
                    step(optimiser, functional.softplus(-preferences(policy, batch)).mean())
                    ledger.stepped(client, len(batch))
                found.append(policy.adapter())
                ledger.sent(to_clients=size(common), from_clients=size(found[-1]))
            common = weighted_mean(found, weights)
        return common

    def _label(self, federation: Federation, selector: Adapter) -> list[Pair]:
        """Draw two answers to each of the server's prompts in turn, and label those that differ."""
        policy = federation.policy
        policy.load(policy.start)
        prompts = next(batches(federation.prompts, federation.budget.of_server(len(federation.pairs)), "labels"))
        asked = [prompt.asked for prompt in prompts]
        seeds = Random(federation.seed)
        firsts, seconds = (policy.sample(asked, seed=seeds.randrange(2**31)) for _ in range(2))
        drawn = [Pair(*both, "") for both in zip(firsts, seconds, strict=True) if both[0].ids != both[1].ids]
        policy.load(selector)
        with torch.no_grad():
            margins = torch.cat([preferences(policy, drawn[at : at + 64]) for at in range(0, len(drawn), 64)])
        return [
            pair if margin > 0 else replace(pair, chosen=pair.rejected, rejected=pair.chosen)
            for pair, margin in zip(drawn, margins.tolist(), strict=True)
        ]


def preferences(policy: Policy, pairs: Sequence[Pair]) -> Tensor:
    """Compute the selector's log-odds that the first answer of each pair is the better one, from both orders."""
    ordered = [selection(policy, pair) for pair in pairs]
    swapped = [selection(policy, replace(pair, chosen=pair.rejected, rejected=pair.chosen)) for pair in pairs]
    names = [policy.tokens(name)[0] for name in _NAMES]
    logits = policy.choice([*ordered, *swapped], names)
    margins = logits[:, 0] - logits[:, 1]
    return (margins[: len(pairs)] - margins[len(pairs) :]) / 2


def selection(policy: Policy, pair: Pair) -> Asked:
    """Write both answers behind the question, and ask for the better one."""
    texts = [policy.text(response) for response in (pair.chosen, pair.rejected)]
    written = policy.tokens(f"A: {texts[0]}\nB: {texts[1]}\nbetter: ")
    return replace(pair.chosen.asked, ids=(*pair.chosen.asked.ids, *written))
