"""Treatment of responses that ``max_tokens`` cuts, or nearly cuts (DAPO, arXiv 2503.14476, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

from mor_core.algorithms import Overlong, OverlongMask, OverlongPenalty


def shape_rewards(
    rewards: Sequence[float], lengths: Sequence[int], max_tokens: int, config: Overlong | None
) -> tuple[float, ...]:
    """Return the rewards of a group, less the penalty on long responses.

    Deviation: the paper's penalty is 1, its rewards are 1 and -1; here it is ``weight`` logits.

    R_i - weight · clamp((|o_i| - (max_tokens - buffer)) / buffer, 0, 1), in which |o_i| counts tokens.
    """
    if not isinstance(config, OverlongPenalty):
        return tuple(rewards)
    free = max_tokens - config.buffer
    return tuple(
        reward - config.weight * min(1.0, max(0.0, (length - free) / config.buffer))
        for reward, length in zip(rewards, lengths, strict=True)
    )


def is_masked(finish_reason: str, config: Overlong | None) -> bool:
    """Return whether a response is left out of the update; its reward still counts in its group's baseline."""
    return finish_reason == "length" and isinstance(config, OverlongMask)
