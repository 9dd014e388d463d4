"""Live groups of the demonstration's domains, scored by its three reward models.

The questions and pictures are those of ``gold/dev.jsonl``, so each response has a true value. The responses are drawn
from the distribution that the base model was tuned to imitate (``Answers.draft``): sampling 10,000 responses from the
model itself would take hours on two cores. Files below the state folder are kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from quality import scoring
from quality.cores import run_all
from quality.populations.demonstration import skill
from quality.truth import liking
from three_domains.domains import ANSWERS
from three_domains.questions import Gold

CLIENTS = ("chart", "detail", "medical")
"""Clients of the demonstration, each with its own reward model."""
GROUP_SIZE = 8
POLICIES = {"early": 1, "late": 3}
"""Drafts of which a policy gives the best: a run moves from one draft to the best of several."""


@dataclass(frozen=True)
class LiveGroups:
    """Groups of responses, their true values, and what a client sees of them."""

    clients: tuple[str, ...]
    inputs: Float[ndarray, "groups features"]
    """The router's embedding of question and picture."""
    scores: Float[ndarray, "groups clients size"]
    """Raw scores."""
    truth: Float[ndarray, "groups size"]
    """True value of each response; equal values have no preference."""
    texts: Int[ndarray, "groups size"]
    """Number of each response's text: equal numbers are repetitions."""
    pictures: Int[ndarray, " groups"]
    domains: tuple[str, ...]
    policy: Int[ndarray, " groups"]
    """Index of the policy in ``POLICIES``."""

    def __len__(self) -> int:
        return len(self.inputs)


def prepare(state: Path, demo: Path, threads: int) -> None:
    """Draw the policies' responses and have the demonstration's reward models score them.

    Raises:
        FileNotFoundError: the demonstration has not run.
    """
    if not all((demo / "clients" / name / "model").exists() for name in CLIENTS):
        raise FileNotFoundError(f"{demo} has no reward models; run `make demo` first, or name its folder by --demo")
    folders = draw(state, demo)
    scorers = [_linked(state / "models" / name, demo / "clients" / name / "model") for name in CLIENTS]
    run_all(scoring.missing(scorers, folders, state / "scores"), threads)
    scoring.embed(folders, state / "scores")


def draw(state: Path, demo: Path) -> list[Path]:
    """Draw the policies' responses; return a folder for each policy."""
    return [_questions(state / name, demo / "data" / "gold", best_of) for name, best_of in POLICIES.items()]


def load(state: Path) -> LiveGroups:
    """Read what ``prepare`` wrote, policy by policy."""
    found = []
    for name in POLICIES:
        folder = state / name
        golds = [json.loads(line) for line in (folder / "gold.jsonl").read_text().splitlines()]
        scored = scoring.load(folder, state / "scores", CLIENTS, (), skill)
        found.append((golds, scored, liking(ANSWERS, golds, scoring.groups(folder)), _texts(folder)))
    pictures = {gold["picture"]: None for golds, *_ in found for gold in golds}
    number = {picture: index for index, picture in enumerate(pictures)}
    texts = {
        text: index for index, text in enumerate({text: None for *_, rows in found for row in rows for text in row})
    }
    return LiveGroups(
        clients=CLIENTS,
        inputs=np.concatenate([scored.inputs for _, scored, *_ in found]),
        scores=np.concatenate([scored.scores for _, scored, *_ in found]),
        truth=np.concatenate([truth for _, _, truth, _ in found]),
        texts=np.array([[texts[text] for text in row] for *_, rows in found for row in rows]),
        pictures=np.array([number[gold["picture"]] for golds, *_ in found for gold in golds]),
        domains=tuple(gold["domain"] for golds, *_ in found for gold in golds),
        policy=np.repeat(np.arange(len(found)), [len(golds) for golds, *_ in found]),
    )


def _questions(folder: Path, gold: Path, best_of: int) -> Path:
    """Write questions, answers and one policy's responses in the files that ``quality`` reads."""
    if not folder.exists():
        scratch = folder.with_name(f".{folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(gold / "images", scratch / "images")  # a data file names no picture outside its folder
        rows = [json.loads(line) for line in (gold / "dev.jsonl").read_text(encoding="utf-8").splitlines()]
        Random(0).shuffle(rows)
        answers = [row.pop("gold") | {"picture": row["images"][0]} for row in rows]
        random = Random(folder.name)
        responses = [[drafted(answer, best_of, random) for _ in range(GROUP_SIZE)] for answer in answers]
        for name, lines in (("prompts.jsonl", rows), ("gold.jsonl", answers)):
            (scratch / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (scratch / scoring.RESPONSES).write_text(json.dumps(responses), encoding="utf-8")
        scratch.rename(folder)
    return folder


def drafted(gold: Gold, best_of: int, random: Random) -> str:
    """Draw one response of a policy that gives the best of so many drafts."""
    answers = ANSWERS[gold["domain"]]
    return max((answers.draft(gold, random) for _ in range(best_of)), key=lambda text: answers.taste(gold, text))


def _linked(link: Path, model: Path) -> Path:
    """Name a model as its client is named."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(model.resolve())
    return link


def _texts(folder: Path) -> Sequence[Sequence[str]]:
    found: list[list[str]] = json.loads((folder / scoring.RESPONSES).read_text(encoding="utf-8"))
    return found
