"""Learning rate as a function of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math

from mor_core.optimisation import Optimiser


def learning_rate(config: Optimiser, step: int, total: int) -> float:
    """Return the rate of ``step`` (1-based) of ``total``: linear warm-up to ``lr``, then constant, linear or cosine."""
    if step <= config.warmup_steps:
        return config.lr * step / (config.warmup_steps + 1)
    done = (step - config.warmup_steps - 1) / max(1, total - config.warmup_steps)
    match config.decay:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - done)
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * done))
