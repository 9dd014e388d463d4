"""``mor objective``: create, set anchors, fit, inspect and roll back gate versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mor_core.stored_objectives import COLD_START, FitRequest, NewObjective, Objective

from mor_client.commands.common import Json, ObjectiveArgument, session
from mor_client.objective_calls import AnchorShare, Gate
from mor_client.output import err, format_time, out, print_fields, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Create objectives, set their anchors, fit and roll back gate versions.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="OBJECTIVE", help="Name for the objective.")],
    text: Annotated[str, typer.Argument(help="Goal of the alignment, as text; clients receive it.")],
    *,
    paraphrase: Annotated[list[str] | None, typer.Option(help="Paraphrase of the text. Repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Create an objective."""
    with session(as_json) as mor:
        created = mor.objectives.create(NewObjective(name=name, text=text, paraphrases=tuple(paraphrase or ())))
        _print_change(created, f"created {name}; set anchors with: mor objective anchors {name} FILE", as_json)


def _print_change(objective: Objective, line: str, as_json: bool) -> None:
    if as_json:
        print_json(objective)
    else:
        err.print(line, highlight=False)


@app.command("list")
def list_objectives(*, as_json: Json = False) -> None:
    """List all objectives by name."""
    with session(as_json) as mor:
        found = mor.objectives.list()
        if as_json:
            print_json(found)
            return
        print_table(
            ("objective", "anchors", "gate version", "text"),
            [(o.name, o.anchors, _version(o), o.text) for o in found],
            empty="no objectives; create one with 'mor objective create'",
        )


@app.command()
def show(name: ObjectiveArgument, *, as_json: Json = False) -> None:
    """Show one objective."""
    with session(as_json) as mor:
        found = mor.objectives.get(name)
        if as_json:
            print_json(found)
            return
        print_fields(
            [
                ("objective", found.name),
                ("text", found.text),
                *(("paraphrase", text) for text in found.paraphrases),
                ("anchors", found.anchors),
                ("gate version", _version(found)),
                ("previous versions", ", ".join(map(str, found.history)) or "none"),
                ("created", format_time(found.created_at)),
            ]
        )


def _version(objective: Objective) -> str:
    return "none: all clients have equal weight" if objective.active == COLD_START else str(objective.active)


@app.command()
def anchors(
    name: ObjectiveArgument,
    file: Annotated[Path, typer.Argument(help="The server's own preference pairs, a mor.prefs/1 file.")],
    *,
    as_json: Json = False,
) -> None:
    """Replace the anchor set. All lines are checked before any is sent."""
    with session(as_json) as mor:
        found = mor.objectives.put_anchors(name, file)
        _print_change(found, f"{found.anchors} anchors; fit with: mor objective fit {name}", as_json)


@app.command()
def fit(
    name: ObjectiveArgument,
    *,
    activate: Annotated[bool, typer.Option(help="Activate the new version.")] = True,
    newcomers_only: Annotated[
        bool, typer.Option("--newcomers-only", help="Fit only clients that the active version lacks.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have every client score the anchors, and fit each client's weight by input."""
    with session(as_json) as mor:
        with err.status("the clients score the anchors"):
            gate = mor.objectives.fit(name, FitRequest(activate=activate, newcomers_only=newcomers_only))
        if as_json:
            print_json(gate)
            return
        report = gate.report
        state = "active" if activate else "stored, not active"
        err.print(f"gate version {gate.version}, {state}, fitted on {report.pairs} anchors", highlight=False)
        print_fields(
            [
                ("held-out accuracy", _share(report.held_out_accuracy)),
                ("accuracy of the plain average", _share(report.uniform_accuracy)),
                *(("left out", f"{client}: {reason}") for client, reason in report.left_out.items()),
            ]
        )
        out.print()
        print_table(
            ("client", "accuracy", "weight by domain"),
            [
                (c.client, _share(c.accuracy), ", ".join(f"{d} {w:.2f}" for d, w in c.weight_by_domain.items()))
                for c in report.clients
            ],
            empty="no client is in the mixture",
        )


@app.command()
def versions(name: ObjectiveArgument, *, as_json: Json = False) -> None:
    """List the gate versions of an objective, oldest first."""
    with session(as_json) as mor:
        found, active = mor.objectives.versions(name), mor.objectives.get(name).active
        if as_json:
            print_json(found)
            return
        print_table(
            ("version", "fitted", "clients", "anchors", "held-out accuracy", ""),
            [_row(gate, active) for gate in found],
            empty=f"no version; create one with 'mor objective fit {name}'",
        )


def _row(gate: Gate, active: int) -> tuple[object, ...]:
    accuracy = _share(gate.report.held_out_accuracy)
    state = "active" if gate.version == active else ""
    return gate.version, format_time(gate.created_at), len(gate.models), gate.report.pairs, accuracy, state


@app.command()
def rollback(name: ObjectiveArgument, *, as_json: Json = False) -> None:
    """Activate the previous gate version."""
    with session(as_json) as mor:
        found = mor.objectives.rollback(name)
        _print_change(found, f"gate version of {name}: {_version(found)}", as_json)


def _share(share: AnchorShare) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}] of {share.of}"
