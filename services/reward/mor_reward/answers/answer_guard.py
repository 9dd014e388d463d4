"""Guard between the reward model and its callers: budgets before scoring, the form of the answer after it, the log."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from mor_core import atomic, background
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure
from mor_core.prompt_index.file_lock import FileLock
from mor_core.wire import Card, ScoreItem

from mor_reward.answers.answer_form import AnswerForm, as_array
from mor_reward.answers.answer_keys import AnswerKeys
from mor_reward.answers.answer_ledger import AnswerLedger, DayBudget, GroupDebit
from mor_reward.answers.query_log import QueryLog
from mor_reward.backbones import Example
from mor_reward.config import AnswerSettings
from mor_reward.metrics import ANSWERS_REFUSED
from mor_reward.scoring_engine import ItemOutcome

CARD_FILE = "card.json"
_LOCK_FILE = "lock"
_MOST_REMEMBERED = 1 << 16
"""Scores that are remembered, some megabytes."""
_LOG_DRAIN_S = 5.0
"""Longest wait for the query log at the end, seconds."""
_OBJECTIVE_CHARACTERS = 200
"""Characters of an objective's text in the query log."""
_LONGEST_DEBIT_S = 30.0
"""Longest wait for the ledger, seconds: a disk that does not answer must not hold requests for ever."""


@dataclass(frozen=True)
class AdmittedItem:
    """Item of a request, with the hashes of its answers."""

    item: ScoreItem
    examples: Sequence[Example]
    answers: Sequence[bytes] = ()
    """Hash of each answer; none without ``answers_dir``."""
    refusal: str | None = None
    """Reason why it is not scored."""


class AnswerGuard:
    """Limits on the answers of one service, and its record of them."""

    def __init__(
        self,
        settings: AnswerSettings,
        card: Callable[[], Card],
        *,
        sees_pictures: bool,
        context: Callable[[Sequence[Example]], str] = lambda group: "",
    ) -> None:
        """``card``: function that returns the card of the model that answers now. ``context``: see ``GroupScorer``.

        Raises:
            Invalid: the folder cannot be used, another process uses it, or no answer fits into the budget.
        """
        self._form = AnswerForm.of(settings)
        self._card = card
        self._sees_pictures = sees_pictures
        self._context = context
        self._texts = settings.query_log_texts
        self._remembered: OrderedDict[bytes, float] = OrderedDict()
        self._lock: FileLock | None = None
        self._keys: AnswerKeys | None = None
        self._ledger: AnswerLedger | None = None
        self._log: QueryLog | None = None
        if (folder := settings.answers_dir) is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = FileLock.acquire(folder / _LOCK_FILE)
            if self._lock is None:
                raise Invalid(
                    f"another process uses MOR_ANSWERS_DIR={folder}, and budgets have one ledger; "
                    "give each service a folder of its own, and run one replica"
                )
            self._keys = AnswerKeys.of_folder(folder)
            atomic.write(folder / CARD_FILE, card().model_dump_json(indent=2).encode() + b"\n", mode=0o600)
        except OSError as error:
            raise Invalid(f"MOR_ANSWERS_DIR={folder}: {describe_failure(error)}; give a writable folder") from error
        if settings.has_budget:
            self._ledger = AnswerLedger(folder, DayBudget.of(settings), settings.query_log_days)
        if settings.query_log:
            self._log = QueryLog(folder, most_bytes=settings.query_log_bytes, most_days=settings.query_log_days)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Run the query log; at exit, write what waits."""
        writer = None if self._log is None else background.start(self._log.run)
        try:
            yield
        finally:
            if self._log is not None and writer is not None:
                self._log.close()
                await asyncio.wait([writer], timeout=_LOG_DRAIN_S)
                writer.cancel()
            if self._ledger is not None:
                self._ledger.close()
            if self._lock is not None:
                self._lock.release()

    async def admit(self, caller: str, items: Sequence[tuple[ScoreItem, Sequence[Example]]]) -> list[AdmittedItem]:
        """Debit items, each with its examples, before they are scored.

        Raises:
            Unavailable: the ledger cannot be written.
        """
        if self._keys is None:
            return [AdmittedItem(item, examples) for item, examples in items]
        try:
            async with asyncio.timeout(_LONGEST_DEBIT_S):
                return await asyncio.to_thread(self._admit, self._keys, caller, items)
        except TimeoutError as error:
            raise Unavailable("the ledger of answers was not written in time; try again later") from error

    def _admit(
        self, keys: AnswerKeys, caller: str, items: Sequence[tuple[ScoreItem, Sequence[Example]]]
    ) -> list[AdmittedItem]:
        hashes = [
            keys.answers(
                self._card().model,
                examples,
                sees_pictures=self._sees_pictures,
                context=(self._form.precision, self._context(examples)),
            )
            for _, examples in items
        ]
        reasons: Sequence[str | None] = [None] * len(items)
        if self._ledger is not None:
            debits = [
                GroupDebit(
                    keys.group(answers),
                    frozenset(answers),
                    keys.subjects(examples[0], sees_pictures=self._sees_pictures),
                )
                for answers, (_, examples) in zip(hashes, items, strict=True)
            ]
            reasons = self._ledger.debit(caller, debits)
        return [
            AdmittedItem(item, examples, answers, reason)
            for (item, examples), answers, reason in zip(items, hashes, reasons, strict=True)
        ]

    def answer(self, caller: str, item: AdmittedItem, outcome: ItemOutcome | None) -> ItemOutcome:
        """Return the answer to an item, and log it. ``outcome``: the model's; ``None`` where it was not asked."""
        if outcome is None:
            ANSWERS_REFUSED.inc()
            answered = ItemOutcome("unscorable", detail=item.refusal)
        else:
            answered = self._shaped(item, outcome)
        self._record(caller, item, answered)
        return answered

    def _shaped(self, item: AdmittedItem, outcome: ItemOutcome) -> ItemOutcome:
        if outcome.scores is None or self._form == AnswerForm(range=self._form.range):
            return outcome
        scores = outcome.scores
        normals = np.zeros(len(scores))
        if self._keys is not None:
            # The last bits of a score depend on its batch, and must not change how it is rounded or ranked.
            scores = tuple(self._remember(answer, score) for answer, score in zip(item.answers, scores, strict=True))
            if self._form.noise is not None:
                normals = as_array([self._keys.normal(answer) for answer in item.answers])
        return ItemOutcome("ok", tuple(self._form(as_array(scores), normals).tolist()))

    def _record(self, caller: str, item: AdmittedItem, outcome: ItemOutcome) -> None:
        if self._log is None or self._keys is None:
            return
        keys, first = self._keys, item.examples[0]
        status = "refused" if item.refusal is not None else outcome.status
        entry: dict[str, object] = {
            "at": datetime.datetime.fromtimestamp(time.time(), datetime.UTC).isoformat(timespec="milliseconds"),
            "caller": caller,
            "version": self._card().model.version,
            "objective": None if item.item.objective is None else item.item.objective[:_OBJECTIVE_CHARACTERS],
            "question": keys.question(first),
            "pictures": [keys.picture(digest).hex() for message in first.messages for digest in message.image_hashes],
            "responses": [keys.text(example.response) for example in item.examples],
            "status": status,
            "scores": outcome.scores,
        }
        if self._texts:
            entry["texts"] = {
                "messages": [message.model_dump(mode="json") for message in first.messages],
                "responses": [example.response for example in item.examples],
            }
        self._log.add(entry)

    def _remember(self, answer: bytes, score: float) -> float:
        """Return the score that this answer had before, if it is remembered, or this one."""
        known = self._remembered.setdefault(answer, score)
        self._remembered.move_to_end(answer)
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return known
