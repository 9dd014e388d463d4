"""Scored data of the experiment, with the fit and evaluation of arms on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from jaxtyping import Bool
from numpy import ndarray

from quality.arms import Arm, MixtureOfRewards, Oracle, OtherModel, baselines
from quality.group_scores import AnchorPairs, GroupScores, Rewards
from quality.ranking import ArmStanding, Right, draw, judge, standings
from quality.supervised import Tuned

Table = dict[str, Any]
_Answer = TypeVar("_Answer")

OTHERS = {
    "averaged": "parameter-averaged reward model (FedAvg)",
    "anchored": "reward model trained on the anchors alone",
    "central": "centralised reward model (pooled data)",
}
"""Titles of the reward models that no client serves."""
REFERENCE = MixtureOfRewards.title
"""Title of the arm to which all others are compared."""
ANCHORS = 64
"""Anchors of a fit, unless a question varies their number."""


@dataclass(frozen=True)
class ExperimentData:
    """Scored data of the experiment."""

    domains: tuple[str, ...]
    clients: tuple[str, ...]
    pool: AnchorPairs
    held_out: GroupScores
    pictures: tuple[str, ...]
    """Picture of each held-out pair."""
    sampled: GroupScores
    truth: Mapping[str, Rewards]
    """Gold values of the sampled responses by their name."""
    supervised: Tuned
    """Figures of the base model tuned on the first draw of anchors."""
    styled: AnchorPairs
    styled_held_out: GroupScores
    agrees: tuple[Bool[ndarray, " anchors"], Bool[ndarray, " pairs"]]
    """True where both objectives prefer the same response: styled anchors, held-out pairs."""
    wire: Mapping[str, float]
    """Bytes between the server and one client."""
    draws: int
    executor: Executor | None

    def drawn(
        self, count: int = ANCHORS, shares: Mapping[str, float] | None = None, draws: int | None = None
    ) -> list[AnchorPairs]:
        """Draw anchors, by default with equal shares of the domains."""
        shares = shares or even(self.domains)
        return [draw(self.pool, shares, count, seed) for seed in range(draws or self.draws)]

    def each(self, function: Callable[..., _Answer], *columns: Iterable[Any]) -> Iterable[_Answer]:
        """Map a function over columns, on all cores if there is an executor."""
        return (self.executor.map if self.executor else map)(function, *columns)

    def judged(self, arm: Arm, draws: Sequence[AnchorPairs]) -> Right:
        return judge(arm, draws, self.held_out, self.executor)

    def standings(self, results: Mapping[str, Right], reference: str = REFERENCE) -> dict[str, ArmStanding]:
        return standings(results, reference, self.held_out.domains, self.pictures)

    def all_arms(self) -> list[Arm]:
        others = [OtherModel(name, title) for name, title in OTHERS.items() if name in self.held_out.others]
        return [*baselines(), *others, Oracle(self.held_out), MixtureOfRewards()]


def even(domains: Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(domains, 1 / len(domains))


def table(found: Mapping[str, ArmStanding]) -> Table:
    return {arm: asdict(standing) for arm, standing in found.items()}
