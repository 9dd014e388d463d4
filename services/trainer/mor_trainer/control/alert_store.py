"""Store of alerts: each is kept until a person acknowledges it and the webhook has received it."""

from __future__ import annotations

import time
from typing import Annotated

from mor_core.errors import Conflict, NotFound
from mor_core.run_alerts import Alert
from mor_core.stored import StoredEntries
from pydantic import Field, TypeAdapter

from mor_trainer import metrics
from mor_trainer.control.database import Database
from mor_trainer.control.transaction import Row, Transaction

_ALERTS = StoredEntries("alerts")
_ATTEMPTS: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, le=1000)])
LONGEST_PAUSE_S = 600.0
"""Bound of the growing pause between attempts, so that a webhook that comes back gets its alerts within minutes."""
_ENDED_BY = "mor"
"""Acknowledger of an alert whose cause is over."""
_ACKNOWLEDGE = (
    "UPDATE alerts SET acknowledged_at=:at, acknowledged_by=:by, note=:note, webhook_due=NULL, "
    "webhook=CASE webhook WHEN 'waiting' THEN 'given up' ELSE webhook END"
)
_REASON_CHARACTERS = 2000
"""A longer reason, such as a traceback, is cut: alerts are listed a hundred at a time."""


class AlertStore:
    """Alerts of all runs.

    The same alert of the same run is one entry until it is acknowledged, so that their number stays bounded.
    """

    def __init__(self, database: Database, *, webhook: bool) -> None:
        self._database = database
        self._webhook = webhook

    def raise_in(
        self,
        sql: Transaction,
        run: str,
        name: str,
        reason: str,
        *,
        step: int | None = None,
        at: float | None = None,
    ) -> None:
        """Raise an alert within the transaction of ``sql``."""
        metrics.count_alert(run, name)
        now, reason = time.time(), reason[:_REASON_CHARACTERS]
        at = at or now
        known = sql.value(
            "SELECT id FROM alerts WHERE run=:run AND name=:name AND acknowledged_at IS NULL", run=run, name=name
        )
        if known is not None:
            sql.run(
                "UPDATE alerts SET count=count+1, last_at=:at, reason=:reason, step=:step WHERE id=:id",
                at=at,
                reason=reason,
                step=step,
                id=known,
            )
            return
        state, due = ("waiting", now) if self._webhook else ("off", None)
        sql.run(
            "INSERT INTO alerts (run, name, reason, step, first_at, last_at, webhook, webhook_due) "
            "VALUES (:run, :name, :reason, :step, :at, :at, :state, :due)",
            run=run,
            name=name,
            reason=reason,
            step=step,
            at=at,
            state=state,
            due=due,
        )

    def end_in(self, sql: Transaction, run: str, name: str, note: str, *, at: float) -> None:
        """Acknowledge an alert whose cause is over, within the transaction of ``sql``: nobody need handle it."""
        sql.run(
            f"{_ACKNOWLEDGE} WHERE run=:run AND name=:name AND acknowledged_at IS NULL",
            at=at,
            by=_ENDED_BY,
            note=note[:_REASON_CHARACTERS],
            run=run,
            name=name,
        )

    def list(self, run: str | None, *, acknowledged: bool | None, limit: int) -> list[Alert]:
        """List the alerts of one run or of all, newest first."""
        conditions = [] if run is None else ["run=:run"]
        if acknowledged is not None:
            conditions.append(f"acknowledged_at IS {'NOT ' if acknowledged else ''}NULL")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        query = f"SELECT * FROM alerts {where} ORDER BY last_at DESC, id DESC LIMIT :limit"  # noqa: S608
        rows = self._database.rows(query, limit=limit, **({} if run is None else {"run": run}))
        return _ALERTS.parse_list(rows, _alert)

    def get(self, alert: int) -> Alert:
        """Return an alert.

        Raises:
            NotFound: no such alert.
            Conflict: it cannot be read.
        """
        row = self._database.row("SELECT * FROM alerts WHERE id=:id", id=alert)
        if row is None:
            raise NotFound(f"no alert {alert}; 'mor alert list' shows all")
        found = _ALERTS.parse(alert, row, _alert)
        if found is None:
            raise Conflict(f"alert {alert} cannot be read; the log has the reason")
        return found

    def acknowledge(self, alert: int, by: str, note: str | None) -> Alert:
        """Record that ``by`` handles the alert, unless somebody did before; a waiting webhook is not called then.

        Raises:
            NotFound: no such alert.
        """
        self._database.write(
            f"{_ACKNOWLEDGE} WHERE id=:id AND acknowledged_at IS NULL", at=time.time(), by=by, note=note, id=alert
        )
        return self.get(alert)

    def due(self) -> tuple[Alert, int] | None:
        """Return the alert to send to the webhook next, and the number of attempts so far.

        One that would be due after the longest pause is due now: the clock was set back meanwhile.
        """
        now = time.time()
        row = self._database.row(
            "SELECT * FROM alerts WHERE webhook='waiting' AND webhook_due NOT BETWEEN :now AND :latest "
            "ORDER BY webhook_due LIMIT 1",
            now=now,
            latest=now + LONGEST_PAUSE_S,
        )
        if row is None:
            return None
        found = _ALERTS.parse(
            row["id"], row, lambda given: (_alert(given), _ATTEMPTS.validate_python(given["webhook_attempts"]))
        )
        if found is None:  # the next one is due at the next call
            self.mark_failed(row["id"], None)
        return found

    def mark_sent(self, alert: int) -> None:
        """Record that the webhook received the alert. It works, so those are due again that were given up."""
        with self._database.transaction() as sql:
            sql.run(
                "UPDATE alerts SET webhook='sent', webhook_due=NULL, webhook_attempts=webhook_attempts+1 WHERE id=:id",
                id=alert,
            )
            sql.run(
                "UPDATE alerts SET webhook='waiting', webhook_due=:now, webhook_attempts=0 "
                "WHERE webhook='given up' AND acknowledged_at IS NULL",
                now=time.time(),
            )

    def mark_failed(self, alert: int, again_at: float | None) -> None:
        """Record a failed attempt; the next one is due at ``again_at`` (Unix time), or the alert is given up."""
        self._database.write(
            "UPDATE alerts SET webhook=:state, webhook_due=:due, webhook_attempts=webhook_attempts+1 "
            "WHERE id=:id AND webhook='waiting'",
            state="given up" if again_at is None else "waiting",
            due=again_at,
            id=alert,
        )


def _alert(row: Row) -> Alert:
    return Alert(**{name: row[name] for name in Alert.model_fields})
