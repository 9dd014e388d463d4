"""``mor objective``: make, give anchors, fit, look at gate versions and go back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mor_core.stored_objectives import COLD_START, FitRequest, NewObjective, Objective

from mor_client.commands.common import Json, ObjectiveArgument, session
from mor_client.objectives import Gate, Share
from mor_client.output import err, out, print_fields, print_json, print_table, when

app = typer.Typer(no_args_is_help=True, help="Make, anchor and fit objectives; choose gate versions.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="OBJECTIVE", help="Name for the objective.")],
    text: Annotated[str, typer.Argument(help="What a run with it aligns to, in words; clients see it.")],
    *,
    paraphrase: Annotated[list[str] | None, typer.Option(help="The same in other words. Repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Make an objective."""
    with session(as_json) as mor:
        made = mor.objectives.create(NewObjective(name=name, text=text, paraphrases=tuple(paraphrase or ())))
        _told(made, f"made {name}; give it anchors with: mor objective anchors {name} FILE", as_json)


def _told(objective: Objective, line: str, as_json: bool) -> None:
    if as_json:
        print_json(objective)
    else:
        err.print(line, highlight=False)


@app.command("list")
def list_objectives(*, as_json: Json = False) -> None:
    """All objectives, by name."""
    with session(as_json) as mor:
        found = mor.objectives.list()
        if as_json:
            print_json(found)
            return
        print_table(
            ("objective", "anchors", "gate version", "text"),
            [(o.name, o.anchors, _version(o), o.text) for o in found],
            empty="no objectives; 'mor objective create' makes one",
        )


@app.command()
def show(name: ObjectiveArgument, *, as_json: Json = False) -> None:
    """One objective."""
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
                ("versions before", ", ".join(map(str, found.history)) or "none"),
                ("created", when(found.created_at)),
            ]
        )


def _version(objective: Objective) -> str:
    return "none: all clients count the same" if objective.active == COLD_START else str(objective.active)


@app.command()
def anchors(
    name: ObjectiveArgument,
    file: Annotated[Path, typer.Argument(help="Preference pairs of the server's own, a mor.prefs/1 file.")],
    *,
    as_json: Json = False,
) -> None:
    """Replace the anchor set. Every line is checked before anything is sent."""
    with session(as_json) as mor:
        found = mor.objectives.put_anchors(name, file)
        _told(found, f"{found.anchors} anchors; fit with: mor objective fit {name}", as_json)


@app.command()
def fit(
    name: ObjectiveArgument,
    *,
    activate: Annotated[bool, typer.Option(help="Put the new version in force.")] = True,
    newcomers_only: Annotated[
        bool, typer.Option("--newcomers-only", help="Fit only clients that the version in force has not.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have every client score the anchors, and learn whom to trust for which input."""
    with session(as_json) as mor:
        with err.status("the clients score the anchors"):
            gate = mor.objectives.fit(name, FitRequest(activate=activate, newcomers_only=newcomers_only))
        if as_json:
            print_json(gate)
            return
        report = gate.report
        force = "in force" if activate else "kept, not in force"
        err.print(f"gate version {gate.version}, {force}, fitted on {report.pairs} anchors", highlight=False)
        print_fields(
            [
                ("held-out accuracy", _share(report.held_out_accuracy)),
                ("of the plain average", _share(report.uniform_accuracy)),
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
    """Gate versions of an objective, oldest first."""
    with session(as_json) as mor:
        found, active = mor.objectives.versions(name), mor.objectives.get(name).active
        if as_json:
            print_json(found)
            return
        print_table(
            ("version", "fitted", "clients", "anchors", "held-out accuracy", ""),
            [_row(gate, active) for gate in found],
            empty=f"no version; 'mor objective fit {name}' makes one",
        )


def _row(gate: Gate, active: int) -> tuple[object, ...]:
    accuracy = _share(gate.report.held_out_accuracy)
    in_force = "in force" if gate.version == active else ""
    return gate.version, when(gate.created_at), len(gate.models), gate.report.pairs, accuracy, in_force


@app.command()
def rollback(name: ObjectiveArgument, *, as_json: Json = False) -> None:
    """Put the gate version in force that was before."""
    with session(as_json) as mor:
        found = mor.objectives.rollback(name)
        _told(found, f"gate version of {name}: {_version(found)}", as_json)


def _share(share: Share) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}] of {share.of}"
