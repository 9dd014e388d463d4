"""Federated baselines against MoR: ``python -m quality.federated``, after ``python -m quality``.

Every arm starts from the same base model, with the same pairs, prompts and seeds, and spends the same compute
(``compute.Budget``). ``--without DOMAIN`` leaves a domain out of all training: its questions then measure
generalisation, and a new client with 64 pairs of it how well a policy adapts. ``--questions dev`` measures on material
on which settings, as ``--rate``, may be chosen. A finished run of an arm is stored and not repeated.

Reward models are the experiment's: each was trained on all domains of its client, also on one that is left out here, of
which it is never asked.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from machine import end_children_on_sigterm, record
from three_domains.base_vlm import read_rows
from three_domains.questions import Split

from quality import averaging, material, models, scoring
from quality.arms.arm import slug
from quality.evidence import ANCHORS, even
from quality.experiment import SIZES, Experiment, add_arguments, population_of, record_name
from quality.federated import measures, report
from quality.federated.adapters import Adapter
from quality.federated.arms import arms
from quality.federated.compute import Budget
from quality.federated.federation import FederatedArm, Federation, Trained, read_pairs, read_server_prompts
from quality.federated.local_training import Pair
from quality.federated.policy import Policy
from quality.federated.rewards import RewardPanel
from quality.group_scores import AnchorPairs
from quality.ranking import drawn_rows

_NEW_PAIRS = 64
"""Pairs of a new client."""


@dataclass(frozen=True)
class StudySize:
    """Size of the study, of every arm alike; prompts and questions are per domain."""

    budget: Budget
    prompts: int
    questions: int


SIZES_OF_STUDY = {
    "tiny": StudySize(Budget(steps=2, batch=4, rounds=2), 4, 3),
    "quick": StudySize(Budget(steps=96, batch=8, rounds=4), 400, 200),
    "full": StudySize(Budget(steps=384, batch=8, rounds=8), 1000, 1000),
}


class Study:
    """Runs of the arms on one experiment's clients and reward models."""

    def __init__(
        self, experiment: Experiment, size: StudySize, split: Split, *, without: str | None = None, rate: float = 1.0
    ) -> None:
        """``without``: domain that nobody trains on; ``rate``: factor of all learning rates."""
        self._experiment = experiment
        self._size = size
        self._without = without
        self._rate = rate
        population = self._population = experiment.population
        if without is not None and without not in population.domains:
            raise SystemExit(f"--without {without}: the domains are {', '.join(population.domains)}")
        self.domains = [domain for domain in population.domains if domain != without]
        state = experiment.state / "federated"
        settings = f"{split}-{size.budget.steps}x{size.budget.batch}-rate-{rate:g}"
        self._kept = state / (f"without-{without}" if without else "all") / settings
        self._policy = Policy(experiment.start.base)
        folders = {"prompts": ("server", size.prompts), "questions": (split, size.questions)}
        for name, (of, rows) in folders.items():
            shares = material.evenly(population, of, rows)
            material.write_prompts(population, state / f"{name}-{of}", shares, seed=f"federated {name}")
        self.questions = measures.read_questions(self._policy, state / f"questions-{split}")
        self._prompts = read_server_prompts(self._policy, state / "prompts-server", self.domains)
        asked = read_rows(state / "prompts-server" / "prompts.jsonl")
        golds = material.read_gold(state / "prompts-server")
        self._golds = {row["id"]: gold for row, gold in zip(asked, golds, strict=True)}
        self._new: list[Pair] = []
        if without:
            share = material.PairShare(without, population.skills[without], "client", _NEW_PAIRS)
            material.write_preferences(population, state / f"new-{without}", [share], seed="new client")
            self._new = read_pairs(self._policy, state / f"new-{without}", [without])
        pairs = {
            client.name: read_pairs(self._policy, experiment.state / "clients" / client.name, self.domains)
            for client in experiment.clients
        }
        self._pairs = {client: found for client, found in pairs.items() if found}
        encoded = [pair.chosen.asked for found in self._pairs.values() for pair in found]
        encoded += [*self.questions.asked, *(prompt.asked for prompt in self._prompts)]
        self._policy.look(one.picture for one in encoded)
        self._panel = RewardPanel(experiment.state / "models", list(self._pairs))
        self._base = measures.answers(self._policy, self._policy.start, self.questions)

    def base(self) -> dict[str, Any]:
        """Measure the base model."""
        return self._measured(Trained({"": self._policy.start}))

    def arm(self, arm: FederatedArm, seed: int) -> dict[str, Any]:
        """Train by the arm and measure its policies, unless that is stored."""
        file = self._kept / f"{slug(arm.title)}-{seed}.json"
        if not file.exists():
            begun = time.monotonic()
            federation = self._federation(seed)
            trained = arm.train(federation)
            federation.ledger.check(self._size.budget, list(self._pairs), local=arm.local, server=arm.server)
            seconds = round(time.monotonic() - begun, 1)
            ledger = federation.ledger
            found = self._measured(trained) | {
                "seconds": seconds,
                "bytes to clients": ledger.to_clients,
                "bytes from clients": ledger.from_clients,
                "rows through the gradient": dict(ledger.rows),
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found))
        loaded: dict[str, Any] = json.loads(file.read_text())
        return loaded

    def _federation(self, seed: int) -> Federation:
        experiment, population = self._experiment, self._population
        scored = experiment.scored("anchors")
        names = [client.name for client in experiment.clients]
        shown = scored.with_scores(scored.scores[:, [names.index(client) for client in self._pairs]])
        rows = drawn_rows(scored.domains, even(self.domains), ANCHORS, seed)
        groups = scoring.groups(experiment.state / "anchors")
        architecture = population.references.averaged
        return Federation(
            policy=self._policy,
            pairs=self._pairs,
            prompts=self._prompts,
            anchors=AnchorPairs(shown.take(rows)),
            anchor_groups=[groups[row] for row in rows],
            label=self._label,
            panel=self._panel,
            averaged_from=[client.name for client in experiment.clients if client.architecture == architecture],
            averaged_bytes=averaging.sent_bytes(experiment.state / "models" / models.AVERAGED),
            budget=self._size.budget,
            seed=seed,
            rate=self._rate,
        )

    def _label(self, prompt: str, response: str) -> bool:
        gold = self._golds[prompt]
        return self._population.answers[gold["domain"]].correct(gold, response)

    def _measured(self, trained: Trained) -> dict[str, Any]:
        population, questions = self._population, self.questions
        given = {name: measures.answers(self._policy, one, questions) for name, one in trained.adapters.items()}
        gold = np.mean([measures.right(population, questions, texts) for texts in given.values()], axis=0)
        satisfied = {}
        for client in self._pairs:
            skills = population.client(client).skills
            rows = [
                row
                for row, gold_of in enumerate(questions.golds)
                if population.skill(gold_of) in skills and gold_of["domain"] in self.domains
            ]
            texts = given.get(client) or given[""]
            if rows:
                satisfied[client] = measures.satisfaction(self._panel, client, questions, rows, texts, self._base)
        client, least = measures.worst(satisfied)
        found: dict[str, Any] = {
            "gold": measures.by_domain(gold, questions.domains),
            "correct": gold.tolist(),
            "satisfaction": satisfied,
            "least satisfied": {"client": client, "percent": least},
        }
        if self._without:
            # Clients that train alone keep their policies, so a new client has only the base model to start from.
            start: Adapter = trained.common or self._policy.start
            found["adaptation"] = measures.adaptation(
                population, self._policy, start, self._new, questions, self._without
            )
        return found


def chosen_arms(titles: Sequence[str] | None) -> list[FederatedArm]:
    """Return the arms with these titles' slugs, by default all.

    Raises:
        SystemExit: there is no such arm.
    """
    known = {slug(arm.title): arm for arm in arms()}
    unknown = [title for title in titles or () if title not in known]
    if unknown:
        raise SystemExit(f"--arms {' '.join(unknown)}: the arms are {', '.join(known)}")
    return [known[title] for title in titles] if titles else list(known.values())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--arms", nargs="+", help="names of the arms, as in the files of stored runs; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds; each is one run of every arm")
    parser.add_argument("--without", metavar="DOMAIN", help="domain that nobody trains on")
    parser.add_argument("--questions", choices=("test", "dev"), default="test", help="split of the measured questions")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of all learning rates; choose it on dev")
    chosen = parser.parse_args(arguments)
    end_children_on_sigterm()
    torch.set_num_threads(chosen.threads)
    population = population_of(parser, chosen.population)
    experiment = Experiment(population, chosen.state, chosen.demo, SIZES[chosen.size], chosen.threads)
    if not (experiment.cache / "anchors" / "inputs.npz").exists():
        raise SystemExit(
            f"{experiment.cache} has no scores of anchors; run `python -m quality --size {chosen.size}` first"
        )
    size = SIZES_OF_STUDY[chosen.size]
    study = Study(experiment, size, chosen.questions, without=chosen.without, rate=chosen.rate)
    runs: dict[str, list[dict[str, Any]]] = {report.BASE: [study.base()]}
    for seed in chosen.seeds:
        for arm in chosen_arms(chosen.arms):
            found = study.arm(arm, seed)
            runs.setdefault(arm.title, []).append(found)
            print(f"{arm.title}, seed {seed}: {np.mean(list(found['gold'].values())):.1f} %", flush=True)
    result = {
        "budget": asdict(size.budget),
        "seeds": chosen.seeds,
        "questions": len(study.questions.golds),
        "without": chosen.without,
        "arms": report.summary(runs, study.questions.domains.tolist()),
    }
    name = f"federated-{chosen.size}" + (f"-without-{chosen.without}" if chosen.without else "")
    if chosen.questions == "dev":
        name += f"-dev-rate-{chosen.rate:g}"
    print(f"{report.markdown(result)}\n{record(record_name(population, name), result)}")


if __name__ == "__main__":
    main()
