"""The command ``mor``: runs, clients, objectives, rewards, dead letters and health of an installation, over HTTP.

``mor check`` and ``mor size`` need no installation: they read a data set and a model here. ``mor up``, ``mor exec`` and
``mor token`` are for a machine that runs the services without Kubernetes.

Addresses and token come from the environment (MOR_CONTROL_URL, MOR_ROUTER_URL, MOR_ROLLOUT_URL, MOR_TOKEN_FILE) or from
the configuration file: MOR_CONFIG, or mor/config.toml in your configuration folder. Exit statuses: 0 done, 1 refused,
2 wrong usage, 3 no answer, 4 not allowed, 5 not found, 6 conflict, 7 the run failed. ``--json`` may stand anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from mor_core import process
from mor_core.command_group import JSON_OPTION, CommandGroup
from mor_core.uncaught import guard_uncaught

from mor_client import __version__
from mor_client.commands import alert, client, dead, label, objective, run, token
from mor_client.commands.check import check
from mor_client.commands.doctor import doctor
from mor_client.commands.reward import reward
from mor_client.commands.run_notes import note, save_csv, tag
from mor_client.commands.size import size
from mor_client.commands.up import execute, up
from mor_client.config import CONFIG_VARIABLE

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, pretty_exceptions_show_locals=False, help=__doc__)
app.add_typer(run.app, name="run")
run.app.command()(tag)
run.app.command()(note)
run.app.command("csv")(save_csv)
app.add_typer(client.app, name="client")
app.add_typer(objective.app, name="objective")
app.add_typer(label.app, name="label")
app.add_typer(dead.app, name="dead")
app.add_typer(alert.app, name="alert")
app.add_typer(token.app, name="token")
app.command()(reward)
app.command()(doctor)
app.command()(check)
app.command()(size)
app.command()(up)
# What follows the file belongs to the program, options included.
app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(execute)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help=f"Configuration file.  [{CONFIG_VARIABLE}]", dir_okay=False, exists=True)
    ] = None,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    guard_uncaught()
    if JSON_OPTION not in context.meta:
        process.warn_of_unread_variables()
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config)


def main() -> None:
    app()
