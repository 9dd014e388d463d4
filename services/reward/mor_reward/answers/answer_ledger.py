"""Ledger of what each caller was answered in a day, on the disk before an answer leaves.

A group is debited before it is scored. A process that is killed may thus have debited a group that it never answered,
and never answers one that it did not debit. The same question costs nothing again on that day.
"""

from __future__ import annotations

import datetime
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mor_core.disk_full import DiskFull, is_disk_full, watched
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure

from mor_reward.answers import gaussian_budget
from mor_reward.config import AnswerSettings

LEDGER_FILE = "ledger.sqlite3"
MOST_ANSWERS = 1_000_000
"""Different answers to one caller in a day where no smaller budget is set: about 60 MB of the ledger."""
_DIGEST_DAYS = 2
"""Days whose questions, and sums at least, are remembered: a clock that is set back over midnight forgets nothing."""
_LOCK_S = 5.0
"""Longest wait for the file, seconds: only 'mor-reward report' reads it meanwhile."""
_DAY_S = 86400
_COLUMNS = {
    "totals": "day, caller, queries, answers, rho",
    "asked": "day, caller, digest",
    "pictures": "day, caller, picture, answers",
}
_TABLES = """
CREATE TABLE IF NOT EXISTS totals (
  day TEXT NOT NULL,          -- UTC
  caller TEXT NOT NULL,
  queries INTEGER NOT NULL,   -- different groups
  answers INTEGER NOT NULL,   -- different questions with a response
  rho REAL NOT NULL,          -- sum of the answers' Renyi costs
  PRIMARY KEY (day, caller)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS asked (
  day TEXT NOT NULL,
  caller TEXT NOT NULL,
  digest BLOB NOT NULL,       -- of a group or of an answer
  PRIMARY KEY (day, caller, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pictures (
  day TEXT NOT NULL,
  caller TEXT NOT NULL,
  picture BLOB NOT NULL,      -- or a question without pictures
  answers INTEGER NOT NULL,
  PRIMARY KEY (day, caller, picture)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class GroupDebit:
    """Group that is asked."""

    group: bytes
    answers: frozenset[bytes]
    pictures: frozenset[bytes]
    """Pictures, or the question where it has none."""


@dataclass(frozen=True)
class DaySpent:
    """Sum of what one caller was answered in a day."""

    day: str
    caller: str
    queries: int
    answers: int
    rho: float


@dataclass(frozen=True)
class DayBudget:
    """Budget of each caller for a day."""

    queries: int | None = None
    answers_per_picture: int | None = None
    rho: float | None = None
    """Largest sum of the answers' Rényi costs."""
    rho_of_answer: float = 0.0

    @classmethod
    def of(cls, settings: AnswerSettings) -> DayBudget:
        """Return the budget of a service.

        Raises:
            Invalid: not one answer fits into it.
        """
        of_answer, most = 0.0, None
        if settings.score_noise is not None:
            of_answer = gaussian_budget.cost(settings.sensitivity, settings.score_noise)
        if settings.answer_epsilon_per_day is not None:
            most = gaussian_budget.largest_cost(settings.answer_epsilon_per_day, settings.answer_delta)
            if of_answer > most:
                one = gaussian_budget.epsilon(of_answer, settings.answer_delta)
                raise Invalid(
                    f"one answer costs ε = {one:.3g}, over MOR_ANSWER_EPSILON_PER_DAY={settings.answer_epsilon_per_day}"
                    f": its sensitivity is {settings.sensitivity:g} logits and the noise {settings.score_noise:g}; "
                    "raise the noise or the budget, lower MOR_SCORE_RANGE, or set the MOR_SCORE_SENSITIVITY that you "
                    "can vouch for"
                )
        return cls(settings.queries_per_day, settings.answers_per_picture, most, of_answer)


class AnswerLedger:
    """Ledger in a folder. Thread-safe; one process writes it."""

    def __init__(self, folder: Path, budget: DayBudget, days: int) -> None:
        """``days``: age at which sums are deleted.

        Raises:
            Invalid: the file is no ledger.
        """
        self._budget = budget
        self._days = days
        self._lock = threading.Lock()
        self._swept = ""
        file = folder / LEDGER_FILE
        try:
            self._sql = sqlite3.connect(file, timeout=_LOCK_S, isolation_level=None, check_same_thread=False)
            self._sql.execute("PRAGMA journal_mode = WAL")
            self._sql.execute("PRAGMA synchronous = FULL")  # each commit is on the disk when it returns
            self._sql.executescript(_TABLES)
            for table, columns in _COLUMNS.items():  # which a file of something else may lack
                self._sql.execute(f"SELECT {columns} FROM {table} LIMIT 0")  # noqa: S608
            (found,) = self._sql.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            raise Invalid(f"{file}: {describe_failure(error)}; restore it, or move it away to begin anew") from error
        if found != "ok":
            raise Invalid(f"{file} is damaged ({found}); restore it, or move it away to begin anew")

    def close(self) -> None:
        with self._lock:
            self._sql.close()

    def debit(self, caller: str, groups: Sequence[GroupDebit]) -> list[str | None]:
        """Debit groups; return for each the reason why it is refused, or ``None``. Refused groups cost nothing.

        Raises:
            DiskFull: nothing was debited, so nothing may be answered.
            Unavailable: the file failed otherwise, likewise.
        """
        day = utc_day(time.time())
        try:
            with self._lock, watched("answer_ledger"), self._transaction():
                if day != self._swept:
                    self._sweep(day)
                return [self._debit(day, caller, group) for group in groups]
        except sqlite3.Error as error:
            if is_disk_full(error):
                raise DiskFull("the disk of MOR_ANSWERS_DIR is full, so no answer can be debited; make room") from error
            raise Unavailable(f"the ledger of answers failed ({describe_failure(error)}); try again later") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise

    def _debit(self, day: str, caller: str, group: GroupDebit) -> str | None:
        new = [answer for answer in group.answers if not self._is_asked(day, caller, answer)]
        new_group = not self._is_asked(day, caller, group.group)
        if not new_group and not new:
            return None
        spent = self._spent(day, caller)
        queries, answers = spent.queries + new_group, spent.answers + len(new)
        rho = spent.rho + len(new) * self._budget.rho_of_answer
        if (reason := self._over_budget(queries, answers, rho, spent)) is not None:
            return reason
        if new and (reason := self._over_pictures(day, caller, group, len(new))) is not None:
            return reason
        self._sql.execute("REPLACE INTO totals VALUES (?, ?, ?, ?, ?)", (day, caller, queries, answers, rho))
        self._sql.executemany(
            "INSERT OR IGNORE INTO asked VALUES (?, ?, ?)", [(day, caller, digest) for digest in (group.group, *new)]
        )
        self._sql.executemany(
            "INSERT INTO pictures VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET answers = answers + ?4",
            [(day, caller, picture, len(new)) for picture in group.pictures],
        )
        return None

    def _over_budget(self, queries: int, answers: int, rho: float, spent: DaySpent) -> str | None:
        if self._budget.queries is not None and queries > self._budget.queries:
            return f"the day's {self._budget.queries} groups are used up; they are renewed at midnight UTC"
        if self._budget.rho is not None and rho > self._budget.rho:
            return f"the day's privacy budget is used up after {spent.answers} answers; it is renewed at midnight UTC"
        if answers > MOST_ANSWERS:
            return f"the day's {MOST_ANSWERS} different answers are used up; they are renewed at midnight UTC"
        return None

    def _over_pictures(self, day: str, caller: str, group: GroupDebit, new: int) -> str | None:
        most = self._budget.answers_per_picture
        if most is None:
            return None
        for picture in group.pictures:
            row = self._sql.execute(
                "SELECT answers FROM pictures WHERE day = ? AND caller = ? AND picture = ?", (day, caller, picture)
            ).fetchone()
            if (row[0] if row else 0) + new > most:
                about = "a picture, or a question without pictures,"
                return f"{about} gets at most {most} different answers in a day; ask again tomorrow (UTC)"
        return None

    def _is_asked(self, day: str, caller: str, digest: bytes) -> bool:
        row = self._sql.execute(
            "SELECT 1 FROM asked WHERE day = ? AND caller = ? AND digest = ?", (day, caller, digest)
        ).fetchone()
        return row is not None

    def _spent(self, day: str, caller: str) -> DaySpent:
        row = self._sql.execute(
            "SELECT queries, answers, rho FROM totals WHERE day = ? AND caller = ?", (day, caller)
        ).fetchone()
        return DaySpent(day, caller, *(row or (0, 0, 0.0)))

    def _sweep(self, day: str) -> None:
        """Delete what is too old, once a day."""
        for table, days in (
            ("totals", max(self._days, _DIGEST_DAYS)),
            ("asked", _DIGEST_DAYS),
            ("pictures", _DIGEST_DAYS),
        ):
            oldest = utc_day(time.time() - (days - 1) * _DAY_S)
            self._sql.execute(f"DELETE FROM {table} WHERE day < ?", (oldest,))  # noqa: S608
        self._swept = day


def utc_day(at: float) -> str:
    """Return the day of a Unix time in seconds, as ``2026-11-30``."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).date().isoformat()


def read_spent(folder: Path) -> list[DaySpent]:
    """Return all sums of the ledger in ``folder``, oldest first; none where there is no ledger.

    Raises:
        Invalid: it cannot be read.
    """
    file = folder / LEDGER_FILE
    if not file.exists():
        return []
    # SQLite may not open a ledger without its log where the reader cannot write, as on a copy; then nobody else writes.
    in_use = file.with_name(f"{LEDGER_FILE}-wal").exists()
    try:
        mode = "mode=ro" if in_use else "mode=ro&immutable=1"
        sql = sqlite3.connect(f"file:{quote(str(file.absolute()))}?{mode}", uri=True, timeout=_LOCK_S)
        try:
            rows = sql.execute(f"SELECT {_COLUMNS['totals']} FROM totals ORDER BY day, caller").fetchall()  # noqa: S608
        finally:
            sql.close()
    except sqlite3.Error as error:
        raise Invalid(f"{file}: {describe_failure(error)}; is it the folder of MOR_ANSWERS_DIR?") from error
    return [DaySpent(*row) for row in rows]
