"""Groups that the update cannot use are dropped and replaced, and the ledger counts every group once."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from mor_core.runs import Claim, RunSpec
from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import EventLog
from mor_trainer.groups.ledger import Ledger, Receipt
from mor_trainer.groups.traces import GroupTraces
from mor_trainer.model.standby import StandbyModel
from mor_trainer.ranks import Ranks
from mor_trainer.run.loop import TrainingLoop
from mor_trainer.run.processed_prompts import ProcessedPrompts
from mor_trainer.update.learner import GroupsUnusable

from tests.trainer import rank_work
from tests.trainer.records import order_of


class ImmediateExchange:
    """An exchange whose groups come back at once, with the ledger of the real one."""

    def __init__(self) -> None:
        self.ledger: Ledger[Any] = Ledger("r", order_of(40), 0, 3)
        self.ledger.advance_version(0)
        self.traces = GroupTraces()
        self.rejected: dict[int, str] = {}
        self.put_back_numbers: list[int] = []

    async def top_up(self, in_step: int = 0) -> list[int]:
        """Issue groups that return at once; name no prompt to process ahead."""
        for issue in self.ledger.issue(self.ledger.room(4, in_step), 1e12):
            record = types.SimpleNamespace(trace=None, group_id=self.ledger.group_id(issue.number))
            group = types.SimpleNamespace(number=issue.number, record=record, staleness=0)
            assert self.ledger.receive(record.group_id, 0, group) is Receipt.accepted
        return []

    async def take(self, count: int, _: float) -> list[Any]:
        return [group for _, group, _ in self.ledger.take(count, 1e12)[0]]

    async def reject(self, group: Any, reason: str) -> None:
        self.rejected[group.number] = reason
        self.ledger.reject_taken(group.number)

    async def put_back(self, taken: Sequence[Any]) -> None:
        for group in taken:
            self.put_back_numbers.append(group.number)
            self.ledger.put_back(group.number, group, 0, 0)

    async def skip(self, count: int) -> None:
        self.ledger.skip_taken(count)

    async def no_room(self) -> None:
        return None

    async def idle_s(self) -> float:
        return 0.0


@pytest.mark.parametrize("silent", [frozenset[int](), frozenset({1, 5})])
def test_a_step_goes_on_without_the_groups_that_a_rank_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: frozenset[int]
) -> None:
    """``silent``: groups without signal, which are skipped once, before or after another group was dropped."""
    fields = {"name": "r", "model": "-", "prompts": "-", "groups_per_step": 4, "algorithm": {"dynamic_sampling": {}}}
    claim = Claim(run="r", spec=RunSpec.model_validate(fields), attempt=1, lease_s=60)
    exchange, trained = ImmediateExchange(), []
    broken = {2, 4}

    class Learner:
        def update(self, groups: Sequence[Any], step: int, *, timer: Any) -> str:
            trained.append([group.number for group in groups])
            found = {place: "unreadable" for place, group in enumerate(groups) if group.number in broken}
            if found:
                raise GroupsUnusable(found)
            return "report"

    def training_group(group: Any) -> Any:
        return types.SimpleNamespace(number=group.number, rewards=(0.0,) * 2 if group.number in silent else (0.0, 1.0))

    with start_blocking_portal("asyncio") as portal:
        lease: Any = types.SimpleNamespace(check=lambda: None)
        loop = TrainingLoop(
            WorkerSettings(runs_dir=tmp_path), claim, portal=portal, lease=lease, events=EventLog("r", 1),
            ranks=Ranks(rank_work.CPU), standby=StandbyModel(),
        )  # fmt: skip
        monkeypatch.setattr(loop, "_exchange", exchange, raising=False)
        monkeypatch.setattr(loop, "_learner", Learner(), raising=False)
        monkeypatch.setattr(loop, "_training_group", training_group)
        calm = types.SimpleNamespace(wanted=False, check_lease=lambda: None)
        monkeypatch.setattr(loop, "_interruption", calm)
        versions = types.SimpleNamespace(check=lambda: None, publish_again=lambda: None)
        monkeypatch.setattr(loop, "_versions", versions, raising=False)
        none: Any = []
        monkeypatch.setattr(loop, "_processed", ProcessedPrompts(none, none), raising=False)
        portal.call(exchange.top_up)
        taken, skipped, groups = loop._collect([])
        with pytest.raises(GroupsUnusable) as raised:
            loop._update(taken, skipped, groups)
        taken, skipped, report = loop._update_without(raised.value, taken, skipped)
    assert report == "report"
    assert exchange.rejected.keys() == broken
    numbers = [group.number for group in taken]
    assert trained[-1] == numbers
    assert not (broken | silent) & set(numbers)
    assert {group.number for group in skipped} == silent
    ledger = exchange.ledger
    assert (ledger.applied, ledger.dropped, ledger.skipped) == (4, 2, len(silent))
    assert not set(numbers) & ledger.ready.keys()
