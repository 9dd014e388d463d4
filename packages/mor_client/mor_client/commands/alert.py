"""``mor alert``: list and acknowledge alerts."""

from __future__ import annotations

from typing import Annotated

import typer
from mor_core.command_group import CommandGroup
from mor_core.run_alerts import Alert

from mor_client.commands.common import Json, Watch, session, show
from mor_client.output import err, format_time, print_json, print_table

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="List and acknowledge alerts.")


@app.command("list")
def list_alerts(
    *,
    run: Annotated[str | None, typer.Option(help="Only alerts of this run.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Include acknowledged alerts.")] = False,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """List open alerts, newest first."""
    with session(as_json) as mor:
        acknowledged = None if everything else False
        show(lambda: mor.alerts.list(run, acknowledged=acknowledged), _print_list, as_json=as_json, watch=watch)


def _print_list(alerts: list[Alert]) -> None:
    print_table(
        ("alert", "last", "times", "run", "name", "reason", "acknowledged by"),
        [(a.id, format_time(a.last_at), a.count, a.run, a.name, a.reason, a.acknowledged_by) for a in alerts],
        empty="no open alerts",
    )


@app.command()
def acknowledge(
    alert: Annotated[int, typer.Argument(help="Number from 'list'.")],
    *,
    note: Annotated[str | None, typer.Option(help="Note for colleagues, such as the action taken.")] = None,
    as_json: Json = False,
) -> None:
    """Acknowledge an alert that you handle; its next occurrence is a new alert."""
    with session(as_json) as mor:
        found = mor.alerts.acknowledge(alert, note)
        if as_json:
            print_json(found)
        else:
            err.print(f"alert {alert} is acknowledged by {found.acknowledged_by}", highlight=False)
