"""Cost of privacy for the mixture: fused accuracy on held-out pairs, by form of the answers and by the clients' ε.

The router's own fit and serving (``quality.arms.MixtureOfRewards``) on the clients' scores of held-out preference pairs
of every client's domain. A draw of these pairs are the anchors; the mixture is judged on the rest, about other
pictures. All clients answer in the same form, anchors included, or have trained with the same ε.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from mor_core.datafiles import Preference, read_preferences
from mor_reward import model_store
from mor_reward.preference_trainer import PreferencePair
from mor_reward.scoring_engine import ScoringEngine
from mor_reward.splits import materials, split_rows
from mor_router.embedding import GateInput, build_embedder
from numpy import ndarray
from quality.arms import MixtureOfRewards
from quality.group_scores import AnchorPairs, GroupScores, agreement
from quality.scoring import scores

from privacy import membership
from privacy.limited_forms import FORMS, answered

EPSILON = 3.0
"""ε of the clients' private training."""
_BATCH = 128


@dataclass(frozen=True)
class CostSize:
    """Size of the measurement."""

    pairs: int
    """Held-out pairs of each client."""
    anchors: int
    """Anchors of one draw."""
    draws: int


SIZES = {
    "full": CostSize(330, 192, 20),
    "quick": CostSize(120, 96, 10),
}


@dataclass(frozen=True)
class ScoredPairs:
    """Held-out pairs of all domains, scored by every client."""

    groups: GroupScores
    private: GroupScores
    """The same pairs, scored by the clients' models that were trained with differential privacy."""
    pictures: tuple[frozenset[Any], ...]


def measure(state: Path, clients: Sequence[str], size: CostSize) -> dict[str, Any]:
    """Return the fused accuracy for each form of the answers, and what it loses against unlimited ones."""
    held_out = _scored(state, clients, size.pairs)
    draws = [_draw(held_out, size.anchors, seed) for seed in range(size.draws)]
    answers = {name: _answered(held_out.groups, name) for name in FORMS}
    answers[f"as they are, trained with ε = {EPSILON:g}"] = held_out.private
    right = {name: _judged(groups, draws) for name, groups in answers.items()}
    plain = right["as they are"]
    forms = []
    for name, found in right.items():
        lost = 100 * (plain - found)
        low, high = np.percentile(_replicates(lost), [2.5, 97.5])
        forms.append(
            {
                "answers": name,
                "accuracy": float(100 * np.nanmean(found)),
                "lost_points": float(np.nanmean(lost)),
                "lost_interval": [float(low), float(high)],
                "alone": [float(100 * agreement(answers[name].scores[:, k]).mean()) for k in range(len(clients))],
            }
        )
    return {"clients": list(clients), "pairs": len(held_out.groups), "anchors": size.anchors, "forms": forms}


def _scored(state: Path, clients: Sequence[str], most: int) -> ScoredPairs:
    """Score the pairs that no client was trained on."""
    rows: list[Preference] = []
    domains: list[str] = []
    for client in clients:
        manifest = model_store.read_manifest(membership.folder(state, client, None))
        own = read_preferences(state / "data" / "clients" / client / "prefs.jsonl")
        splits = split_rows([materials(row) for row in own], manifest.recipe.heldout_fraction, manifest.recipe.seed)
        chosen = (*splits.report, *splits.calibration)[:most]
        rows += [own[row] for row in chosen]
        domains += [client] * len(chosen)
    items = [[pair.chosen, pair.rejected] for pair in map(PreferencePair.of, rows)]

    def by_models(epsilon: float | None) -> Float[ndarray, "pairs clients size"]:
        found = []
        for client in clients:
            print(f"scoring {len(items)} pairs by {client}, ε {membership.arm(epsilon)}", flush=True)
            manifest, model = model_store.load(membership.folder(state, client, epsilon))
            found.append(scores(ScoringEngine(model, manifest.temperature, _BATCH), items, client))
        return np.stack(found, axis=1)

    inputs = asyncio.run(
        build_embedder(None, None, 100_000).inputs([GateInput(row.prompt.messages, row.prompt.images) for row in rows])
    )
    groups = GroupScores(np.asarray(inputs), by_models(None), tuple(domains))
    return ScoredPairs(groups, groups.with_scores(by_models(EPSILON)), tuple(materials(row) for row in rows))


def _draw(held_out: ScoredPairs, anchors: int, seed: int) -> Bool[ndarray, " pairs"]:
    """Return which pairs are anchors. No picture is in both parts: pairs of an anchor's picture are anchors too."""
    chosen: set[Any] = set()
    found = np.zeros(len(held_out.groups), dtype=bool)
    for row in np.random.default_rng(seed).permutation(len(found)):
        if found.sum() < anchors:
            chosen |= held_out.pictures[row]
            found |= np.array([bool(chosen & pictures) for pictures in held_out.pictures])
    return found


def _answered(groups: GroupScores, form: str) -> GroupScores:
    limited = [answered(FORMS[form], groups.scores[:, client], seed=client) for client in range(groups.scores.shape[1])]
    return groups.with_scores(np.stack(limited, axis=1))


def _judged(groups: GroupScores, draws: Sequence[Bool[ndarray, " pairs"]]) -> Float[ndarray, "draws pairs"]:
    """Return 1 for each pair that the mixture ranks as labelled, ½ for a tie, NaN where it is an anchor."""
    found = []
    for anchors in draws:
        score = MixtureOfRewards().fit(AnchorPairs(groups.take(anchors)))
        right = np.full(len(groups), np.nan)
        right[~anchors] = agreement(score(groups.take(~anchors)))
        found.append(right)
    return np.stack(found)


def _replicates(lost: Float[ndarray, "draws pairs"], count: int = 2000) -> Float[ndarray, " replicates"]:
    """Return bootstrap means over pairs; the draws of anchors are the same in all."""
    random, by_pair = np.random.default_rng(0), np.nanmean(lost, axis=0)
    by_pair = by_pair[~np.isnan(by_pair)]
    return np.asarray(by_pair[random.integers(0, len(by_pair), (count, len(by_pair)))].mean(axis=1))
