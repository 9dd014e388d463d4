"""Everything that was scored, and how arms are fitted and judged on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from jaxtyping import Bool
from numpy import ndarray

from quality.arms import Arm, MixtureOfRewards, Oracle, OtherModel, baselines
from quality.population import SKILLS
from quality.ranking import Right, Standing, draw, judge, standings
from quality.scored import Anchors, Groups, Rewards
from quality.supervised import Tuned

Table = dict[str, Any]
_Answer = TypeVar("_Answer")

OTHERS = {
    "averaged": "parameter-averaged reward model (FedAvg)",
    "anchored": "reward model trained on the anchors alone",
    "central": "centralised reward model (pooled data)",
}
"""Reward models that no client serves."""
REFERENCE = MixtureOfRewards.title
"""The arm that all others are compared with."""
ANCHORS = 64
EVEN = dict.fromkeys(SKILLS, 1 / len(SKILLS))
"""The domains' shares of the anchors."""


@dataclass(frozen=True)
class Evidence:
    """Everything that was scored."""

    clients: tuple[str, ...]
    pool: Anchors
    held_out: Groups
    pictures: tuple[str, ...]
    """Of each held-out pair."""
    sampled: Groups
    truth: Mapping[str, Rewards]
    """Gold values of the sampled responses by their name."""
    supervised: Tuned
    """The base model tuned on the first draw of anchors."""
    styled: Anchors
    styled_held_out: Groups
    agrees: tuple[Bool[ndarray, " anchors"], Bool[ndarray, " pairs"]]
    """Whether the brief objective prefers the same response as the complete one: styled anchors, held-out pairs."""
    wire: Mapping[str, float]
    """Bytes between the server and one client."""
    draws: int
    executor: Executor | None

    def drawn(
        self, count: int = ANCHORS, shares: Mapping[str, float] = EVEN, draws: int | None = None
    ) -> list[Anchors]:
        return [draw(self.pool, shares, count, seed) for seed in range(draws or self.draws)]

    def each(self, ask: Callable[..., _Answer], *columns: Iterable[Any]) -> Iterable[_Answer]:
        """``map``, on all cores where there is an executor."""
        return (self.executor.map if self.executor else map)(ask, *columns)

    def judged(self, arm: Arm, draws: Sequence[Anchors]) -> Right:
        return judge(arm, draws, self.held_out, self.executor)

    def standings(self, results: Mapping[str, Right], reference: str = REFERENCE) -> dict[str, Standing]:
        return standings(results, reference, self.held_out.domains, self.pictures)

    def all_arms(self) -> list[Arm]:
        others = [OtherModel(name, title) for name, title in OTHERS.items() if name in self.held_out.others]
        return [*baselines(), *others, Oracle(self.held_out), MixtureOfRewards()]


def table(found: Mapping[str, Standing]) -> Table:
    return {arm: asdict(standing) for arm, standing in found.items()}
