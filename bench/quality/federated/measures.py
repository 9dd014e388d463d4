"""Measures of trained policies: gold by domain, the clients' own satisfaction, and adaptation to a new client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from mor_core.datafiles import read_prompts
from numpy import ndarray
from three_domains.base_vlm import read_rows
from three_domains.questions import Gold

from quality.federated.adapters import Adapter
from quality.federated.compute import Ledger
from quality.federated.local_training import RATES, Pair, Recipe, train
from quality.federated.policy import Asked, Policy
from quality.federated.rewards import RewardPanel
from quality.material import read_gold
from quality.population import Population
from quality.scoring import Group

ADAPTATION = (0, 8, 32)
"""Gradient steps of a new client after which its policy is measured."""
_BATCH = 8
"""Pairs of a step of a new client, which has 64."""
_JUDGED = 48
"""Most questions on which a client judges a policy."""


@dataclass(frozen=True)
class Questions:
    """Held-out questions with their exact answers."""

    asked: Sequence[Asked]
    groups: Sequence[Group]
    golds: Sequence[Gold]

    @property
    def domains(self) -> ndarray:
        return np.array([gold["domain"] for gold in self.golds])


def read_questions(policy: Policy, folder: Path) -> Questions:
    file = folder / "prompts.jsonl"
    return Questions(
        [policy.ask(folder, row) for row in read_rows(file)],
        [Group(prompt, ()) for prompt in read_prompts(file)],
        read_gold(folder),
    )


def answers(policy: Policy, adapter: Adapter, questions: Questions) -> list[str]:
    """Answer all questions by the most probable tokens."""
    policy.load(adapter)
    return [policy.text(response) for response in policy.sample(questions.asked)]


def right(population: Population, questions: Questions, given: Sequence[str]) -> Float[ndarray, " questions"]:
    """Return 1 where an answer is true and complete, otherwise 0."""
    return np.array(
        [
            float(population.answers[gold["domain"]].correct(gold, answer))
            for gold, answer in zip(questions.golds, given, strict=True)
        ]
    )


def by_domain(values: Float[ndarray, " questions"], domains: ndarray) -> dict[str, float]:
    """Return the mean of each domain, percent."""
    return {name: 100 * float(values[domains == name].mean()) for name in sorted(set(domains.tolist()))}


def satisfaction(
    panel: RewardPanel,
    client: str,
    questions: Questions,
    rows: Sequence[int],
    given: Sequence[str],
    base: Sequence[str],
) -> float:
    """Return the mean probability that the client's own reward model prefers an answer to the base model's, percent.

    ``rows`` are the questions of the client's sub-skills, of which the first are used. Equal answers count one half.
    """
    groups = [Group(questions.groups[row].prompt, (given[row], base[row])) for row in rows[:_JUDGED]]
    scored = panel.by(client, groups)
    return 100 * float((1 / (1 + np.exp(scored[:, 1] - scored[:, 0]))).mean())


def adaptation(
    population: Population, policy: Policy, adapter: Adapter, pairs: Sequence[Pair], questions: Questions, domain: str
) -> dict[str, dict[str, float]]:
    """Tune a policy on a new client's pairs by DPO: gold on its domain and elsewhere, percent, by gradient steps.

    All arms adapt in the same way, so that only the starting points differ.
    """
    recipe, found = Recipe("dpo", _BATCH, RATES["dpo"]), {}
    domains, done = questions.domains, 0
    for steps in ADAPTATION:
        policy.load(adapter)
        adapter = train(policy, pairs, steps - done, recipe, Ledger(), "new", f"new/{done}")
        done = steps
        gold = right(population, questions, answers(policy, adapter, questions))
        found[str(steps)] = {
            "own": 100 * float(gold[domains == domain].mean()),
            "elsewhere": 100 * float(gold[domains != domain].mean()),
        }
    return found


def worst(values: Mapping[str, float]) -> tuple[str, float]:
    """Return the client with the least value."""
    client = min(values, key=lambda name: values[name])
    return client, values[client]
