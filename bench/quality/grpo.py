"""GRPO with the rewards of the best arms: ``python -m quality.grpo``, after ``python -m quality``.

Trainer, engine, queue and run control are the product's, as separate processes; only the router is replaced by the
arm, with the clients' models in its process. All arms start from the demonstration's base model, train on the same
prompts, and answer the same questions on held-out material. A seed determines the draw of anchors for the fit, the
order of the prompts, and the samples. ``bench/results/quality-grpo-SIZE.json`` stores the results; a run with stored
answers is not repeated, so seeds may run one by one or at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from machine import RESULTS, end_children_on_sigterm, record
from mor_core.tasks import stop
from numpy import ndarray
from three_domains import session, stack
from three_domains.base_vlm import read_rows
from three_domains.demo import RUN
from three_domains.stack import Stack

from quality import material, tables
from quality.arm_rewards import ArmRewards
from quality.arms import Arm, MixtureOfRewards, baselines
from quality.arms.arm import slug
from quality.evidence import ANCHORS
from quality.experiment import SIZES, Experiment, add_arguments, population_of, record_name
from quality.gold import BASE, compare

_PROMPTS = 600
"""Training prompts of each domain."""
_QUESTIONS = 1000
"""Test questions of each domain."""
_SERVICES = ("rollout", "control")
_SPEC = {name: RUN[name] for name in ("groups_per_step", "group_size", "sampling", "optimiser", "algorithm")}


class ClosedLoop:
    """GRPO runs of the experiment's arms, with stored answers."""

    def __init__(self, experiment: Experiment, steps: int) -> None:
        self._experiment = experiment
        self._steps = steps
        self._state = experiment.state / "grpo"
        self._prompts = experiment.state / "grpo-prompts"
        self.questions = experiment.state / "grpo-questions"

    def make_material(self) -> None:
        population = self._experiment.population
        prompts = material.evenly(population, "server", _PROMPTS)
        questions = material.evenly(population, "test", _QUESTIONS)
        material.write_prompts(population, self._prompts, prompts, seed="training")
        material.write_prompts(population, self.questions, questions, seed="test")

    def base(self) -> Float[ndarray, " questions"]:
        """Grade the base model's answers: 1 where an answer is right."""
        return self._kept("base", lambda running: None)

    def arm(self, arm: Arm, seed: int) -> Float[ndarray, " questions"]:
        """Train with the arm's reward and grade the model's answers: 1 where an answer is right."""
        return self._kept(f"{slug(arm.title)}-{seed}", lambda running: asyncio.run(self._train(running, arm, seed)))

    def _kept(self, name: str, train: Callable[[Stack], None]) -> Float[ndarray, " questions"]:
        file = self._state / f"{name}.json"
        if not file.exists():
            running = stack.prepare(self._state / name, self._experiment.start.base.resolve())
            try:
                running.start("redis", "worker", *_SERVICES)
                list(running.wait_until_ready(_SERVICES))
                train(running)
                answers = session.answer(running, self.questions / "prompts.jsonl", RUN["sampling"]["max_tokens"])
                rows = dict(answers)
            finally:
                running.stop()
            file.write_text(json.dumps(rows))
        return self._graded(json.loads(file.read_text()))

    def _graded(self, answers: dict[str, str]) -> Float[ndarray, " questions"]:
        golds, rows = material.read_gold(self.questions), read_rows(self.questions / "prompts.jsonl")
        return np.array(
            [
                float(self._experiment.population.answers[gold["domain"]].correct(gold, answers[row["id"]]))
                for gold, row in zip(golds, rows, strict=True)
            ]
        )

    async def _train(self, running: Stack, arm: Arm, seed: int) -> None:
        session.stop_earlier_runs(running)
        spec = {
            **_SPEC,
            "name": slug(arm.title),
            "model": str(self._experiment.start.base.resolve()),
            "prompts": str((self._prompts / "prompts.jsonl").resolve()),
            "steps": self._steps,
            "seed": seed,
        }
        run = session.create_run(running, spec)
        redis_url = f"redis://127.0.0.1:{running.ports['redis']}/0"
        score = arm.fit(self._experiment.drawn(seed))
        async with ArmRewards(redis_url, run, arm.title, self._experiment.client_models(), score) as rewards:
            serving = asyncio.create_task(rewards.serve())
            watching = asyncio.create_task(asyncio.to_thread(lambda: list(session.follow(running, run))))
            try:
                await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
            finally:
                await stop([serving])
            await watching


def best_arms(found: dict[str, Any], count: int) -> list[Arm]:
    """Select MoR and the baselines with the best offline policies at a KL of 1 nat, best first."""
    curves = found["policies"]["by anchors"][str(ANCHORS)]["curves"]

    def value(arm: Arm) -> float:
        curve = curves[arm.title]
        return float(dict(zip(curve["kl"], curve["correct"], strict=True)).get(1.0, -np.inf))

    ranked = sorted(baselines(), key=value, reverse=True)
    return [MixtureOfRewards(), *ranked[: count - 1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--arms", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; each is one run of every arm")
    parser.add_argument("--steps", type=int, default=100)
    chosen = parser.parse_args()
    end_children_on_sigterm()
    torch.set_num_threads(1)  # the trainer and the engine need the other cores
    population = population_of(parser, chosen.population)
    offline = [RESULTS / f"{record_name(population, chosen.size)}{of}.json" for of in ("-policies", "")]
    measured = next((file for file in offline if file.is_file()), None)
    if measured is None:
        raise SystemExit(f"{offline[-1]} does not exist; run `python -m quality --size {chosen.size}` first")
    experiment = Experiment(population, chosen.state, chosen.demo, SIZES[chosen.size], chosen.threads)
    loop = ClosedLoop(experiment, chosen.steps)
    loop.make_material()
    base, arms = loop.base(), best_arms(json.loads(measured.read_text()), chosen.arms)
    runs: dict[str, list[ndarray]] = {arm.title: [] for arm in arms}
    for seed in chosen.seeds:
        for arm in arms:
            started = time.monotonic()
            answered = loop.arm(arm, seed)
            runs[arm.title].append(answered)
            spent = time.monotonic() - started
            print(f"{arm.title}, seed {seed}: {100 * answered.mean():.1f} %, {spent:.0f} s", flush=True)
    right = {BASE: base[None], **{title: np.stack(answers) for title, answers in runs.items()}}
    domains = [gold["domain"] for gold in material.read_gold(loop.questions)]
    found = {
        "steps": chosen.steps,
        "seeds": chosen.seeds,
        "questions": len(domains),
        "arms": compare(right, domains),
    }
    print(f"{tables.trained(found)}\n{record(record_name(population, f'grpo-{chosen.size}'), found)}")


if __name__ == "__main__":
    main()
