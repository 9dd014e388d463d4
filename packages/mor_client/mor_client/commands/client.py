"""``mor client``: enrol, look at, pause, rotate and remove the clients of a router."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mor_core.clients import Change, Client, Enrolment, Rotation
from mor_core.errors import Invalid
from pydantic import SecretStr

from mor_client.commands.common import ClientArgument, Json, read_secret, session, write_secret
from mor_client.output import err, out, print_fields, print_json, print_table, when

app = typer.Typer(no_args_is_help=True, help="Enrol, look at, pause, rotate and remove clients.")

_MADE_BY = "it must hold the token that the reward service wants ('mor-reward token --secret-file' makes one)"

SecretFile = Annotated[Path, typer.Option(help="File with the token that the client's reward service wants.")]
PageTokenFile = Annotated[Path | None, typer.Option(help="Write the token of the client's own page here.")]


@app.command()
def enrol(
    name: Annotated[str, typer.Argument(metavar="CLIENT", help="Name for the client.")],
    *,
    url: Annotated[str, typer.Option(help="Address of its reward service, as the router reaches it.")],
    secret_file: SecretFile,
    domains: Annotated[str, typer.Option(help="What its model knows about; from its card otherwise.")] = "",
    active: Annotated[bool, typer.Option("--active", help="Give it weight at once, where no gate is fitted.")] = False,
    page_token_file: PageTokenFile = None,
    as_json: Json = False,
) -> None:
    """Have the router try a client's reward service and keep it. It begins on probation: asked, without weight."""
    with session(as_json) as mor:
        secret = SecretStr(read_secret(secret_file, _MADE_BY))
        state = "active" if active else "probation"
        enrolled = mor.clients.enrol(Enrolment(name=name, url=url, domains=domains, token=secret, state=state))
        if page_token_file is not None and enrolled.token is not None:
            write_secret(page_token_file, enrolled.token)
            enrolled = enrolled.model_copy(update={"token": f"in {page_token_file}"})
        if as_json:
            print_json(enrolled)
            return
        err.print(f"enrolled {name}, {enrolled.client.state}; trial: {enrolled.trial}", highlight=False)
        out.print(f"token of its own page, shown once: {enrolled.token}", highlight=False, soft_wrap=True)


@app.command("list")
def list_clients(*, as_json: Json = False) -> None:
    """All clients, by name."""
    with session(as_json) as mor:
        clients = mor.clients.list()
        if as_json:
            print_json(clients)
            return
        print_table(
            ("client", "state", "model", "domains", "probed", "address"),
            [
                (c.name, c.state, f"{c.model.name} {c.model.version}" if c.model else None, c.domains,
                 when(c.probed_at), c.url)
                for c in clients
            ],
            empty="no clients; 'mor client enrol' takes one in",
        )  # fmt: skip


@app.command()
def show(name: ClientArgument, *, as_json: Json = False) -> None:
    """One client: state, health, calibration, and what its scores did to recent rewards."""
    with session(as_json) as mor:
        status, influence = mor.clients.get(name), mor.clients.influence(name)
        if as_json:
            print_json({**status.model_dump(mode="json"), "influence": influence.model_dump(mode="json")})
            return
        client, card = status.client, status.client.card
        calibration = card.calibration if card else None
        print_fields(
            [
                ("client", client.name),
                ("state", client.state),
                *([("reason", client.reason)] if client.reason else []),
                ("address", client.url),
                ("domains", client.domains),
                ("model", f"{client.model.name} {client.model.version}" if client.model else None),
                ("circuit", status.circuit),
                ("last error", status.last_error or "none"),
                ("enrolled", when(client.enrolled_at)),
                ("probed", when(client.probed_at)),
                ("pair accuracy, as it claims", calibration.pair_accuracy if calibration else None),
                ("calibration error, as it claims", calibration.ece if calibration else None),
            ]
        )
        out.print()
        print_table(
            ("objective", "groups", "counted", "mean weight", "share of variance"),
            [(o.objective, o.groups, o.counted, o.mean_weight, o.variance_share) for o in influence.objectives],
            empty="no group was rewarded lately",
        )


@app.command()
def pause(
    name: ClientArgument,
    *,
    reason: Annotated[str | None, typer.Option(help="Why, for people.")] = None,
    as_json: Json = False,
) -> None:
    """Ask a client no more, until 'resume'."""
    with session(as_json) as mor:
        _changed(mor.clients.change(name, Change(state="paused", reason=reason)), as_json)


@app.command()
def resume(
    name: ClientArgument,
    *,
    active: Annotated[bool, typer.Option("--active", help="With weight at once, instead of on probation.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a paused or quarantined client again, on probation: the next fit may give it weight."""
    with session(as_json) as mor:
        _changed(mor.clients.change(name, Change(state="active" if active else "probation", reason=None)), as_json)


def _changed(client: Client, as_json: bool) -> None:
    if as_json:
        print_json(client)
    else:
        err.print(f"{client.name} is {client.state}", highlight=False)


@app.command()
def rotate(
    name: ClientArgument,
    *,
    secret_file: Annotated[
        Path | None, typer.Option(help="File with the new token that the reward service wants; tried first.")
    ] = None,
    page_token_file: Annotated[
        Path | None, typer.Option(help="Make a new token of the client's own page and write it here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replace the token that the router sends to a client, the client's own, or both."""
    with session(as_json) as mor:
        if secret_file is None and page_token_file is None:
            raise Invalid("nothing to rotate: give --secret-file, --page-token-file or both")
        secret = None if secret_file is None else SecretStr(read_secret(secret_file, _MADE_BY))
        rotated = mor.clients.rotate(name, Rotation(token=secret, inbound=page_token_file is not None))
        if page_token_file is not None and rotated.token is not None:
            write_secret(page_token_file, rotated.token)
            rotated = rotated.model_copy(update={"token": f"in {page_token_file}"})
        if as_json:
            print_json(rotated)
        else:
            err.print(f"rotated the credentials of {name}", highlight=False)


@app.command()
def remove(
    name: ClientArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Revoke a client: it is not asked again, its secret is deleted and its own token ends."""
    if not yes:
        typer.confirm(f"remove client {name} with its credentials?", abort=True, err=True)
    with session(as_json) as mor:
        mor.clients.remove(name)
        if as_json:
            print_json({"removed": name})
        else:
            err.print(f"removed {name}", highlight=False)
