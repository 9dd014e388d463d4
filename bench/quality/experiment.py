"""MoR's central experiment, from pictures to tables: ``python -m quality [--population FOLDER]``.

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
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from machine import end_children_on_sigterm, record
from three_domains.questions import Split

from quality import (
    averaging,
    cores,
    material,
    models,
    plots,
    sampling,
    scoring,
    supervised,
    tables,
    truth,
    wire,
)
from quality.evidence import ANCHORS, ExperimentData, even
from quality.group_scores import AnchorPairs, GroupScores, Rewards
from quality.material import PairShare
from quality.objectives import brief
from quality.population import DEFAULT, Population, PopulationError, Start, find, load
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
    pictures: int = 640
    """Pictures on which a population's own base model is tuned."""
    tiny: bool = False
    """Use the smaller of the centralised reward models."""


QUICK = Size("quick", 0.6, 1700, anchors=128, styled=200, prompts=24, responses=64, draws=8)
FULL = Size("full", 2.0, 5000, anchors=256, styled=1000, prompts=200, responses=64, draws=20)
TINY = Size("tiny", 0.1, 24, anchors=100, styled=64, prompts=2, responses=8, draws=2, pictures=24, tiny=True)
"""Size for a trial of the code."""
SIZES = {size.name: size for size in (QUICK, FULL, TINY)}

_HELD_OUT: tuple[tuple[Split, float], ...] = (("server", 0.75), ("dev", 0.25))
"""Material of the held-out pairs: that of the server's prompts, and material without any training."""
_HELD_OUT_SEED = "held-out pairs"
"""Seed of the held-out pairs; the seed ``held-out`` gave the pairs on which the mixture's design was chosen."""


class Experiment:
    """Steps of the experiment on one state folder."""

    def __init__(self, population: Population, state: Path, demo: Path, size: Size, threads: int) -> None:
        """``demo``: state folder of the demonstration, for its base model and encoders."""
        self.population = population
        self.state = (state if population.folder == DEFAULT else state / population.name) / size.name
        self.size = size
        self.threads = threads
        self.clients = [replace(client, pairs=round(client.pairs * size.clients)) for client in population.clients]
        self._demo = demo
        self.cache = self.state / "scores"
        self.sampled = self.state / f"sampled-{size.prompts}"

    @cached_property
    def start(self) -> Start:
        """Base model and encoders, which are made if they do not exist."""
        return self.population.prepare(self._demo, self.state, self.size.pictures)

    def make_material(self) -> None:
        cores.run_all(self._material(), self.threads)
        sampling.sample(self.start.base, self.sampled, self.size.responses, self.threads)

    def _material(self) -> Iterator[Callable[[], None]]:
        """Yield the jobs that write the folders of pictures and rows, the largest first."""
        held_out = [
            PairShare(domain, skills, split, round(part * self.size.held_out))
            for domain, skills in self.population.skills.items()
            for split, part in _HELD_OUT
        ]
        write = partial(material.write_preferences, self.population)
        evenly = partial(material.evenly, self.population)
        yield partial(write, self.state / "held-out", held_out, seed=_HELD_OUT_SEED, each=2)
        for client in self.clients:
            shares = [
                PairShare(domain, client.of(domain), "client", client.pairs // len(client.domains))
                for domain in client.domains
            ]
            folder = self.state / "clients" / client.name
            yield partial(write, folder, shares, seed=client.name, flipped=client.flipped, style=client.taste)
        yield partial(write, self.state / "anchors", evenly("anchor", self.size.anchors), seed="anchors")
        for name, shares in (
            ("styled-anchors", evenly("anchor", ANCHORS)),
            ("styled", evenly("server", self.size.styled)),
        ):
            yield partial(write, self.state / name, shares, seed=name, style="complete")
        prompts = evenly("server", self.size.prompts)
        yield partial(material.write_prompts, self.population, self.sampled, prompts, seed="prompts")

    def train(self) -> None:
        cores.run_all(self._trainings(), self.threads)

    def _trainings(self) -> Iterator[Callable[[], object]]:
        """Yield the jobs that train the reward models, the longest first."""
        population, start, folder = self.population, self.start, self.state / "models"
        references = population.references
        pooled = models.pool(self.state, [client for client in self.clients if client.taste is None])
        how = population.options(*(references.central_when_tiny if self.size.tiny else references.central), start)
        yield models.training(models.CENTRAL, pooled, folder / models.CENTRAL, how).run
        sharing = [client for client in self.clients if client.architecture == references.averaged]
        if not (folder / models.AVERAGED).exists():
            yield partial(
                averaging.average,
                [self.state / "clients" / client.name / "prefs.jsonl" for client in sharing],
                *population.averaged(start.parts),
                folder / models.AVERAGED,
                models.AVERAGED,
            )
        for client in sorted(self.clients, key=lambda one: (one.architecture != "vlm", -one.pairs * one.epochs)):
            yield models.client_training(population, client, self.state, start).run
        anchored = population.options(*references.anchored, start)
        yield models.training(models.ANCHORED, self._first_draw(), folder / models.ANCHORED, anchored).run

    def client_models(self) -> list[Path]:
        """List the clients' model folders in the order of their scores."""
        return [self.state / "models" / client.name for client in self.clients]

    def drawn(self, seed: int) -> AnchorPairs:
        """Return the scored anchors of one draw; the first has seed 0."""
        return draw(AnchorPairs(self.scored("anchors")), even(self.population.domains), ANCHORS, seed)

    def scored(self, name: str) -> GroupScores:
        """Load the scores of a folder of groups."""
        names = [client.name for client in self.clients]
        return scoring.load(self.state / name, self.cache, names, models.OTHERS, self.population.skill)

    def score(self) -> None:
        pairs = [self.state / name for name in ("anchors", "held-out", "styled-anchors", "styled")]
        folders = [*pairs, self.sampled]
        names = [client.name for client in self.clients] + list(models.OTHERS)
        found = [self.state / "models" / name for name in names]
        embedding = partial(scoring.embed, folders, self.cache)
        cores.run_all([*scoring.missing(found, folders, self.cache), embedding], self.threads)

    def evidence(self, executor: ProcessPoolExecutor | None) -> ExperimentData:
        golds = material.read_gold(self.state / "held-out")
        return ExperimentData(
            domains=self.population.domains,
            clients=tuple(client.name for client in self.clients),
            pool=AnchorPairs(self.scored("anchors")),
            held_out=self.scored("held-out"),
            pictures=tuple(gold["picture"] for gold in golds),
            sampled=self.scored(self.sampled.name),
            truth=self._truth(),
            supervised=supervised.measure(
                self.start.base,
                self.population.answers,
                self._first_draw().parent,
                self.sampled,
                self.state / f"supervised-{self.size.prompts}",
                self.threads,
            ),
            styled=AnchorPairs(self.scored("styled-anchors")),
            styled_held_out=self.scored("styled"),
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
            drawn = [rows[row] for row in drawn_rows(domains, even(self.population.domains), ANCHORS, seed=0)]
            (folder / "prefs.jsonl").write_text("\n".join(drawn) + "\n", encoding="utf-8")
        return folder / "prefs.jsonl"

    def _truth(self) -> dict[str, Rewards]:
        of = (self.population.answers, material.read_gold(self.sampled), scoring.groups(self.sampled))
        return {"correct": truth.correctness(*of), "taste": truth.liking(*of)}

    def _agrees(self, name: str) -> np.ndarray:
        answers, agrees = self.population.answers, []
        for gold, group in zip(material.read_gold(self.state / name), scoring.groups(self.state / name), strict=True):
            first, second = (brief(answers[gold["domain"]], gold, example.response) for example in group.examples)
            agrees.append(first > second)
        return np.array(agrees)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name an experiment."""
    parser.add_argument(
        "--population",
        default=DEFAULT.name,
        help="folder of the clients and their questions (see bench/quality/population.py), or the name of one of ours",
    )
    parser.add_argument("--state", type=Path, default=Path(".mor/quality"))
    parser.add_argument(
        "--demo",
        type=Path,
        default=Path(".mor/demo"),
        help="folder of the base model and the encoders; created if absent",
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="quick")
    parser.add_argument("--threads", type=int, default=2)


def population_of(parser: argparse.ArgumentParser, name: str) -> Population:
    """Load the population that the arguments name; exit with the reason where there is none."""
    try:
        return load(find(name))
    except PopulationError as error:
        parser.error(str(error))


def record_name(population: Population, size: str) -> str:
    """Return the name of a result; the first population's has no name in it."""
    return f"quality-{size}" if population.folder == DEFAULT else f"quality-{population.name}-{size}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument(
        "--prompts", type=int, help="compare only policies, on responses to this many prompts of each domain"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="record a second run beside the first, without tables and plots; with another --state and --demo all "
        "models are trained anew",
    )
    chosen = parser.parse_args()
    end_children_on_sigterm()
    population, size, questions = population_of(parser, chosen.population), SIZES[chosen.size], QUESTIONS
    name = record_name(population, chosen.size)
    if chosen.prompts:
        size, questions, name = replace(size, prompts=chosen.prompts), (policies,), f"{name}-policies"
    experiment = Experiment(population, chosen.state, chosen.demo, size, chosen.threads)
    seconds: dict[str, float] = {}

    def timed(name: str, begun: float) -> None:
        seconds[name] = round(time.monotonic() - begun, 1)
        print(f"{name}: {seconds[name]} s", flush=True)

    for title, stage in (
        ("base model and encoders", lambda: experiment.start),
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
    path = record(
        f"{name}-again" if chosen.again else name, {"pairs": len(evidence.held_out), "seconds": seconds, **found}
    )
    text = tables.markdown(found)
    print(text)
    if not chosen.again:
        plots.draw(found, path.parent, path.stem)
        path.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
