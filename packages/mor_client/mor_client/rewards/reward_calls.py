"""Calls of the router that score groups of the caller's own, divided into requests that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import httpx
from mor_core.errors import Invalid
from mor_core.missing_images import MOST_ROUNDS, ImageRounds
from mor_core.notebook_tables import NotebookTable
from mor_core.objectives import RequestedObjective
from mor_core.request_batching import split_requests
from mor_core.tasks import in_thread, stop
from mor_core.wire import Messages, ObjectiveShare, PromptOrigin, RewardItem, Sha256, Wire, image_hashes
from pydantic import Base64Bytes, BaseModel, Field
from pydantic_core import PydanticSerializationError

from mor_client import errors
from mor_client.async_transport import AsyncTransport
from mor_client.config import ClientSettings
from mor_client.errors import ServiceError
from mor_client.given_arguments import WrongArgument, arguments, kind_of, listed
from mor_client.kept_transport import KeptTransport
from mor_client.rewards.reward_groups import GroupResult, RewardGroup
from mor_client.transport import Transport


class _RewardBody(Wire):
    items: tuple[RewardItem, ...]
    images: dict[Sha256, Base64Bytes] = Field(default_factory=dict)
    fusion: dict[str, Any] | None = None
    deadline_s: float | None = None


class _ScoreOptions(Wire):
    objective: RequestedObjective | None
    fusion: dict[str, Any] | None
    deadline_s: Annotated[float, Field(gt=0)] | None


class _RouteBody(Wire):
    messages: Messages
    objective: RequestedObjective | None
    domain: str | None
    public: bool
    images: dict[Sha256, Base64Bytes] = Field(default_factory=dict)


class _Results(BaseModel):
    items: tuple[GroupResult, ...]


class ClientWeight(NotebookTable):
    """One client's part in the reward of an input."""

    client: str
    weight: float
    reason: str | None = None
    """Reason why the client does not count."""


class Weights(NotebookTable):
    """Gate weights for an input."""

    objectives: tuple[ObjectiveShare, ...]
    gate_version: int
    note: str | None = None
    ood_score: float
    """Distance of the input from the anchors' distribution, 0 to 1."""
    clients: tuple[ClientWeight, ...]


class RewardCalls:
    """Calls about rewards. Each exists twice, for programs with and without an event loop of their own."""

    def __init__(self, router: Transport, settings: ClientSettings) -> None:
        self._router = router
        self._settings = settings
        self._transport = partial(AsyncTransport, router, settings.reward_requests, "MOR_REWARD_TIMEOUT_S")
        self._kept = KeptTransport(self._transport)

    def close(self) -> None:
        self._kept.close()

    def score(
        self,
        groups: Sequence[RewardGroup],
        *,
        objective: RequestedObjective | None = None,
        fusion: dict[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> list[GroupResult]:
        """Score groups; see ``score_async``. It also works where an event loop runs, as in a notebook."""
        options = arguments(_ScoreOptions, objective=objective, fusion=fusion, deadline_s=deadline_s)
        return self._kept.run(partial(self._score, groups=_groups(groups), options=options))

    async def score_async(
        self,
        groups: Sequence[RewardGroup],
        *,
        objective: RequestedObjective | None = None,
        fusion: dict[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> list[GroupResult]:
        """Score groups; return a result for each, in their order.

        Args:
            objective: of the groups that name none.
            fusion: fusion of the clients' scores, such as ``{"kind": "median"}``; by default the router's.
            deadline_s: seconds that clients have to score; by default the router's.

        Raises:
            Invalid: names the wrong argument, or a text that cannot be sent.
            ServiceError: the router refused, failed or did not respond. A failed call is never a reward of 0.
        """
        options = arguments(_ScoreOptions, objective=objective, fusion=fusion, deadline_s=deadline_s)
        async with self._transport() as http:
            return await self._score(http, _groups(groups), options)

    async def _score(
        self, http: AsyncTransport, groups: Sequence[RewardGroup], options: _ScoreOptions
    ) -> list[GroupResult]:
        items = [
            group.item.model_copy(
                update={"item_id": str(place), "objective": _first_given(group.item.objective, options.objective)}
            )
            for place, group in enumerate(groups)
        ]
        images = {digest: content for group in groups for digest, content in group.images.items()}
        with _written_as_json():
            parts = await in_thread(
                split_requests,
                items,
                images,
                most_items=self._settings.reward_groups,
                most_bytes=self._settings.reward_bytes,
            )
        limit = asyncio.Semaphore(self._settings.reward_requests)
        # The router plans and scores within the deadline.
        timeout_s = max(self._settings.reward_timeout_s, 2 * (options.deadline_s or 0))

        async def score_part(part: list[RewardItem]) -> dict[str, GroupResult]:
            named = {digest: images[digest] for item in part for digest in image_hashes(item.messages)}
            body = _RewardBody(items=tuple(part), fusion=options.fusion, deadline_s=options.deadline_s)
            async with limit:
                response = await self._exchange(http, "/v1/reward", body, named, timeout_s)
            return self._results(part, response)

        tasks = [asyncio.create_task(score_part(part)) for part in parts]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            await stop(tasks)
        found = {name: result for answer in answers for name, result in answer.items()}
        return [
            found[str(place)].model_copy(update={"item_id": group.item.item_id}) for place, group in enumerate(groups)
        ]

    def route(self, group: RewardGroup, *, objective: RequestedObjective | None = None) -> Weights:
        """Get the clients' weights for a prompt; see ``route_async``."""
        return self._kept.run(partial(self._route, group=group, objective=objective))

    async def route_async(self, group: RewardGroup, *, objective: RequestedObjective | None = None) -> Weights:
        """Get the clients' weights for the prompt of a group; its responses play no part. Needs a token of scope
        ``service`` or ``admin``.

        Raises:
            ServiceError: the router refused, failed or did not respond.
        """
        async with self._transport() as http:
            return await self._route(http, group, objective)

    async def _route(self, http: AsyncTransport, group: RewardGroup, objective: RequestedObjective | None) -> Weights:
        item = group.item
        origin: PromptOrigin = item.origin
        body = arguments(
            _RouteBody,
            messages=item.messages,
            objective=_first_given(item.objective, objective),
            domain=origin.domain,
            public=origin.public,
        )
        response = await self._exchange(http, "/v1/route", body, group.images, self._settings.reward_timeout_s)
        found: Weights = self._router.parse(response, Weights)
        return found

    async def _exchange(
        self,
        http: AsyncTransport,
        path: str,
        body: _RewardBody | _RouteBody,
        images: Mapping[str, bytes],
        timeout_s: float,
    ) -> httpx.Response:
        """Send a request with images by hash, and again with the bytes of those that the router lacks."""
        rounds = ImageRounds(images)
        for _ in range(MOST_ROUNDS):
            shown = body.model_copy(update={"images": rounds.sent})
            response = await http.post(path, await in_thread(_encode, shown), timeout_s)
            if response.is_success:
                return response
            try:
                rounds.take(response.content)
            except Invalid as error:
                raise errors.from_response(self._router.service, response) from error
        raise ServiceError(
            self._router.service,
            "it keeps requesting pictures that it was sent",
            "raise MOR_IMAGE_CACHE_BYTES of the router, or send fewer groups in one request (MOR_REWARD_GROUPS)",
            status=response.status_code,
        )

    def _results(self, sent: Sequence[RewardItem], response: httpx.Response) -> dict[str, GroupResult]:
        """Parse the results of ``sent``.

        Raises:
            ServiceError: they are not those of these groups.
        """
        parsed: _Results = self._router.parse(response, _Results)
        found = {result.item_id: result for result in parsed.items}
        for item in sent:
            result = found.get(item.item_id)
            rewards = None if result is None else result.rewards
            if (
                result is None
                or (result.status == "ok") != (rewards is not None)
                or (rewards is not None and len(rewards) != len(item.responses))
            ):
                raise ServiceError(
                    self._router.service,
                    f"{response.request.url} returned no result, or another number of rewards, for a group",
                    "run 'mor doctor' to compare versions",
                    status=response.status_code,
                    title="Not parsed",
                )
        return found


def _groups(given: Any) -> list[RewardGroup]:
    """Return groups to score.

    Raises:
        WrongArgument: they are something else.
    """
    if isinstance(given, RewardGroup):
        raise WrongArgument("groups: got RewardGroup, wanted a list of RewardGroup; write groups=[…]")
    found = listed("groups", given, "RewardGroup")
    for place, group in enumerate(found):
        if not isinstance(group, RewardGroup):
            raise WrongArgument(
                f"groups[{place}]: got {kind_of(group)}, wanted RewardGroup; write RewardGroup.of(prompt, responses)"
            )
    return found


def _first_given(own: RequestedObjective | None, of_call: RequestedObjective | None) -> RequestedObjective | None:
    """Return the objective of a group; an empty one is refused by the router, and not replaced."""
    return of_call if own is None else own


def _encode(body: BaseModel) -> bytes:
    with _written_as_json():
        return body.model_dump_json(exclude_none=True).encode()


@contextmanager
def _written_as_json() -> Iterator[None]:
    """
    Raises:
        Invalid: a text in memory has no UTF-8, or a value of the fusion no JSON.
    """
    try:
        yield
    except PydanticSerializationError as error:
        raise Invalid(
            "a text or value cannot be written as JSON; a text may have half a character (a lone surrogate, \\ud800 to "
            "\\udfff): write it whole"
        ) from error
