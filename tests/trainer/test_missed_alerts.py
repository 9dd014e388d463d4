"""Alerts that a webhook missed while it was away for longer than all attempts reach it when it works again."""

from __future__ import annotations

from pathlib import Path

from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.database import Database


def due(alerts: AlertStore) -> int:
    found = alerts.due()
    assert found is not None
    return found[0].id


def test_an_alert_that_was_given_up_is_due_again_when_the_webhook_takes_another(tmp_path: Path) -> None:
    database = Database.of_file(tmp_path / "history.sqlite3")
    alerts = AlertStore(database, webhook=True)
    for run in ("missed", "handled", "delivered"):
        with database.transaction() as sql:
            alerts.raise_in(sql, run, "run_failed", "broken")
    missed, handled, delivered = due(alerts), 2, 3
    for given_up in (missed, handled):
        alerts.mark_failed(given_up, None)
    alerts.acknowledge(handled, "ops", None)
    assert due(alerts) == delivered
    alerts.mark_sent(delivered)
    assert due(alerts) == missed
    alerts.mark_sent(missed)
    assert alerts.due() is None
    assert {alert.id: alert.webhook for alert in alerts.list(None, acknowledged=None, limit=9)} == {
        missed: "sent", handled: "given up", delivered: "sent",
    }  # fmt: skip
    database.close()
