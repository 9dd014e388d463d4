"""Held-out accuracy over ε, of the linear part trained on a public start, for the demonstration's clients.

The start is trained on questions about the server's pictures with a true and a false answer each, which count as
public: it knows what pictures show, and nothing of a client's taste. Each ε is drawn several times.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from mor_core.datafiles import read_preferences
from mor_reward import model_store
from mor_reward.audit.roc_curve import auc
from mor_reward.preference_trainer import PreferencePair, encode_features
from mor_reward.private_training.accounting import default_delta
from mor_reward.private_training.linear_part import LinearPairs, linearise
from mor_reward.private_training.logistic import private_fit
from mor_reward.private_training.privacy_noise import PrivacyNoise
from mor_reward.private_training.privacy_units import PrivacyUnits, privacy_units, unit_materials
from mor_reward.progress import NoProgress
from mor_reward.splits import Splits, split_rows
from three_domains import prepare, public_start

from privacy.membership import PRESET, SEED

EPSILONS = (8.0, 3.0, 1.0)
DRAWS, QUICK_DRAWS = 10, 2
_HELD_OUT = 0.2
_THREADS = 1


def measure(state: Path, quick: bool) -> dict[str, Any]:
    """Train the public starts, and fit each client's linear part at each ε."""
    torch.set_num_threads(_THREADS)
    for step in (*prepare.steps(state, PRESET, SEED), *public_start.steps(state, SEED, _THREADS)):
        step.run()
    draws = QUICK_DRAWS if quick else DRAWS
    return {
        "draws": draws,
        "clients": {client: _client(state, client, draws) for client in public_start.OPTIONS},
    }


def _client(state: Path, client: str, draws: int) -> dict[str, Any]:
    rows = read_preferences(state / "data" / "clients" / client / "prefs.jsonl")
    pairs = [PreferencePair.of(row) for row in rows]
    _, backbone = model_store.load(public_start.folder(state, client))
    rows = read_preferences(state / "public" / client / "prefs.jsonl")
    public = [PreferencePair.of(row) for row in rows]
    encode_features(backbone, [*pairs, *public], NoProgress())
    splits = split_rows([unit_materials(pair, "picture") for pair in pairs], _HELD_OUT, SEED)
    linear, units = linearise(backbone, pairs), privacy_units(pairs, "picture")
    found = over_epsilon(linear, linearise(backbone, public).features, units, splits, draws)
    member = np.zeros(len(pairs))
    member[list(splits.train)] = 1
    return {**found, "start_auc": auc(units.means(linear.margins), units.means(member) > 0)}


def over_epsilon(
    pairs: LinearPairs, public: Float[np.ndarray, "public dim"], units: PrivacyUnits, splits: Splits, draws: int
) -> dict[str, Any]:
    """Return the accuracy on the held-out pairs by ε: mean and standard deviation over draws of the noise.

    ``public``: features of public pairs.
    """
    held_out = [*splits.calibration, *splits.report]
    train = LinearPairs(pairs.features[list(splits.train)], pairs.margins[list(splits.train)], pairs.blocks)
    within, delta = units.within(splits.train), default_delta(len(units))

    def accuracy(change: np.ndarray) -> float:
        return float((pairs.margins[held_out] + pairs.features[held_out] @ change > 0).mean())

    found: dict[str, Any] = {
        "units": len(within),
        "delta": delta,
        "held_out_pairs": len(held_out),
        "start": accuracy(np.zeros(pairs.features.shape[1])),
    }
    for epsilon in EPSILONS:
        fits = [
            accuracy(private_fit(train, within, epsilon, delta, PrivacyNoise(), public=public).change)
            for _ in range(draws)
        ]
        found[f"{epsilon:g}"] = {"mean": float(np.mean(fits)), "deviation": float(np.std(fits))}
    return found
