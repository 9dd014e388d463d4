"""MoR's central experiment, from pictures to tables: ``python -m quality --state DIR [--full]``.

Every step writes files below the state folder and is skipped if they exist: pictures and preferences, one reward model
per client, sampled responses, scores. With existing scores, all comparisons take minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from machine import record
from mor_reward.backbones import DualEncoderConfig
from mor_reward.train_config import TrainConfig
from three_domains import prepare
from three_domains.questions import Split

from quality import (
    averaging,
    cores,
    material,
    models,
    objectives,
    plots,
    sampling,
    scoring,
    supervised,
    tables,
    truth,
    wire,
)
from quality.evidence import ANCHORS, EVEN, ExperimentData
from quality.group_scores import AnchorPairs, GroupScores, Rewards
from quality.material import PairShare
from quality.population import CLIENTS, SKILLS, SimulatedClient, options
from quality.questions import QUESTIONS, policies
from quality.ranking import draw, drawn_rows


@dataclass(frozen=True)
class Size:
    """Size of the experiment; rows are per domain."""

    name: str
    clients: float
    """Factor of each client's pairs."""
    held_out: int
    anchors: int
    styled: int
    prompts: int
    responses: int
    draws: int
    central: str
    """Architecture of the centralised reward model; a VLM is stronger and slower."""


QUICK = Size("quick", 0.6, 1700, anchors=128, styled=200, prompts=24, responses=64, draws=8, central="vlm")
FULL = Size("full", 2.0, 5000, anchors=256, styled=1000, prompts=200, responses=64, draws=20, central="vlm")
TINY = Size("tiny", 0.1, 24, anchors=100, styled=64, prompts=2, responses=8, draws=2, central="dinov2")
"""Size for a trial of the code."""
SIZES = {size.name: size for size in (QUICK, FULL, TINY)}

_HELD_OUT: tuple[tuple[Split, float], ...] = (("server", 0.75), ("dev", 0.25))
"""Material of the held-out pairs: that of the server's prompts, and material without any training."""
_HELD_OUT_SEED = "held-out pairs"
"""Seed of the held-out pairs; the seed ``held-out`` gave the pairs on which the mixture's design was chosen."""


class Experiment:
    """Steps of the experiment on one state folder."""

    def __init__(self, state: Path, demo: Path, size: Size, threads: int) -> None:
        """``demo``: state folder of the demonstration with ``base`` and ``parts``."""
        self.state = state / size.name
        self.base, self.parts = demo / "base", demo / "parts"
        self.size = size
        self.threads = threads
        self.clients = [replace(client, pairs=round(client.pairs * size.clients)) for client in CLIENTS]
        self.cache = self.state / "scores"
        self.sampled = self.state / f"sampled-{size.prompts}"

    def make_material(self) -> None:
        cores.run_all(self._material(), self.threads)
        sampling.sample(self.base, self.sampled, self.size.responses, self.threads)

    def _material(self) -> Iterator[Callable[[], None]]:
        """Yield the jobs that write the folders of pictures and rows, the largest first."""
        held_out = [
            PairShare(domain, SKILLS[domain], split, round(part * self.size.held_out))
            for domain in SKILLS
            for split, part in _HELD_OUT
        ]
        write, complete = material.write_preferences, partial(objectives.prefer, "complete")
        yield partial(write, self.state / "held-out", held_out, seed=_HELD_OUT_SEED, each=2)
        for client in self.clients:
            shares = [
                PairShare(domain, _of(client, domain), "client", client.pairs // len(client.domains))
                for domain in client.domains
            ]
            judge = partial(objectives.prefer, client.taste) if client.taste else material.taste
            folder = self.state / "clients" / client.name
            yield partial(write, folder, shares, seed=client.name, flipped=client.flipped, judge=judge)
        yield partial(write, self.state / "anchors", material.evenly("anchor", self.size.anchors), seed="anchors")
        for name, shares in (
            ("styled-anchors", material.evenly("anchor", ANCHORS)),
            ("styled", material.evenly("server", self.size.styled)),
        ):
            yield partial(write, self.state / name, shares, seed=name, judge=complete)
        prompts = material.evenly("server", self.size.prompts)
        yield partial(material.write_prompts, self.sampled, prompts, seed="prompts")

    def train(self) -> None:
        cores.run_all(self._trainings(), self.threads)

    def _trainings(self) -> Iterator[Callable[[], object]]:
        """Yield the jobs that train the reward models, the longest first."""
        base, parts, folder = str(self.base), str(self.parts), self.state / "models"
        pooled = models.pool(self.state, [client for client in self.clients if client.taste is None])
        how = options(self.size.central, 2 if self.size.central == "vlm" else 3, base, parts)
        yield models.training(models.CENTRAL, pooled, folder / models.CENTRAL, how).run
        sharing = [client for client in self.clients if client.architecture == "dinov2"]
        if not (folder / models.AVERAGED).exists():
            yield partial(
                averaging.average,
                [self.state / "clients" / client.name / "prefs.jsonl" for client in sharing],
                DualEncoderConfig(
                    vision=f"{parts}/dinov2-small", text=f"{parts}/minilm", image_size=168, vision_layers=(8,)
                ),
                TrainConfig(lr=1e-3, weight_decay=0.05, mismatch=4),
                folder / models.AVERAGED,
                models.AVERAGED,
            )
        for client in sorted(self.clients, key=lambda one: (one.architecture != "vlm", -one.pairs * one.epochs)):
            yield models.client_training(client, self.state, self.base, self.parts).run
        anchored = options("efficientnet", 8, base, parts)
        yield models.training(models.ANCHORED, self._first_draw(), folder / models.ANCHORED, anchored).run

    def client_models(self) -> list[Path]:
        """List the clients' model folders in the order of their scores."""
        return [self.state / "models" / client.name for client in self.clients]

    def drawn(self, seed: int) -> AnchorPairs:
        """Return the scored anchors of one draw; the first has seed 0."""
        names = tuple(client.name for client in self.clients)
        pool = AnchorPairs(scoring.load(self.state / "anchors", self.cache, names, models.OTHERS))
        return draw(pool, EVEN, ANCHORS, seed)

    def score(self) -> None:
        pairs = [self.state / name for name in ("anchors", "held-out", "styled-anchors", "styled")]
        folders = [*pairs, self.sampled]
        names = [client.name for client in self.clients] + list(models.OTHERS)
        found = [self.state / "models" / name for name in names]
        embedding = partial(scoring.embed, folders, self.cache)
        cores.run_all([*scoring.missing(found, folders, self.cache), embedding], self.threads)

    def evidence(self, executor: ProcessPoolExecutor | None) -> ExperimentData:
        names = tuple(client.name for client in self.clients)

        def load(name: str) -> GroupScores:
            return scoring.load(self.state / name, self.cache, names, models.OTHERS)

        golds = material.read_gold(self.state / "held-out")
        return ExperimentData(
            clients=names,
            pool=AnchorPairs(load("anchors")),
            held_out=load("held-out"),
            pictures=tuple(gold["picture"] for gold in golds),
            sampled=load(self.sampled.name),
            truth=self._truth(),
            supervised=supervised.measure(
                self.base,
                self._first_draw().parent,
                self.sampled,
                self.state / f"supervised-{self.size.prompts}",
                self.threads,
            ),
            styled=AnchorPairs(load("styled-anchors")),
            styled_held_out=load("styled"),
            agrees=(self._agrees("styled-anchors"), self._agrees("styled")),
            wire=wire.traffic(self.sampled, self.state / "models" / models.AVERAGED),
            draws=self.size.draws,
            executor=executor,
        )

    def _first_draw(self) -> Path:
        """Write the anchors of the first draw as a preference file; return its folder."""
        folder, pool = self.state / "anchored", self.state / "anchors"
        if not folder.exists():
            rows = (pool / "prefs.jsonl").read_text(encoding="utf-8").splitlines()
            domains = [json.loads(row)["domain"] for row in rows]
            shutil.copytree(pool / "images", folder / "images")
            drawn = [rows[row] for row in drawn_rows(domains, EVEN, ANCHORS, seed=0)]
            (folder / "prefs.jsonl").write_text("\n".join(drawn) + "\n", encoding="utf-8")
        return folder / "prefs.jsonl"

    def _truth(self) -> dict[str, Rewards]:
        golds, groups = material.read_gold(self.sampled), scoring.groups(self.sampled)
        return {"correct": truth.correctness(golds, groups), "taste": truth.liking(golds, groups)}

    def _agrees(self, name: str) -> np.ndarray:
        golds = material.read_gold(self.state / name)
        groups = scoring.groups(self.state / name)
        return np.array(
            [
                objectives.brief(gold, group.examples[0].response) > objectives.brief(gold, group.examples[1].response)
                for gold, group in zip(golds, groups, strict=True)
            ]
        )


def _of(client: SimulatedClient, domain: str) -> list[str]:
    return [skill for skill in client.skills if skill.startswith(f"{domain}/")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", type=Path, default=Path(".mor/quality"))
    parser.add_argument(
        "--demo",
        type=Path,
        default=Path(".mor/demo"),
        help="folder of the base model and the encoders; created if absent",
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="quick")
    parser.add_argument(
        "--prompts", type=int, help="compare only policies, on responses to this many prompts of each domain"
    )
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    size, questions, name = SIZES[chosen.size], QUESTIONS, f"quality-{chosen.size}"
    if chosen.prompts:
        size, questions, name = replace(size, prompts=chosen.prompts), (policies,), f"{name}-policies"
    for step in prepare.steps(chosen.demo, "default", 0)[:3]:
        step.run()
    experiment = Experiment(chosen.state, chosen.demo, size, chosen.threads)
    seconds: dict[str, float] = {}

    def timed(name: str, begun: float) -> None:
        seconds[name] = round(time.monotonic() - begun, 1)
        print(f"{name}: {seconds[name]} s", flush=True)

    for title, stage in (
        ("material", experiment.make_material),
        ("training", experiment.train),
        ("scoring", experiment.score),
    ):
        begun = time.monotonic()
        stage()
        timed(title, begun)
    found: dict[str, object] = {}
    with cores.executor(chosen.threads) as executor:
        begun = time.monotonic()
        evidence = experiment.evidence(executor)
        timed("supervised tuning", begun)
        for question in questions:
            begun = time.monotonic()
            found[question.__name__] = question(evidence)
            timed(question.__name__, begun)
    path = record(name, {"pairs": len(evidence.held_out), "seconds": seconds, **found})
    plots.draw(found, path.parent, size.name)
    text = tables.markdown(found)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
