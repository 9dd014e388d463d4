"""Rewards of groups that callers other than the runs send: checks, images by hash, quota, the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mor_core import tracing
from mor_core.errors import Invalid, Overloaded, TooLarge
from mor_core.image_budget import ImageBudget, check_named
from mor_core.missing_images import ImageCache
from mor_core.tasks import in_thread
from mor_core.token_file import Principal
from mor_core.visibility import Scope
from mor_core.wire import MOST_TEXT, Messages, RewardItem

from mor_router.clients.caller import TokenCaller
from mor_router.clients.minute_quota import MinuteQuota
from mor_router.config import RouterSettings
from mor_router.embedding import embedding_for
from mor_router.mathematics.fusion import FusionChoice
from mor_router.rewarding.group_batch import GroupBatch, GroupOutcome
from mor_router.rewarding.pipeline import RewardPipeline

_SMALL_CONVERSATION = 64
"""Messages and their parts up to which work on a request's texts takes less time than changing the thread."""


class CallerRewards:
    """Rewards for the holders of tokens. Nothing is learned from their groups."""

    def __init__(self, settings: RouterSettings, pipeline: RewardPipeline, quota: MinuteQuota) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._quota = quota
        self._images = ImageCache(settings.image_cache_bytes)

    async def images(
        self, caller: Principal, conversations: Sequence[Messages], sent: Mapping[str, bytes], *, hashed: bool = False
    ) -> dict[str, bytes]:
        """Check the texts and images of a request before any work on them; return the images that they name.

        ``hashed``: the names of ``sent`` are hashes that were computed here, not the caller's.

        Raises:
            Invalid: an image has another hash than its name.
            MissingImages: a named image came neither with this request nor with an earlier one of this caller.
            TooLarge: a conversation is too long, or the images are over the budget of a request.
        """
        if sent or sum(map(_parts, conversations)) > _SMALL_CONVERSATION:
            await in_thread(self._check, conversations, sent, hashed)
        else:
            self._check(conversations, sent, hashed)
        self._images.keep(sent, caller.name)
        found = self._images.resolve(conversations, sent, caller.name)
        if not found.keys() <= sent.keys():
            await in_thread(self._check_budget, found.values())
        return found

    def _check(self, conversations: Iterable[Messages], sent: Mapping[str, bytes], hashed: bool) -> None:
        for messages in conversations:
            characters = sum(len(message.text) for message in messages)
            if characters > MOST_TEXT:
                raise TooLarge(f"a conversation has {characters} characters, of at most {MOST_TEXT}; shorten it")
        if not hashed:
            check_named(sent)
        self._check_budget(sent.values())

    def _check_budget(self, contents: Iterable[bytes]) -> None:
        budget = ImageBudget(self._settings.max_request_bytes)
        for content in contents:
            budget.spend(content)

    async def take_quota(self, caller: Principal, responses: int) -> None:
        """Count responses that a token of scope ``scorer`` has scored in this minute, by all replicas together.

        Raises:
            Invalid: one request is over the quota.
            Overloaded: the requests of this minute are.
        """
        if caller.scope is not Scope.scorer:
            return
        most = self._settings.scorer_responses_per_minute
        if responses > most:
            raise Invalid(f"{responses} responses, and MOR_SCORER_RESPONSES_PER_MINUTE={most}; send fewer in a request")
        count, left_s = await self._quota.add(("scorer", caller.name), responses)
        if count > most:
            raise Overloaded(
                f"over {most} responses in a minute by this token, MOR_SCORER_RESPONSES_PER_MINUTE; try again in "
                f"{left_s} s",
                left_s,
            )

    async def reward(
        self,
        caller: Principal,
        items: Sequence[RewardItem],
        images: Mapping[str, bytes],
        *,
        deadline_s: float | None = None,
        fusion: FusionChoice | None = None,
        trace: str = "",
    ) -> list[GroupOutcome]:
        """Reward groups; return an outcome for each, in their order. ``trace``: ``traceparent`` of the request."""
        with tracing.span("reward", parent=trace, kind="server") as span, embedding_for(caller.name):
            outcomes, _ = await self._pipeline.reward(
                GroupBatch(items, images, dict.fromkeys((item.item_id for item in items), span.traceparent)),
                deadline_s or self._settings.deadline_s,
                fusion=fusion,
                caller=TokenCaller(caller.name),
            )
        return outcomes


def _parts(messages: Messages) -> int:
    return sum(1 if isinstance(message.content, str) else len(message.content) for message in messages)
