"""Planted live groups: three specialists, repeated responses, pictures that return."""

from __future__ import annotations

import numpy as np
from adversary.live_groups import LiveGroups

CLIENTS = ("chart", "detail", "medical")


def planted_groups(count: int, seed: int = 0) -> LiveGroups:
    random = np.random.default_rng(seed)
    domain = np.arange(count) % 3
    values = random.normal(size=(count, 6))
    texts = random.integers(0, 6, size=(count, 8))
    truth = np.take_along_axis(values, texts, axis=1)
    noise = random.normal(size=(count, 3, 6))
    errors = np.take_along_axis(noise, texts[:, None].repeat(3, 1), axis=2)
    knows = np.where(np.arange(3) == domain[:, None], 1.0, -0.2)
    return LiveGroups(
        clients=CLIENTS,
        inputs=np.eye(3)[domain] + 0.05 * random.normal(size=(count, 3)),
        scores=knows[:, :, None] * truth[:, None] + 0.8 * errors,
        truth=truth,
        texts=texts + 6 * np.arange(count)[:, None],
        pictures=random.integers(0, count // 2, size=count),
        domains=tuple(np.array(CLIENTS)[domain].tolist()),
        policy=(np.arange(count) >= count // 2).astype(int),
    )
