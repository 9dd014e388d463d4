"""Student of the mixture, and clients that a group needs: ``python -m quality.student``, after ``python -m quality``.

The server trains a reward model of its own on the mixture's rewards of its unlabelled groups. It learns from the scores
of clients and from no label but those of the anchors to which the mixture was fitted. It then scores every group for
nothing, as one more member of a mixture fitted to the same anchors, beside the clients with the most weight, which are
asked: none of them, two, or all.

The student learns on pictures of the server, from which most held-out pairs are; anchors that were not drawn are from
others.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from machine import end_children_on_sigterm, record
from mor_router.mathematics.mixture import Mixture
from numpy import ndarray

from quality import cores, material, models, sampling, scoring
from quality.arms import MixtureOfRewards
from quality.arms.mixture import serve
from quality.evidence import ANCHORS, even
from quality.experiment import SIZES, Experiment, add_arguments, population_of, record_name
from quality.group_scores import AnchorPairs, GroupScores, Rewards, agreement
from quality.ranking import drawn_rows
from quality.tables import table

_RESPONSES = 8
"""Responses to a question, as in a group of GRPO."""
_QUESTIONS = {"tiny": 6, "quick": 200, "full": 1000}
"""Unlabelled questions of each domain, by size."""
_PAIRED = ((1.0, 0.0), (1.0, 0.5), (0.5, 0.0))
"""Ranks of the better and the worse response of a pair: 0 is the least rewarded one of a group, 1 the most."""
CALLS = (0, 1, 2, 4, 8)
"""Clients that are asked about a group, apart from all."""
_PAIRS = ("anchors", "held-out")
"""Folders of labelled pairs."""


class StudentStudy:
    """Students of one experiment's mixtures."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._unlabelled = experiment.state / "unlabelled"
        self._names = [client.name for client in experiment.clients]

    def sample_and_score(self) -> None:
        """Sample the base model's responses to unlabelled questions, and score them by every client."""
        one = self._experiment
        shares = material.evenly(one.population, "server", _QUESTIONS[one.size.name])
        material.write_prompts(one.population, self._unlabelled, shares, seed="unlabelled")
        sampling.sample(one.start.base, self._unlabelled, _RESPONSES, one.threads)
        jobs = scoring.missing(one.client_models(), [self._unlabelled], one.cache)
        cores.run_all([*jobs, partial(scoring.embed, [self._unlabelled], one.cache)], one.threads)

    def measure(self, seed: int) -> dict[str, dict[str, dict[str, float]]]:
        """Train the student of one draw of anchors; return the accuracy, percent, by member and number of calls."""
        pool, held_out = self._scored("anchors"), self._scored("held-out")
        rows = drawn_rows(pool.domains, even(self._experiment.population.domains), ANCHORS, seed)
        aside = np.setdiff1d(np.arange(len(pool)), rows)
        fitted = MixtureOfRewards().mixture(AnchorPairs(pool.take(rows)))
        own = self._trained(fitted, seed)
        found = {}
        for name, student in (("clients alone", None), ("with the student", own)):
            shown, judged = (
                self._joined(groups, of, student) for groups, of in ((pool, "anchors"), (held_out, "held-out"))
            )
            mixture = MixtureOfRewards().mixture(AnchorPairs(shown.take(rows)))
            found[name] = {
                str(calls): _accuracy(
                    rewards_of_few(mixture, judged, calls, len(self._names)),
                    rewards_of_few(mixture, shown.take(aside), calls, len(self._names)),
                    judged.domains,
                )
                for calls in (*CALLS, len(self._names))
                if calls or student
            }
        return found

    def _scored(self, folder: str) -> GroupScores:
        one = self._experiment
        return scoring.load(one.state / folder, one.cache, self._names, (), one.population.skill)

    def _joined(self, groups: GroupScores, folder: str, student: Path | None) -> GroupScores:
        if student is None:
            return groups
        own = scoring.scores_of(self._experiment.state / folder, self._experiment.cache, student.name)
        return groups.with_scores(np.concatenate([groups.scores, own[:, None]], axis=1))

    def _trained(self, fitted: Mixture, seed: int) -> Path:
        """Train a student by a mixture's rewards, and score the pairs by it; return its folder."""
        one = self._experiment
        groups = scoring.load(self._unlabelled, one.cache, self._names, (), one.population.skill)
        data = one.state / "students" / f"pairs-{seed}"
        write_pairs(self._unlabelled, serve(fitted, groups), data)
        student = one.state / "students" / f"student-{seed}"
        how = one.population.options(*one.population.references.central, one.start)
        models.training(student.name, data / "prefs.jsonl", student, how).run()
        jobs = scoring.missing([student], [one.state / folder for folder in _PAIRS], one.cache)
        cores.run_all(jobs, one.threads)
        return student


def write_pairs(unlabelled: Path, rewards: Rewards, out: Path) -> None:
    """Write a preference file of the groups, labelled by their rewards, unless it exists."""
    if out.exists():
        return
    prompts = (unlabelled / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    responses = json.loads((unlabelled / scoring.RESPONSES).read_text(encoding="utf-8"))
    lines = [
        json.dumps({**json.loads(prompt), "id": f"{number}-{place}", "chosen": better, "rejected": worse})
        for number, (prompt, texts, levels) in enumerate(zip(prompts, responses, rewards, strict=True))
        for place, (better, worse) in enumerate(_pairs(texts, levels))
    ]
    scratch = out.with_name(f".{out.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shutil.copytree(unlabelled / "images", scratch / "images")
    (scratch / "prefs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    scratch.rename(out)


def _pairs(texts: Sequence[str], rewards: Sequence[float]) -> Iterator[tuple[str, str]]:
    """Yield pairs of a group's different responses, the better first."""
    levels = {text.strip(): reward for text, reward in zip(texts, rewards, strict=True) if _readable(text)}
    ordered = sorted(levels, key=levels.__getitem__)
    last = len(ordered) - 1
    places = {(round(better * last), round(worse * last)) for better, worse in _PAIRED}
    for better, worse in sorted(places, reverse=True):
        if last > 0 and levels[ordered[better]] > levels[ordered[worse]]:
            yield ordered[better], ordered[worse]


def _readable(text: str) -> bool:
    """Return whether a response may stand in a data file: it has a text, and its last token cut no character."""
    return bool(text.strip()) and "\N{REPLACEMENT CHARACTER}" not in text


def rewards_of_few(mixture: Mixture, groups: GroupScores, calls: int, clients: int) -> Rewards:
    """Compute the mixture's rewards where only the ``calls`` clients with the most weight are asked.

    ``clients``: number of the mixture's first members, which are clients. The others cost no call.
    """
    evidence: Float[ndarray, "groups members"] = mixture.evidence(groups.inputs)
    least = np.argsort(-evidence[:, :clients], axis=1, kind="stable")[:, calls:]
    few = evidence.copy()
    np.put_along_axis(few, least, 0.0, axis=1)
    units = np.stack([unit(groups.scores[:, k]) for k, unit in enumerate(mixture.standardisers)], axis=1)
    return np.asarray(np.einsum("nk,nkg->ng", few, units))


def _accuracy(held_out: Rewards, aside: Rewards, domains: Sequence[str]) -> dict[str, float]:
    right, names = agreement(held_out), np.array(domains)
    worst = min(right[names == domain].mean() for domain in sorted({*domains}))
    levels = {"held-out pairs": right.mean(), "worst domain": worst, "anchors aside": agreement(aside).mean()}
    return {name: 100 * float(level) for name, level in levels.items()}


def mean(runs: Sequence[dict[str, dict[str, dict[str, float]]]]) -> dict[str, Any]:
    """Average the accuracies over draws."""
    return {
        members: {
            calls: {on: float(np.mean([run[members][calls][on] for run in runs])) for on in levels}
            for calls, levels in rows.items()
        }
        for members, rows in runs[0].items()
    }


def markdown(result: dict[str, Any]) -> str:
    """Format the study as a table."""
    members = result["members"]
    calls = list(members["with the student"])
    rows = [
        [
            name,
            *(
                " / ".join(f"{level:.1f}" for level in found[count].values()) if count in found else ""
                for count in calls
            ),
        ]
        for name, found in members.items()
    ]
    head = [f"{count} of {calls[-1]} clients asked" for count in calls]
    return (
        f"{table(['members of the mixture', *head], rows)}\n\nHeld-out pairs / worst domain / anchors aside, % ranked "
        f"right; {ANCHORS} anchors, {len(result['seeds'])} draw(s), a student of {result['questions']:,} questions "
        f"with {_RESPONSES} responses each."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="draws of anchors; each has its student")
    chosen = parser.parse_args(arguments)
    end_children_on_sigterm()
    population = population_of(parser, chosen.population)
    experiment = Experiment(population, chosen.state, chosen.demo, SIZES[chosen.size], chosen.threads)
    if not (experiment.cache / "held-out" / "inputs.npz").exists():
        raise SystemExit(f"{experiment.cache} has no scores; run `python -m quality --size {chosen.size}` first")
    study = StudentStudy(experiment)
    study.sample_and_score()
    result = {
        "seeds": chosen.seeds,
        "questions": _QUESTIONS[chosen.size] * len(population.domains),
        "members": mean([study.measure(seed) for seed in chosen.seeds]),
    }
    path = record(record_name(population, f"student-{chosen.size}"), result)
    print(f"{markdown(result)}\n{path}")


if __name__ == "__main__":
    main()
