"""``mor client``: enrol, inspect, pause, rotate and remove the clients of a router."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from mor_core import writable
from mor_core.clients import Change, Client, Enrolment, Rotation
from mor_core.command_group import CommandGroup
from mor_core.errors import Invalid
from mor_core.wire import Asks
from pydantic import SecretStr

from mor_client.commands.common import ClientArgument, Json, Watch, read_secret, session, show, write_secret
from mor_client.output import err, format_time, out, print_fields, print_json, print_table
from mor_client.sdk import Mor

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Enrol, inspect, pause, rotate and remove clients.")

_CURE = "write the token of the reward service to it ('mor-reward token --secret-file' creates one)"

SecretFile = Annotated[Path, typer.Option(help="File with the token that the client's reward service accepts.")]
AskDomains = Annotated[
    list[str] | None,
    typer.Option("--ask-domain", help="Send it only prompts with this domain label; may be given several times."),
]
AskPublicOnly = Annotated[
    bool, typer.Option("--ask-public-only", help="Send it only prompts whose source is marked as public.")
]
PageTokenFile = Annotated[Path | None, typer.Option(help="File that gets the token of the client's own page.")]


@app.command()
def enrol(
    name: Annotated[str, typer.Argument(metavar="CLIENT", help="Name for the client.")],
    *,
    url: Annotated[str, typer.Option(help="Address of its reward service, as seen from the router.")],
    secret_file: SecretFile,
    domains: Annotated[str, typer.Option(help="Topics that its model can judge; by default from its card.")] = "",
    active: Annotated[bool, typer.Option("--active", help="Give it weight at once if no gate is fitted.")] = False,
    ask_domains: AskDomains = None,
    ask_public_only: AskPublicOnly = False,
    page_token_file: PageTokenFile = None,
    as_json: Json = False,
) -> None:
    """Have the router try and enrol a client's reward service. It starts on probation: it scores, without weight."""
    with session(as_json) as mor:
        secret = SecretStr(read_secret(secret_file, _CURE))
        if page_token_file is not None:  # before the router makes a token that is shown once
            writable.check_file(page_token_file, "--page-token-file")
        state = "active" if active else "probation"
        rule = _rule(ask_domains, public_only=ask_public_only)
        enrolled = mor.clients.enrol(
            Enrolment(name=name, url=url, domains=domains, token=secret, state=state, asks=rule)
        )
        token = f"token of its own page, shown once: {enrolled.token}"
        if page_token_file is not None and enrolled.token is not None:
            write_secret(page_token_file, enrolled.token)
            enrolled = enrolled.model_copy(update={"token": f"in {page_token_file}"})
            token = f"token of its own page: {page_token_file}"
        if as_json:
            print_json(enrolled)
            return
        trial = f"enrolled {name}, {enrolled.client.state}; trial: {enrolled.trial}"
        err.print(trial, highlight=False, markup=False)
        out.print(token, highlight=False, markup=False, soft_wrap=True)


def _rule(domains: list[str] | None, *, public_only: bool) -> Asks:
    return Asks(domains=tuple(domains) if domains else None, public_only=public_only)


def _in_words(rule: Asks | None) -> str:
    """Describe a rule."""
    if rule is None or rule == Asks():
        return "all prompts"
    public = "public prompts" if rule.public_only else "prompts"
    return public if rule.domains is None else f"{public} of {', '.join(rule.domains) or 'no domain'}"


@app.command()
def asks(
    name: ClientArgument,
    *,
    ask_domains: AskDomains = None,
    ask_public_only: AskPublicOnly = False,
    ask_all: Annotated[bool, typer.Option("--ask-all", help="Send it all prompts again.")] = False,
    as_json: Json = False,
) -> None:
    """Show, or set, the prompts that a client is sent. The wish on its card holds as well."""
    narrows = bool(ask_domains) or ask_public_only
    with session(as_json) as mor:
        if ask_all and narrows:
            raise Invalid("--ask-all sends every prompt; leave --ask-domain and --ask-public-only out, or --ask-all")
        if narrows or ask_all:
            client = mor.clients.change(name, Change(asks=_rule(ask_domains, public_only=ask_public_only)))
        else:
            client = mor.clients.get(name).client
        if as_json:
            print_json(client)
        else:
            err.print(f"{name} is sent {_in_words(client.asks)}", highlight=False)


@app.command("list")
def list_clients(*, watch: Watch = False, as_json: Json = False) -> None:
    """List all clients by name."""
    with session(as_json) as mor:
        show(mor.clients.list, _print_list, as_json=as_json, watch=watch)


def _print_list(clients: list[Client]) -> None:
    print_table(
        ("client", "state", "model", "domains", "probed", "address"),
        [
            (c.name, c.state, f"{c.model.name} {c.model.version}" if c.model else None, c.domains,
             format_time(c.probed_at), c.url)
            for c in clients
        ],
        empty="no clients; add one with 'mor client enrol'",
    )  # fmt: skip


@app.command("show")
def show_client(name: ClientArgument, *, as_json: Json = False) -> None:
    """Show one client: state, health, calibration, the effect of its scores on recent rewards, and its audits."""
    with session(as_json) as mor:
        status, influence, audits = mor.clients.get(name), mor.clients.influence(name), mor.clients.audits(name)
        if as_json:
            more = {"influence": influence.model_dump(mode="json"), "audits": audits.model_dump(mode="json")}
            print_json({**status.model_dump(mode="json"), **more})
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
                ("is sent", _in_words(client.asks)),
                ("wishes to be sent", _in_words(card.asks if card else None)),
                ("model", f"{client.model.name} {client.model.version}" if client.model else None),
                ("circuit", status.circuit),
                ("last error", status.last_error or "none"),
                ("enrolled", format_time(client.enrolled_at)),
                ("probed", format_time(client.probed_at)),
                ("pair accuracy (claimed)", calibration.pair_accuracy if calibration else None),
                ("calibration error (claimed)", calibration.ece if calibration else None),
            ]
        )
        out.print()
        print_table(
            ("objective", "groups", "counted", "mean weight", "share of variance"),
            [(o.objective, o.groups, o.counted, o.mean_weight, o.variance_share) for o in influence.objectives],
            empty="no group was rewarded recently",
        )
        out.print()
        print_table(
            ("objective", "audited groups", "right", "95 % interval"),
            [(o.objective, o.audits, o.agreement, _interval(o.agreement_interval)) for o in audits.objectives],
            empty="no audited group with its scores is labelled",
        )


def _interval(interval: tuple[float, float] | None) -> str | None:
    return None if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


@app.command()
def pause(
    name: ClientArgument,
    *,
    reason: Annotated[str | None, typer.Option(help="Reason, for colleagues.")] = None,
    as_json: Json = False,
) -> None:
    """Send a client no more requests until 'resume'. The others share its weight meanwhile."""
    with session(as_json) as mor:
        _print_state(mor.clients.change(name, Change(state="paused", reason=reason)), as_json)


@app.command()
def resume(
    name: ClientArgument,
    *,
    active: Annotated[
        bool, typer.Option("--active", help="With weight at once, whatever its state was before.")
    ] = False,
    probation: Annotated[
        bool, typer.Option("--probation", help="Without weight until a fit; also ends a quarantine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Give a paused client the state and the weight that it had before the pause."""
    if active and probation:
        raise typer.BadParameter("choose --active or --probation")
    with session(as_json) as mor:
        state: Literal["active", "probation", "resumed"] = (
            "active" if active else "probation" if probation else "resumed"
        )
        resumed = mor.clients.change(name, Change(state=state, reason=None))
        _print_state(resumed, as_json)
        if resumed.state == "active" and not as_json:
            _print_missing_fits(mor, name)


def _print_missing_fits(mor: Mor, name: str) -> None:
    """Name the objectives whose gate was fitted without the client, in which it has no weight."""
    for objective in mor.objectives.list():
        active = [gate for gate in mor.objectives.versions(objective.name) if gate.version == objective.active]
        if active and name not in active[0].models:
            err.print(
                f"gate version {objective.active} of {objective.name} was fitted without it, and gives it no weight; "
                f"add it with: mor objective fit {objective.name} --newcomers-only",
                highlight=False,
            )


def _print_state(client: Client, as_json: bool) -> None:
    if as_json:
        print_json(client)
    else:
        err.print(f"{client.name} is {client.state}", highlight=False)


@app.command()
def rotate(
    name: ClientArgument,
    *,
    secret_file: Annotated[
        Path | None, typer.Option(help="File with the new token that the reward service accepts; tested first.")
    ] = None,
    page_token_file: Annotated[
        Path | None, typer.Option(help="File that gets a new token of the client's own page.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replace the token that the router sends to a client, the client's own, or both."""
    with session(as_json) as mor:
        if secret_file is None and page_token_file is None:
            raise Invalid("no credential to rotate: give --secret-file, --page-token-file or both")
        secret = None if secret_file is None else SecretStr(read_secret(secret_file, _CURE))
        if page_token_file is not None:
            writable.check_file(page_token_file, "--page-token-file")
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
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a client: it gets no more requests, its secret is deleted and its own token becomes invalid."""
    if not yes:
        typer.confirm(f"remove client {name} with its credentials?", abort=True, err=True)
    with session(as_json) as mor:
        mor.clients.remove(name)
        if as_json:
            print_json({"removed": name})
        else:
            err.print(f"removed {name}", highlight=False)
