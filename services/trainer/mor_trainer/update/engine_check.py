"""Comparison of engine and trainer on the first groups of an attempt."""

from __future__ import annotations

from mor_core.errors import MorError

from mor_trainer.algorithm.engine_difference import EngineDifference


class EngineDisagrees(MorError):
    """The engine computes other log-probabilities than the trainer from the same weights."""

    def __init__(self, difference: EngineDifference, bound: float) -> None:
        super().__init__(
            f"engine and trainer disagree by {difference.mean:.3g} nats a token, the mean over {difference.tokens} "
            f"tokens of this attempt's first groups, and max_engine_difference={bound:g} allows less; nothing was "
            "trained on them. Prompts and weights version were the same. Likely causes: the engine computes this "
            "model family in another way (positions, pictures, scale of the logits); MOR_DTYPE of the rollout service "
            "is not float32, or its weights are quantised; it has another checkpoint or processor under the same "
            "name; another version of transformers. See docs/model-families.md, try MOR_BACKEND=transformers with "
            "MOR_DTYPE=float32, and resume the run. Only where number formats explain the figure, create it again with "
            "a larger max_engine_difference"
        )


class EngineCheck:
    """Check that engine and trainer agree, before the first update of an attempt that can tell."""

    def __init__(self, bound: float | None) -> None:
        """``bound``: largest mean difference, nats a token; ``None`` turns the check off."""
        self._bound = bound
        self._done = False

    def check(self, difference: EngineDifference) -> None:
        """Check the first difference that covers any token; the run's alerts watch later ones.

        Raises:
            EngineDisagrees: it is over the bound.
        """
        if self._done or difference.mean is None:
            return
        self._done = True
        if self._bound is not None and difference.mean > self._bound:
            raise EngineDisagrees(difference, self._bound)
