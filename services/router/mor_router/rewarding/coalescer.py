"""Groups of responses that come in calls of their own, as trainers send them that score each response by itself.

A client's score carries only a level until it is compared with those of other responses to the same prompt. So the
responses to one prompt are gathered into a group: as many as the caller states, or those that come within a wait.
Groups that are complete at about the same time are rewarded together, in one request to each client: once no response
has come for a moment, because a trainer sends those of a step one after the other.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, NamedTuple

from mor_core.errors import Invalid, MorError, Overloaded, Unavailable
from mor_core.fair_share import FairShare
from mor_core.tasks import stop
from mor_core.token_file import Principal
from mor_core.wire import Documented, GroupReward, Messages, RewardItem
from pydantic import Field

from mor_router.rewarding.caller_rewards import CallerRewards

if TYPE_CHECKING:
    from mor_router.rewarding.group_batch import GroupOutcome

MOST_RESPONSES = 1024
"""Responses of a group, and of one call."""
WINDOW_S = 1.0
"""Wait for the responses of a group without a stated size, seconds: a trainer sends the responses of a step at once."""
GROUP_WAIT_S = 60.0
"""Wait for a group of a stated size, seconds: its responses are sampled one after the other."""
LONGEST_WAIT_S = 600.0
"""Longest wait that a caller may state, seconds: most HTTP clients have given up by then."""
_PAUSE_S = 0.02
"""Seconds without a new response after which complete groups are rewarded: short compared with their scoring."""
_LONGEST_GATHERING_S = 0.25
"""Longest time for which a complete group waits for others, seconds: about as long as a fast client scores."""
_BATCH_GROUPS = 256
"""Groups of a batch, as many as of a request to ``/v1/reward``."""
_RETRY_S = 2.0
"""``Retry-After`` of a group without a reward, seconds: the mean pause before the first retry of a run's group."""


class GroupForm(Documented):
    """Rules by which a caller's responses form groups."""

    objective: Annotated[str, Field(max_length=4000)] | None = None
    """Name of an objective (``name@3``: with gate version 3), or a text in words."""
    group_size: int | None = Field(None, ge=1, le=MOST_RESPONSES)
    """Responses of a group: it is rewarded once it has them. 1: reward each response by itself, which states its level
    only. Without it, those that come within ``wait_s`` are a group."""
    wait_s: float | None = Field(None, ge=0, le=LONGEST_WAIT_S)
    """Seconds from the first response of a group after which no more are awaited. Null: 60 with ``group_size``, else 1.
    """

    @property
    def longest_wait_s(self) -> float:
        default = WINDOW_S if self.group_size is None else GROUP_WAIT_S
        return default if self.wait_s is None else self.wait_s


@dataclass(frozen=True)
class PromptedResponse:
    """One response, its prompt, and the prompt's images."""

    messages: Messages
    response: str
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False)


class _Key(NamedTuple):
    caller: Principal
    form: GroupForm
    messages: Messages


@dataclass(eq=False)
class _Group:
    caller: Principal
    form: GroupForm
    messages: Messages
    images: Mapping[str, bytes]
    waiting: list[tuple[str, asyncio.Future[float]]] = field(default_factory=list)
    """Responses, each with its reward to come."""
    expiry: asyncio.TimerHandle | None = None

    def fail(self, error: MorError) -> None:
        for _, reward in self.waiting:
            if not reward.done():
                reward.set_exception(error)


class Coalescer:
    """Gathers responses into groups and has these rewarded."""

    def __init__(self, rewards: CallerRewards, *, most_waiting: int) -> None:
        """``most_waiting``: responses that wait for a reward, shared by the callers."""
        self._rewards = rewards
        self._most_waiting = most_waiting
        self._waiting = FairShare(most_waiting)
        self._open: dict[_Key, _Group] = {}
        """Groups that are not complete."""
        self._complete: list[_Group] = []
        self._gathering_until = 0.0
        """Time of the event loop at which the complete groups are rewarded, whatever comes."""
        self._flush: asyncio.TimerHandle | None = None
        self._batches: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Coalescer:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the waits of all callers."""
        for group in [*self._open.values(), *self._complete]:
            _cancel(group.expiry)
            group.fail(Unavailable("the router is stopping; try again", _RETRY_S))
        _cancel(self._flush)
        self._open.clear()
        self._complete.clear()
        await stop(self._batches)

    async def reward(self, caller: Principal, responses: Sequence[PromptedResponse], form: GroupForm) -> list[float]:
        """Return the reward of each of ``responses``, in logits, once the groups that they belong to have one.

        Raises:
            Invalid: a response stayed alone with its prompt, and ``form`` does not ask for levels.
            Overloaded: too many responses wait.
            Unavailable: a group did not become complete in time, or has no reward. A missing reward is never 0.
        """
        if not self._waiting.take(caller.name, len(responses)):
            raise Overloaded(
                f"{self._waiting.total} responses wait for their groups, of at most {self._most_waiting} "
                "(MOR_COALESCED_RESPONSES); send fewer at a time",
                _RETRY_S,
            )
        keys = [_Key(caller, form, response.messages) for response in responses]
        rewards = [self._join(key, response) for key, response in zip(keys, responses, strict=True)]
        try:
            done, _ = await asyncio.wait(rewards, return_when=asyncio.FIRST_EXCEPTION)
            if failure := next((error for reward in done if (error := reward.exception()) is not None), None):
                raise failure
            return [reward.result() for reward in rewards]
        finally:
            self._waiting.give_back(caller.name, len(responses))
            for reward in rewards:
                _abandon(reward)
            for key in {*keys}:
                self._tidy(key)

    def _join(self, key: _Key, response: PromptedResponse) -> asyncio.Future[float]:
        loop = asyncio.get_running_loop()
        if (group := self._open.get(key)) is None:
            group = self._open[key] = _Group(*key, response.images)
            group.expiry = loop.call_later(key.form.longest_wait_s, self._expire, key)
        reward = loop.create_future()
        group.waiting.append((response.response, reward))
        if len(group.waiting) == (key.form.group_size or MOST_RESPONSES):
            self._close_group(key)
        elif self._complete:
            self._schedule_flush()
        return reward

    def _tidy(self, key: _Key) -> None:
        """Take responses whose callers have gone out of a group that is not complete."""
        if (group := self._open.get(key)) is None:
            return
        group.waiting = [(response, reward) for response, reward in group.waiting if not reward.cancelled()]
        if not group.waiting:
            _cancel(group.expiry)
            del self._open[key]

    def _expire(self, key: _Key) -> None:
        """End the wait for further responses of a group."""
        group = self._open[key]
        size, count = group.form.group_size, len(group.waiting)
        if size is not None:
            del self._open[key]
            problem = f"{count} of {size} responses to this prompt came within {group.form.longest_wait_s:g} s"
            group.fail(Unavailable(f"{problem}; send all of them to this router, or state their number", _RETRY_S))
        elif count == 1:
            del self._open[key]
            group.fail(
                Invalid(
                    f"one response to this prompt came within {group.form.longest_wait_s:g} s, and the score of one "
                    "alone is no reward; send the others, state group_size, or ask for levels by group_size=1"
                )
            )
        else:
            self._close_group(key)

    def _close_group(self, key: _Key) -> None:
        group = self._open.pop(key)
        _cancel(group.expiry)
        if not self._complete:
            self._gathering_until = asyncio.get_running_loop().time() + _LONGEST_GATHERING_S
        self._complete.append(group)
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        loop = asyncio.get_running_loop()
        _cancel(self._flush)
        self._flush = loop.call_at(min(loop.time() + _PAUSE_S, self._gathering_until), self._reward_complete)

    def _reward_complete(self) -> None:
        """Start the rewarding of all complete groups, those of each caller together."""
        complete, self._complete, self._flush = self._complete, [], None
        by_caller: dict[Principal, list[_Group]] = defaultdict(list)
        for group in complete:
            by_caller[group.caller].append(group)
        for caller, groups in by_caller.items():
            for start in range(0, len(groups), _BATCH_GROUPS):
                batch = asyncio.create_task(self._reward_batch(caller, groups[start : start + _BATCH_GROUPS]))
                self._batches.add(batch)
                batch.add_done_callback(self._batches.discard)

    async def _reward_batch(self, caller: Principal, groups: Sequence[_Group]) -> None:
        items = [
            RewardItem(
                item_id=str(place),
                messages=group.messages,
                responses=tuple(response for response, _ in group.waiting),
                objective=group.form.objective,
            )
            for place, group in enumerate(groups)
        ]
        images = {digest: content for group in groups for digest, content in group.images.items()}
        error: MorError = Unavailable("the rewarding of this group was given up; try again", _RETRY_S)
        try:
            outcomes = await self._rewards.reward(caller, items, images)
        except MorError as failure:
            error = failure
        else:
            for group, outcome in zip(groups, outcomes, strict=True):
                _settle(group, outcome)
        finally:
            for group in groups:
                group.fail(error)


def _settle(group: _Group, outcome: GroupOutcome) -> None:
    """Give the responses of a group their rewards."""
    if not isinstance(outcome.result, GroupReward):
        group.fail(Unavailable(f"no reward: {outcome.problem_for(group.caller.scope)}", _RETRY_S))
        return
    for (_, reward), value in zip(group.waiting, outcome.result.rewards, strict=True):
        if not reward.done():
            reward.set_result(value)


def _abandon(reward: asyncio.Future[float]) -> None:
    """End the wait for a reward. A failure that nobody waits for any more is no news: asyncio would report it."""
    if not reward.cancel() and not reward.cancelled():
        reward.exception()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
