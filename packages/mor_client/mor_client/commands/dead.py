"""``mor dead``: list and replay dead letters, the groups that were given up."""

from __future__ import annotations

from typing import Annotated

import typer
from mor_core.command_group import CommandGroup
from mor_core.errors import Invalid

from mor_client.commands.common import Json, RunName, session
from mor_client.output import err, format_time, print_json, print_table

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="List and replay dead letters.")


@app.command("list")
def list_dead(
    run: RunName,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of dead letters.")] = 100,
    as_json: Json = False,
) -> None:
    """List the groups of a run that were given up after all attempts, newest first."""
    with session(as_json) as mor:
        letters = mor.dead.list(run, limit)
        if as_json:
            print_json(letters)
            return
        print_table(
            ("letter", "when", "stage", "attempts", "replay", "group", "reason"),
            [(d.id, format_time(d.at), d.stage, d.attempts, d.replay, d.group_id[:12], d.reason) for d in letters],
            empty="no dead letters",
        )


@app.command()
def replay(
    run: RunName,
    letters: Annotated[
        list[int] | None, typer.Argument(metavar="[LETTER]...", help="Numbers of dead letters, from 'mor dead list'.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters that were not replayed yet.")] = False,
    as_json: Json = False,
) -> None:
    """Have the training process issue groups again, with the same seeds, at its next step."""
    with session(as_json) as mor:
        if bool(letters) == everything:
            raise Invalid("no dead letters to replay: give their numbers, or --all and no numbers")
        wanted = letters or [d.id for d in mor.dead.list(run, 1000) if d.replay == "no" and d.group_id != "unreadable"]
        replayed = [mor.dead.replay(run, letter) for letter in wanted]
        if as_json:
            print_json(replayed)
        else:
            err.print(f"the next step of {run} issues {len(replayed)} groups again", highlight=False)
