"""Metrics and evaluations of a whole run as a CSV file, a few rows in memory at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from mor_core.stored import StoredEntries

from mor_trainer.control.database import Database
from mor_trainer.control.history import read_object
from mor_trainer.control.run_rows import row_of
from mor_trainer.control.transaction import Row

_ROWS = 500
"""Steps that are read at once: about a megabyte, and a query of milliseconds, for which events wait."""
_STEPS = """
SELECT step FROM metrics WHERE run=:run AND step>:after
UNION SELECT step FROM evaluations WHERE run=:run AND step>:after
ORDER BY step LIMIT :rows
"""
_TIMES = StoredEntries("history")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a text that a spreadsheet takes for a formula."""


class MetricsCsv:
    """CSV file of one run: a row for each step and a column for each number, nested names joined by dots.

    Numbers of evaluations are in columns ``evaluation.…``. Lists, such as the ids of groups, are left out.
    """

    def __init__(self, database: Database, run: str) -> None:
        """
        Raises:
            NotFound: no such run.
        """
        self._database, self._run = database, run
        row_of(database, run)

    def parts(self) -> Iterator[str]:
        """Yield the file in parts. It is read twice: the columns first, as a client may join at any step.

        Raises:
            HistoryUnavailable: the database cannot be read now.
        """
        names: dict[str, None] = {}
        for _, numbers in self._steps():
            names.update(dict.fromkeys(numbers))
        columns = sorted(names, key=lambda name: ("." in name, name if "." in name else ""))  # plain ones as declared
        out = io.StringIO()
        table = csv.writer(out)
        table.writerow(["step", "at", *map(_text, columns)])
        for count, ((step, at), numbers) in enumerate(self._steps(), 1):
            table.writerow([step, at, *(numbers.get(name) for name in columns)])
            if count % _ROWS == 0:
                yield out.getvalue()
                out.seek(0)
                out.truncate()
        yield out.getvalue()

    def _steps(self) -> Iterator[tuple[tuple[int, str], dict[str, float]]]:
        """Yield step, time and numbers of each step, in order."""
        after = -1
        while True:
            found = self._database.rows(_STEPS, run=self._run, after=after, rows=_ROWS)
            steps = [row["step"] for row in found]
            if not steps:
                return
            bounds = {"run": self._run, "after": after, "last": steps[-1]}
            metrics, evaluations = (
                {row["step"]: row for row in self._database.rows(_read(table), **bounds)}
                for table in ("metrics", "evaluations")
            )
            for step in steps:
                row = metrics.get(step) or evaluations.get(step)
                if row is None:  # a run that resumed from a checkpoint lost the step meanwhile
                    continue
                at = _TIMES.parse(f"{self._run}, step {step}", row["at"], _time) or ""
                evaluation = _numbers(evaluations.get(step), "evaluations", "evaluation.")
                yield (step, at), {**_numbers(metrics.get(step), "metrics", ""), **evaluation}
            after = steps[-1]


def _read(table: str) -> str:
    return f"SELECT step, at, data FROM {table} WHERE run=:run AND step>:after AND step<=:last"  # noqa: S608


def _numbers(row: Row | None, table: str, prefix: str) -> dict[str, float]:
    data = None if row is None else read_object(row, table)
    return {} if data is None else dict(_leaves(data, prefix))


def _leaves(data: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not (prefix in ("", "evaluation.") and name in ("step", "at")):
            yield f"{prefix}{name}", value


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _text(name: str) -> str:
    """Return a name with an apostrophe where a spreadsheet would read it as a formula."""
    return f"'{name}" if name.startswith(_FORMULA) else name
