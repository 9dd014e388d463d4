"""Handling of ``POST /v1/score``: limits, pictures by hash, batching."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog
import torch
from mor_core import background
from mor_core.errors import Overloaded, TooLarge
from mor_core.fair_share import FairShare
from mor_core.image_budget import ImageBudget, check_named
from mor_core.missing_images import ImageCache
from mor_core.wire import MOST_TEXT, Card, ItemScores, ModelRef, ScoreItem, ScoreRequest, ScoreResponse, image_hashes

from mor_reward import model_store
from mor_reward.answers.answer_guard import AnswerGuard
from mor_reward.audit_record import read_record
from mor_reward.backbones import Example, Picture
from mor_reward.batcher import Batcher
from mor_reward.concurrent_scoring import ConcurrentScoring
from mor_reward.config import RewardSettings
from mor_reward.function_scorer import FunctionScorer
from mor_reward.group_scorer import GroupScorer
from mor_reward.metrics import ERRORS, ITEMS, REQUEST_SECONDS, count_lookups
from mor_reward.scoring_engine import UNSUITABLE, ItemOutcome, ScoringEngine
from mor_reward.upstream import UpstreamScorer, UpstreamSettings

log = structlog.get_logger(__name__)

_WITH_OTHERS = "with the items before it, this item is over a limit of a request"


class ScoringService:
    """A reward model with its card, caches and queue."""

    def __init__(self, queue: Batcher | ConcurrentScoring, card: Card, settings: RewardSettings) -> None:
        self._card = card
        self._settings = settings
        self._queue = queue
        self._images = ImageCache(settings.image_cache_bytes, settings.max_image_bytes, count_lookups("images"))
        self._in_flight = FairShare(settings.concurrency)
        self._guard = AnswerGuard(settings, lambda: self.card, sees_pictures=queue.uses_pictures, context=queue.context)
        self._loop: asyncio.Task[None] | None = None

    @property
    def card(self) -> Card:
        """Card of the model that answers now."""
        if self._queue.version is None:
            return self._card
        model = ModelRef(name=self._card.model.name, version=self._queue.version)
        return self._card.model_copy(update={"model": model})

    async def problem(self) -> str | None:
        """Return the reason why nothing is scored; ``None`` while items are."""
        if self._loop is None or self._loop.done():
            return "the scoring loop is not running"
        return await self._queue.problem()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Run the scoring loop; at exit, finish the queued items."""
        await self._queue.problem()  # after which the version is known on which the noise of an answer depends
        self._loop = background.start(self._queue.run, essential=True)
        async with self._guard.open():
            try:
                yield
            finally:
                self._queue.close()
                await self._loop

    async def score(self, request: ScoreRequest, deadline_ms: float | None, caller: str) -> ScoreResponse:
        """Score all items, as the reward contract states. Callers share the model evenly.

        ``deadline_ms``: how long the caller waits from now, in milliseconds.

        Raises:
            MissingImages: a message refers to pictures whose bytes the service does not hold.
            TooLarge: the request exceeds a limit of the card. Pictures over a limit concern their item alone.
            Invalid: the bytes of a picture do not match their hash.
            Overloaded: too many requests, or not enough time before the deadline.
            Unavailable: the deadline passed, or the service is stopping.
        """
        started = time.monotonic()
        deadline = started + (math.inf if deadline_ms is None else deadline_ms / 1000)
        with self._admitted(caller):
            self._check_limits(request)
            await asyncio.to_thread(check_named, request.images)
            self._images.keep(request.images)
            pictures = self._pictures(request)
            refused = await asyncio.to_thread(self._refuse_items, pictures)
            places = [place for place in range(len(request.items)) if place not in refused]
            admitted = await self._guard.admit(
                caller, [(request.items[place], _examples(request.items[place], pictures[place])) for place in places]
            )
            items = [item.examples for item in admitted if item.refusal is None]
            scored = iter(await self._queue.score(items, deadline, caller) if items else ())
            answered = {
                place: self._guard.answer(caller, item, None if item.refusal is not None else next(scored))
                for place, item in zip(places, admitted, strict=True)
            }
            outcomes = [refused.get(place) or answered[place] for place in range(len(request.items))]
        for outcome in outcomes:
            ITEMS.labels(status=outcome.status).inc()
        REQUEST_SECONDS.observe(time.monotonic() - started)
        return ScoreResponse(
            model=self.card.model,
            items=tuple(
                ItemScores(
                    item_id=item.item_id, status=outcome.status, scores=outcome.scores, detail=self._told(outcome)
                )
                for item, outcome in zip(request.items, outcomes, strict=True)
            ),
        )

    def _told(self, outcome: ItemOutcome) -> str | None:
        return outcome.detail if self._settings.disclosure == "full" else outcome.brief or outcome.detail

    @contextmanager
    def _admitted(self, caller: str) -> Iterator[None]:
        if not self._in_flight.take(caller):
            ERRORS.labels(reason="concurrency").inc()
            raise Overloaded(f"{self._in_flight.total} requests are being scored, the maximum; try again later")
        try:
            yield
        finally:
            self._in_flight.give_back(caller)

    def _check_limits(self, request: ScoreRequest) -> None:
        if len(request.items) > self._settings.max_items:
            raise TooLarge(
                f"{len(request.items)} items; a request may have at most {self._settings.max_items}: split it"
            )
        for item in request.items:
            if len(item.responses) > self._settings.max_responses:
                raise TooLarge(
                    f"item {item.item_id!r} has {len(item.responses)} responses; an item may have at most "
                    f"{self._settings.max_responses}: split it"
                )
            characters = sum(len(message.text) for message in item.messages)
            longest = max(map(len, item.responses))
            if max(characters, longest) > MOST_TEXT:
                raise TooLarge(
                    f"item {item.item_id!r} has a text of {max(characters, longest)} characters, of at most "
                    f"{MOST_TEXT}: shorten it"
                )

    def _refuse_items(self, pictures: Sequence[tuple[Picture, ...]]) -> dict[int, ItemOutcome]:
        """Return the outcome of each item, by its place, whose pictures are over a limit.

        An item over a limit by itself is unscorable. One that only exceeds what the items before it left of the
        request's budget is an error, because a request of its own would be scored.
        """
        refused: dict[int, ItemOutcome] = {}
        budget = ImageBudget(self._settings.max_request_bytes)
        seen: set[str] = set()
        for place, shown in enumerate(pictures):
            contents = {picture.sha256: picture.content for picture in shown}
            try:
                self._check_pictures(contents)
            except TooLarge as error:
                refused[place] = ItemOutcome("unscorable", detail=str(error), brief=UNSUITABLE)
                continue
            try:
                budget.spend(*(content for digest, content in contents.items() if digest not in seen))
                seen |= set(contents)
            except TooLarge as error:
                refused[place] = ItemOutcome("error", detail=f"{_WITH_OTHERS}: {error}", brief=_WITH_OTHERS)
        for outcome in refused.values():
            ERRORS.labels(reason="pictures").inc()
            log.warning("an item's pictures are over a limit", status=outcome.status, detail=outcome.detail)
        return refused

    def _check_pictures(self, contents: Mapping[str, bytes]) -> None:
        """Check the pictures of one item.

        Raises:
            TooLarge: a picture is over the card's limit, or all of them are over the budget of a request.
        """
        most = self._settings.max_image_bytes
        for digest, content in contents.items():
            if len(content) > most:
                raise TooLarge(f"image {digest[:12]} has {len(content)} bytes, of at most {most}; scale it down")
        ImageBudget(self._settings.max_request_bytes).spend(*contents.values())

    def _pictures(self, request: ScoreRequest) -> list[tuple[Picture, ...]]:
        """Return the pictures of each item."""
        if not self._queue.uses_pictures:
            return [() for _ in request.items]
        images = self._images.resolve((item.messages for item in request.items), request.images)
        held = {digest: Picture(digest, content) for digest, content in images.items()}
        return [tuple(held[digest] for digest in image_hashes(item.messages)) for item in request.items]


def _examples(item: ScoreItem, shown: tuple[Picture, ...]) -> list[Example]:
    return [Example(item.messages, shown, response, item.objective) for response in item.responses]


def open_model(settings: RewardSettings) -> ScoringService:
    """Load or connect the model that ``settings`` name and build its service.

    Raises:
        Invalid: the model folder or function does not exist or cannot be loaded, or the upstream cannot be called so.
    """
    if settings.model_dir is not None:
        return _trained_model(settings, settings.model_dir)
    scorer, name = _group_scorer(settings)
    card = Card(
        model=ModelRef(name=settings.name or name, version=scorer.version),
        domains=settings.domains or "",
        calibration=None,
        privacy=None,
        answers=settings.answer_limits,
        distillation=settings.distillation,
        asks=settings.asks,
        limits=settings.limits,
    )
    return ScoringService(ConcurrentScoring(scorer, most_responses=settings.queue_responses), card, settings)


def _trained_model(settings: RewardSettings, folder: Path) -> ScoringService:
    torch.set_num_threads(settings.threads)
    manifest, backbone = model_store.load(folder, settings.device)
    backbone.use_cache(settings.feature_cache_bytes)
    audited = read_record(folder, manifest.version)
    card = Card(
        model=ModelRef(name=settings.name or manifest.name, version=manifest.version),
        domains=settings.domains or manifest.domains,
        calibration=manifest.calibration,
        privacy=manifest.privacy,
        audit=None if audited is None else audited.statement,
        answers=settings.answer_limits,
        distillation=settings.distillation,
        asks=settings.asks,
        limits=settings.limits,
    )
    engine = ScoringEngine(backbone, manifest.temperature, settings.batch_responses, settings.encode_timeout_s)
    queue = Batcher(
        engine,
        batch_responses=settings.batch_responses,
        queue_responses=settings.queue_responses,
        wait_s=settings.batch_wait_ms / 1000,
    )
    return ScoringService(queue, card, settings)


def _group_scorer(settings: RewardSettings) -> tuple[GroupScorer, str]:
    """Return the function or upstream, and its usual name."""
    if settings.function is not None:
        function = FunctionScorer(settings.function, at_once=settings.calls_at_once, timeout_s=settings.call_timeout_s)
        return function, settings.function.rpartition(":")[2]
    upstream = UpstreamScorer(UpstreamSettings.of(settings))
    return upstream, settings.upstream_model or str(settings.upstream)
