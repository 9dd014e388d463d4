"""Report for a client's data-protection officer: what was asked, by whom, what bounds it, and what is left of it."""

from __future__ import annotations

import datetime
import itertools
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.plain_files import read_plain_file
from mor_core.wire import AnswerLimits, Card, Count, Documented
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mor_reward.answers import gaussian_budget
from mor_reward.answers.answer_guard import CARD_FILE
from mor_reward.answers.answer_ledger import DaySpent, read_spent, utc_day
from mor_reward.answers.query_log import LONGEST_LINE, PATTERN

_LARGEST_CARD = 256 << 10
_MOST_OBJECTIVES = 1000
"""Objectives that are told apart; the rest counts as one."""
_DAY_S = 86400
_OTHER = "(others)"
_NONE = "(none)"
_Hash = Annotated[str, StringConstraints(max_length=64)]


class _LoggedItem(BaseModel):
    """Line of the query log, as far as the report needs it."""

    model_config = ConfigDict(extra="ignore")

    at: datetime.datetime
    lost: Count = 0
    caller: Annotated[str, StringConstraints(max_length=1000)] = ""
    objective: Annotated[str, StringConstraints(max_length=1000)] | None = None
    question: _Hash = ""
    pictures: tuple[_Hash, ...] = ()
    responses: tuple[_Hash, ...] = ()
    status: Literal["ok", "unscorable", "error", "refused"] | None = None


class CallerQueries(Documented):
    """Questions of one caller, and the rest of its budget of this day."""

    caller: str
    items: Count = 0
    scored: Count = 0
    """Items that were scored."""
    refused: Count = 0
    """Items that a budget refused."""
    failed: Count = 0
    """Items that could not be scored."""
    responses: Count = 0
    """Responses of the scored items."""
    questions: Count = 0
    """Different questions, pictures included."""
    pictures: Count = 0
    """Different pictures."""
    objectives: dict[str, Count] = Field(default_factory=dict)
    """Items by objective."""
    groups_debited: Count = 0
    """Different groups that the ledger has in the period, each day for itself; 0 without a budget."""
    epsilon: float | None = None
    """Bound of the ε that all its answers in the period have spent; null: no budget of ε."""
    groups_today: Count = 0
    """Different groups that the ledger counts today."""
    groups_left: int | None = None
    """Groups that it may still ask today; null: no budget."""
    epsilon_today: float | None = None
    """ε that its answers have spent today; null: no budget."""
    answers_left: int | None = None
    """Further answers for which today's ε suffices; null: no budget."""


class ProtectionReport(Documented):
    """Questions to a reward service, and the bounds of its answers."""

    since: datetime.date
    until: datetime.date
    card: Card | None
    """The service's card at its last start, with domains, limits, audit and claim of differential privacy."""
    callers: tuple[CallerQueries, ...]
    logged_since: datetime.date | None
    """First day in the period of which the query log has a line; null: none."""
    epsilon: float | None
    """Bound of the ε of all answers in the period, should the callers compare them; null: no budget of ε."""
    lost_lines: Count
    """Lines that the log lost for want of room: the figures are too low by these."""
    unreadable_lines: Count


def build(folder: Path, days: int) -> ProtectionReport:
    """Read the log and the ledger of the last ``days`` days in ``folder``; the service may run meanwhile.

    Raises:
        Invalid: no service has used the folder, or its files cannot be read.
    """
    now = time.time()
    since, today = utc_day(now - (days - 1) * _DAY_S), utc_day(now)
    card = _read_card(folder)
    callers: dict[str, CallerQueries] = {}
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    objectives: dict[str, Counter[str]] = defaultdict(Counter)
    lost = unreadable = 0
    logged_since: datetime.date | None = None
    for item in _items(folder, since):
        if item is None:
            unreadable += 1
            continue
        logged_on = item.at.astimezone(datetime.UTC).date()
        logged_since = min(logged_on, logged_since or logged_on)
        if item.status is None:
            lost += item.lost
        else:
            one = callers.setdefault(item.caller, CallerQueries(caller=item.caller))
            ok = item.status == "ok"
            callers[item.caller] = one.model_copy(
                update={
                    "items": one.items + 1,
                    "scored": one.scored + ok,
                    "refused": one.refused + (item.status == "refused"),
                    "failed": one.failed + (item.status in ("error", "unscorable")),
                    "responses": one.responses + ok * len(item.responses),
                }
            )
            seen["questions", item.caller].add(item.question)
            seen["pictures", item.caller].update(item.pictures)
            told, name = objectives[item.caller], item.objective or _NONE
            told[name if name in told or len(told) < _MOST_OBJECTIVES else _OTHER] += 1
    debits = [one for one in read_spent(folder) if since <= one.day <= today]
    limits = card.answers if card is not None else None
    return ProtectionReport(
        since=datetime.date.fromisoformat(since),
        until=datetime.date.fromisoformat(today),
        card=card,
        callers=tuple(
            callers.get(name, CallerQueries(caller=name)).model_copy(
                update={
                    "questions": len(seen["questions", name]),
                    "pictures": len(seen["pictures", name]),
                    "objectives": dict(objectives[name].most_common()),
                    **_spent([one for one in debits if one.caller == name], today, limits),
                }
            )
            for name in sorted(callers.keys() | {one.caller for one in debits})
        ),
        logged_since=logged_since,
        epsilon=_epsilon(debits, limits),
        lost_lines=lost,
        unreadable_lines=unreadable,
    )


def _spent(debits: Sequence[DaySpent], today: str, limits: AnswerLimits | None) -> dict[str, object]:
    """Return what one caller's debits have spent, and what the limits leave of today."""
    of_today = [one for one in debits if one.day == today]
    groups = sum(one.queries for one in of_today)
    found: dict[str, object] = {
        "groups_debited": sum(one.queries for one in debits),
        "groups_today": groups,
        "epsilon": _epsilon(debits, limits),
        "epsilon_today": _epsilon(of_today, limits),
    }
    if limits is not None and limits.queries_per_day is not None:
        found["groups_left"] = max(0, limits.queries_per_day - groups)
    if limits is not None and limits.epsilon_per_day and limits.delta and limits.noise and limits.sensitivity:
        most = gaussian_budget.largest_cost(limits.epsilon_per_day, limits.delta)
        left = most - sum(one.rho for one in of_today)
        found["answers_left"] = max(0, int(left / gaussian_budget.cost(limits.sensitivity, limits.noise)))
    return found


def _epsilon(debits: Sequence[DaySpent], limits: AnswerLimits | None) -> float | None:
    """Return the ε of the debits' answers together."""
    if limits is None or limits.delta is None:
        return None
    return gaussian_budget.epsilon(sum(one.rho for one in debits), limits.delta)


def _read_card(folder: Path) -> Card | None:
    file = folder / CARD_FILE
    try:
        return Card.model_validate_json(read_plain_file(file, _LARGEST_CARD), extra="ignore")
    except FileNotFoundError as error:
        raise Invalid(
            f"{file} does not exist: no service has used this folder; give the folder of its MOR_ANSWERS_DIR"
        ) from error
    except ValidationError as error:
        raise Invalid(f"{file}: {describe(error)}; start the service again, which writes it") from error


def _items(folder: Path, since: str) -> Iterator[_LoggedItem | None]:
    """Yield the lines of the log since a day; ``None`` for one that is no line of it."""
    for file in sorted(folder.glob(PATTERN)):
        if file.name < f"queries-{since}":
            continue
        with file.open("rb") as lines:
            for line in iter(lambda: lines.readline(LONGEST_LINE), b""):
                try:
                    yield _LoggedItem.model_validate(json.loads(line), extra="ignore")
                except (ValueError, RecursionError):
                    yield None


def as_text(report: ProtectionReport) -> list[str]:
    """Return the report in sentences."""
    lines = [f"Answers of this reward service, {report.since} to {report.until} (UTC)", ""]
    if report.card is not None:
        lines += [*_card_lines(report.card), ""]
    if report.logged_since is None:
        lines.append("The query log has no line of these days: nobody asked, or it is switched off (MOR_QUERY_LOG).")
    elif report.logged_since > report.since:
        lines.append(
            f"The query log begins on {report.logged_since}: before, nobody asked, it was off, or files were deleted."
        )
    for one in report.callers:
        if not one.items:
            lines.append(
                f"{one.caller}: {one.groups_debited} different groups in the ledger, and none in the query log"
            )
        else:
            lines.append(
                f"{one.caller}: {one.items} items asked ({one.questions} different questions, {one.pictures} "
                f"pictures); {one.scored} scored with {one.responses} responses, {one.refused} refused by a budget, "
                f"{one.failed} failed"
            )
        lines += [f"  {count} items for the objective: {name}" for name, count in _shown(one.objectives)]
        if one.groups_left is not None:
            lines.append(f"  today: {one.groups_today} different groups, {one.groups_left} left")
        if one.epsilon_today is not None:
            left = "" if one.answers_left is None else f"; room for {one.answers_left} more"
            lines.append(f"  today: answers worth ε = {one.epsilon_today:.3g}{left}")
        if one.epsilon is not None:
            lines.append(f"  in all these days: answers worth ε = {one.epsilon:.3g} at most")
    if report.epsilon is not None and len(report.callers) > 1:
        lines.append(f"All callers together, should they compare answers: ε = {report.epsilon:.3g} at most")
    if report.lost_lines:
        lines.append(f"The log lost {report.lost_lines} lines for want of room: the figures are too low by these.")
    if report.unreadable_lines:
        lines.append(f"{report.unreadable_lines} lines of the log cannot be read and are left out.")
    return lines


def _shown(objectives: dict[str, int], most: int = 10) -> list[tuple[str, int]]:
    listed = list(itertools.islice(objectives.items(), most))
    rest = sum(objectives.values()) - sum(count for _, count in listed)
    return [*listed, (_OTHER, rest)] if rest else listed


def _card_lines(card: Card) -> list[str]:
    lines = [f"Model: {card.model.name}, version {card.model.version}", f"Subjects: {card.domains or 'not stated'}"]
    if (claim := card.privacy) is not None:
        unit = f" for each {claim.unit}" if claim.unit is not None else ""
        lines.append(f"Training: differentially private, ε = {claim.epsilon:g}, δ = {claim.delta:g}{unit} (a claim)")
    else:
        lines.append("Training: no differential privacy is claimed")
    if card.audit is None:
        lines.append("Audit: none; run 'mor-reward audit', and restart the service")
    else:
        for attack in card.audit.attacks:
            low, high = attack.auc_interval
            lines.append(
                f"Audit of {card.audit.date}: the best attack tells whether a {attack.unit} was trained on with an AUC "
                f"of {attack.auc:.2f} ({low:.2f} to {high:.2f}; 0.5 is guessing)"
            )
    limits = None if card.answers is None else card.answers.model_dump(exclude_none=True, exclude_defaults=True)
    shown = ", ".join(f"{name} {value}" for name, value in (limits or {}).items())
    lines.append(f"Limits of answers: {shown or 'none'}")
    lines.append(f"Training of another model on the scores: {card.distillation or 'not stated'}")
    return lines
