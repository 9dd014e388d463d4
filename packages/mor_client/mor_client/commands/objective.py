"""``mor objective``: create, change, set anchors, fit, inspect audits and gate versions, roll back."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer
from mor_core.command_group import CommandGroup
from mor_core.errors import Invalid
from mor_core.objectives import split_version
from mor_core.proposals import MOST_COUNT
from mor_core.runs import RunSpec
from mor_core.stored_objectives import (
    COLD_START,
    AuditedBy,
    FitRequest,
    NewObjective,
    Objective,
    ObjectiveChange,
)

from mor_client.commands.common import Json, ObjectiveArgument, session
from mor_client.objective_calls import AnchorShare, Gate
from mor_client.output import err, format_bytes, format_time, out, print_fields, print_json, print_table, waiting

AuditShareOption = Annotated[
    float | None, typer.Option(help="Share of live groups to audit; 0: none. By default the router's.", min=0, max=1)
]
AuditedByOption = Annotated[
    AuditedBy | None,
    typer.Option(help="Who labels audited groups: the objective's labeller where it has one, or people in any case."),
]
ColumnsOption = Annotated[
    str,
    typer.Option(
        "--map", help="Other names of the columns, as prompt=question,images=image; ignore=source leaves one out."
    ),
]
PublicOption = Annotated[
    bool, typer.Option("--public", help="All their pictures and texts are public: see 'mor client asks'.")
]

_SHOWN = 60
"""Characters of a question or response in a table."""

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    help="Create objectives, set their anchors, fit and roll back gate versions.",
)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="OBJECTIVE", help="Name for the objective.")],
    text: Annotated[str, typer.Argument(help="Goal of the alignment, as text; clients receive it.")],
    *,
    paraphrase: Annotated[list[str] | None, typer.Option(help="Paraphrase of the text. Repeatable.")] = None,
    audit_share: AuditShareOption = None,
    audited_by: AuditedByOption = None,
    as_json: Json = False,
) -> None:
    """Create an objective."""
    with session(as_json) as mor:
        request = NewObjective(
            name=name,
            text=text,
            paraphrases=tuple(paraphrase or ()),
            audit_share=audit_share,
            audited_by=audited_by or "labeller",
        )
        created = mor.objectives.create(request)
        _print_change(created, f"created {name}; set anchors with: mor objective anchors {name} FILE", as_json)


@app.command()
def change(
    name: ObjectiveArgument,
    *,
    paraphrase: Annotated[
        list[str] | None, typer.Option(help="Paraphrase of the text, in place of all earlier ones. Repeatable.")
    ] = None,
    audit_share: AuditShareOption = None,
    default_audit_share: Annotated[
        bool, typer.Option("--default-audit-share", help="Audit the share that the router audits by default.")
    ] = False,
    audited_by: AuditedByOption = None,
    as_json: Json = False,
) -> None:
    """Change the paraphrases or the audits of an objective."""
    given = {"paraphrases": paraphrase, "audit_share": audit_share, "audited_by": audited_by}
    changes: dict[str, object] = {field: value for field, value in given.items() if value is not None}
    if default_audit_share:
        if audit_share is not None:
            raise typer.BadParameter("choose --audit-share or --default-audit-share")
        changes["audit_share"] = None
    if not changes:
        raise typer.BadParameter("got nothing to change; give an option")
    with session(as_json) as mor:
        changed = mor.objectives.change(name, ObjectiveChange.model_validate(changes))
        _print_change(changed, f"changed {name}", as_json)


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


@app.command()
def audits(name: ObjectiveArgument, *, as_json: Json = False) -> None:
    """Show how many live groups are audited, who labels them, and what became of them."""
    with session(as_json) as mor:
        found = mor.objectives.audits(name)
        if as_json:
            print_json(found)
            return
        print_fields(
            [
                ("objective", found.objective),
                ("share of live groups", f"{found.share:.3g}"),
                ("labelled by", found.labelled_by),
                ("waiting for a label", found.waiting),
                ("oldest", format_time(found.oldest) if found.oldest is not None else "none"),
                ("labelled, in use", found.labelled),
                *((f"{outcome.replace('_', ' ')}, in all", count) for outcome, count in found.closed.items()),
            ]
        )


def _version(objective: Objective) -> str:
    return "none: all clients have equal weight" if objective.active == COLD_START else str(objective.active)


@app.command()
def anchors(
    name: ObjectiveArgument,
    file: Annotated[Path, typer.Argument(help="The server's own preferences: a file, folder, pattern or archive.")],
    *,
    columns: ColumnsOption = "",
    public: PublicOption = False,
    as_json: Json = False,
) -> None:
    """Replace the anchor set. All lines are checked before any is sent."""
    with session(as_json) as mor:
        found = mor.objectives.put_anchors(name, file, columns, public=public)
        _print_change(found, f"{found.anchors} anchors; fit with: mor objective fit {name}", as_json)


@app.command()
def candidates(
    name: ObjectiveArgument,
    file: Annotated[Path, typer.Argument(help="Unlabelled pairs as preferences, in any order of the two responses.")],
    *,
    columns: ColumnsOption = "",
    public: PublicOption = False,
    as_json: Json = False,
) -> None:
    """Have the clients score unlabelled pairs, from which 'propose' chooses; they replace earlier ones."""
    with session(as_json) as mor:
        with nullcontext() if as_json else waiting("the clients score the pairs"):
            found = mor.objectives.put_candidates(name, file, columns, public=public)
        if as_json:
            print_json(found)
            return
        out_of = (
            f"{found.labelled} labelled or in the queue already, {found.held_back} held back for honeypots, "
            f"{found.unscored} without any score"
        )
        err.print(f"{found.kept} candidates ({out_of}); next: mor objective propose {name}", highlight=False)


@app.command()
def propose(
    name: ObjectiveArgument,
    *,
    count: Annotated[int, typer.Option(help="Largest number of pairs.", min=1, max=MOST_COUNT)] = 16,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the pairs; leave the queue as it is.")] = False,
    as_json: Json = False,
) -> None:
    """Have the pairs labelled whose labels tell the next fit most: they join the queue of 'mor label'."""
    with session(as_json) as mor:
        found = mor.objectives.worth_labelling(name, count) if dry_run else mor.objectives.propose(name, count)
        if as_json:
            print_json(found)
            return
        print_table(
            ("question", "first", "second", "domain", "tells, nats", "split", "new"),
            [
                (
                    *(shorten(text, _SHOWN, placeholder="…") for text in (one.question, one.first, one.second)),
                    one.domain,
                    f"{one.information:.3f}",
                    f"{one.disagreement:.0%}",
                    f"{one.coverage:.0%}",
                )
                for one in found.pairs
            ],
            empty=f"no candidates; upload unlabelled pairs: mor objective candidates {name} FILE",
        )
        if found.pairs and not dry_run:
            line = f"{found.waiting} proposed pairs wait for a label; label them: mor label next {name}"
            err.print(f"{line}; then: mor objective fit {name}", highlight=False)


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
        with nullcontext() if as_json else waiting("the clients score the anchors"):
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
def rollback(
    name: ObjectiveArgument,
    *,
    to_uniform: Annotated[
        bool, typer.Option("--to-uniform", help="Return to equal weights where the present version is the first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Activate the previous gate version; 'activate' leads forward again."""
    with session(as_json) as mor:
        before = mor.objectives.get(name).active
        found = mor.objectives.rollback(name, to_uniform=to_uniform)
        forward = f"; forward again with: mor objective activate {name} {before}"
        _print_change(found, f"gate version of {name}: {_version(found)}{forward}", as_json)


@app.command()
def activate(
    name: ObjectiveArgument,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Gate version; 'versions' lists them.")],
    *,
    as_json: Json = False,
) -> None:
    """Activate a gate version, an earlier or a later one."""
    with session(as_json) as mor:
        found = mor.objectives.activate(name, version)
        _print_change(found, f"gate version of {name}: {_version(found)}", as_json)


@app.command()
def delete(
    name: ObjectiveArgument,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing; print what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Delete an objective with its anchors, gate versions and audits. No run may name it that is not over."""
    with session(as_json) as mor:
        if users := [run.id for run in mor.runs.list() if not run.state.over and _names(mor.runs.spec(run.id), name)]:
            raise Invalid(f"{', '.join(users)}: not over, and aligned to {name}; end it first: mor run stop {users[0]}")
        content = mor.objectives.delete(name, dry_run=True)
        amount = f"{content.anchors} anchors, {content.gate_versions} gate versions, {format_bytes(content.bytes)}"
        if not yes and not dry_run:
            typer.confirm(f"delete objective {name} with {amount} for good?", abort=True, err=True)
        if not dry_run:
            content = mor.objectives.delete(name)
        if as_json:
            print_json(content)
        else:
            err.print(f"{name}: {'would remove' if dry_run else 'removed'} {amount}", highlight=False)


def _names(spec: RunSpec, objective: str) -> bool:
    """Return whether a run is aligned to an objective."""
    named = spec.objective
    names = list(named) if isinstance(named, dict) else [named or ""]
    return objective in {split_version(one)[0] for one in names}


def _share(share: AnchorShare) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}] of {share.of}"
