"""``mor label``: list audited groups that wait for a label, show one, label it; review and withdraw labels."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated

import typer
from mor_core import atomic
from mor_core.audits import AuditCounts, AuditQuestion, Preferred
from mor_core.command_group import CommandGroup

from mor_client.commands.common import Json, ObjectiveArgument, Watch, session, show
from mor_client.output import err, format_time, print_fields, print_json, print_table

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Label audited groups, and review labels of people.")


@app.command("list")
def list_waiting(*, watch: Watch = False, as_json: Json = False) -> None:
    """List the objectives with the number of audited groups that wait for a label."""
    with session(as_json) as mor:
        show(mor.audits.list, _print_list, as_json=as_json, watch=watch)


def _print_list(found: list[AuditCounts]) -> None:
    print_table(
        ("objective", "labelled by", "waiting", "oldest", "labelled"),
        [(one.objective, one.labelled_by, one.waiting, format_time(one.oldest), one.labelled) for one in found],
        empty="no objectives; create one with 'mor objective create'",
    )


@app.command("next")
def next_group(
    objective: ObjectiveArgument,
    *,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder that receives the group's pictures; made where it is missing.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the next audited group: a question and two responses in random order. It is yours for 15 minutes."""
    with session(as_json) as mor:
        found = mor.audits.next(objective)
        saved = [] if found is None or pictures is None else _save(found, pictures)
        if as_json:
            print_json(found)
            return
        if found is None:
            err.print(f"no group of {objective} waits for your label", highlight=False)
            return
        shown = saved or [f"{len(found.images)} not saved; --pictures FOLDER saves them"] * bool(found.images)
        print_fields(
            [
                ("audit", found.audit),
                ("goal", found.goal),
                *((message.role, message.text) for message in found.messages),
                *(("picture", line) for line in shown),
                ("first", found.first),
                ("second", found.second),
                ("waiting", found.waiting),
            ]
        )
        err.print(
            f"label it: mor label give {objective} {found.audit} first|second|tie|skip", highlight=False, soft_wrap=True
        )


def _save(question: AuditQuestion, folder: Path) -> list[str]:
    """Write the pictures of a group, each named by its hash; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for digest, content in question.images.items():
        path = folder / digest
        atomic.write(path, base64.b64decode(content))
        paths.append(str(path))
    return paths


@app.command()
def give(
    objective: ObjectiveArgument,
    audit: Annotated[str, typer.Argument(metavar="AUDIT", help="Identifier that 'next' showed.")],
    preferred: Annotated[
        Preferred,
        typer.Argument(
            metavar="first|second|tie|skip", help="Better response; 'tie': neither is; 'skip': you cannot say."
        ),
    ],
    *,
    as_json: Json = False,
) -> None:
    """Label an audited group."""
    with session(as_json) as mor:
        mor.audits.label(objective, audit, preferred)
        if as_json:
            print_json({"objective": objective, "audit": audit, "preferred": preferred})
        else:
            err.print(f"labelled; the next group: mor label next {objective}", highlight=False)


@app.command()
def people(*, as_json: Json = False) -> None:
    """List the people who label, and how often another person answered differently (admins only)."""
    with session(as_json) as mor:
        found = mor.audits.people()
        if as_json:
            print_json(found)
            return
        print_table(
            ("person", "labels", "undecided", "skipped", "compared", "disagreed"),
            [(one.person, one.labels, one.undecided, one.skipped, one.compared, one.disagreed) for one in found],
            empty="nobody has labelled a group",
        )


@app.command()
def withdraw(
    person: Annotated[str, typer.Argument(metavar="PERSON", help="Name of the person's token; 'people' lists them.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Remove all labels of a person, and the anchors made of them. Revoke the person's token first."""
    with session(as_json) as mor:
        if not yes:
            typer.confirm(f"withdraw all labels of {person}?", abort=True, err=True)
        found = mor.audits.withdraw(person)
        if as_json:
            print_json(found)
            return
        amount = ", ".join(f"{count} of {name}" for name, count in found.withdrawn.items()) or "none"
        err.print(f"withdrawn labels of {person}: {amount}; fit these objectives again", highlight=False)
