"""Commands ``mor-reward register``, ``deregister`` and ``negatives``: this client at a router and in its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mor_core import atomic, writable
from mor_core.errors import Invalid
from mor_core.proxies import ProxyAddress
from pydantic import TypeAdapter

from mor_reward.console import out, printed_errors, read_secret

_Proxy = Annotated[
    str | None, typer.Option(envvar="MOR_PROXY", help="Proxy for the calls to the router, as http://host:port.")
]
_ProxyFile = Annotated[Path | None, typer.Option(help="File with the address of the proxy, which may hold a password.")]


def register(
    *,
    router: Annotated[str, typer.Option(help="Address of the router.")],
    name: Annotated[str, typer.Option(help="Name of this client at the router.")],
    url: Annotated[str, typer.Option(help="Address at which the router reaches this reward service.")],
    secret_file: Annotated[Path, typer.Option(help="File with the token that the router must send to this service.")],
    enrolment_token_file: Annotated[
        Path | None,
        typer.Option(help="File with the platform team's enrolment token.  [or the token: MOR_ENROLMENT_TOKEN]"),
    ] = None,
    domains: Annotated[str, typer.Option(help="Topics that the model can judge; by default from its card.")] = "",
    page_token_file: Annotated[
        Path | None,
        typer.Option(
            help="Token of this client's page on the router: read from this file, or written to it if absent."
        ),
    ] = None,
    proxy: _Proxy = None,
    proxy_file: _ProxyFile = None,
) -> None:
    """Enrol a running reward service at a router."""
    with printed_errors():
        from mor_reward.router_registration import register as register_at

        if not secret_file.is_file():
            raise Invalid(f"no file {secret_file}; create it with 'mor-reward token --secret-file {secret_file}'")
        secret = read_secret(secret_file, "", "give the file that 'mor-reward token --secret-file' wrote")
        enrolment_token = read_secret(
            enrolment_token_file, "MOR_ENROLMENT_TOKEN", "ask the platform team for one and write it to that file"
        )
        if not enrolment_token:
            raise Invalid("no enrolment token: give --enrolment-token-file, or set MOR_ENROLMENT_TOKEN")
        own = (
            read_secret(page_token_file, "", "give another file")
            if page_token_file and page_token_file.is_file()
            else None
        )
        if page_token_file is not None and not own:  # before the router makes a token that is shown once
            writable.check_file(page_token_file, "--page-token-file")
        enrolled = register_at(
            router,
            enrolment_token,
            name=name,
            url=url,
            domains=domains,
            secret=secret,
            page_token=own or None,
            proxy=_checked_proxy(proxy, proxy_file),
        )
        out.print(f"enrolled {name} at {router}; its service is at {url}", soft_wrap=True)
        if enrolled.trial:
            out.print(f"trial: {enrolled.trial}")
        if enrolled.token is None:
            out.print(f"token of this client's page: the one in {page_token_file}")
        elif page_token_file is None:
            out.print(f"token of this client's page, shown once: {enrolled.token}", soft_wrap=True)
        else:
            atomic.write(page_token_file, enrolled.token.encode(), mode=0o600)
            out.print(f"token of this client's page: {page_token_file}")


def deregister(
    *,
    router: Annotated[str, typer.Option(help="Address of the router.")],
    name: Annotated[str, typer.Option(help="Name of this client at the router.")],
    page_token_file: Annotated[Path, typer.Option(help="File with the token of this client's page on the router.")],
    proxy: _Proxy = None,
    proxy_file: _ProxyFile = None,
    best_effort: Annotated[
        bool, typer.Option(help="Report a failure and exit with 0, for a service that is removed anyway.")
    ] = False,
) -> None:
    """Deregister this client: the router stops calling it, and its page token becomes invalid."""
    from mor_reward.router_registration import deregister as deregister_at

    def attempt() -> None:
        if not page_token_file.is_file():
            raise Invalid(
                f"no file {page_token_file}; give the file that 'mor-reward register --page-token-file' wrote"
            )
        token = read_secret(page_token_file, "", "give the file that 'mor-reward register --page-token-file' wrote")
        known = deregister_at(router, token, name=name, proxy=_checked_proxy(proxy, proxy_file))
        out.print(f"deregistered {name} at {router}" if known else f"{name} is not enrolled at {router}")

    try:
        with printed_errors():
            attempt()
    except typer.Exit:
        if not best_effort:
            raise
        out.print(f"{name} may still be enrolled at {router}; ask the platform team for 'mor client remove {name}'")


def negatives(
    *,
    control: Annotated[str, typer.Option(help="Address of run control.")],
    run: Annotated[str, typer.Option(help="Id of a run whose groups this client scores.")],
    page_token_file: Annotated[Path, typer.Option(help="File with the token of this client's page on the router.")],
    file: Annotated[Path, typer.Option("--out", help="New .jsonl file; pictures go to a folder beside it.")],
    seed: Annotated[int, typer.Option(help="Seed of the choice of responses and of their places.")] = 0,
    proxy: _Proxy = None,
    proxy_file: _ProxyFile = None,
) -> None:
    """Write pairs of the policy's own answers to label: rejected answers must include what the policy says.

    In each line set preference_strength: below 0 where response_1 is better, above 0 where response_2 is. Lines that
    stay at 0 are no pairs. Then train on your own preferences and on this file together."""
    with printed_errors():
        from mor_reward.policy_pairs import write_pairs

        token = read_secret(page_token_file, "", "give the file that 'mor-reward register --page-token-file' wrote")
        found = write_pairs(control, token, run, file, seed=seed, proxy=_checked_proxy(proxy, proxy_file))
        out.print(f"{found.pairs} pairs of {found.groups} groups in {file}, {found.pictures} pictures as thumbnails")
        if found.left_out:
            out.print(f"{found.left_out} groups gave none: several turns, a cut text, or one response only")
        out.print("next: set preference_strength in each line, then train on it with your own preferences")


def _checked_proxy(address: str | None, file: Path | None) -> str | None:
    """Return the address of a proxy.

    Raises:
        Invalid: there are two addresses, or the file is not there.
        ValidationError: it is not the address of a proxy.
    """
    if address is not None and file is not None:
        raise Invalid("--proxy (or MOR_PROXY) and --proxy-file both name a proxy; give one of them")
    if file is not None:
        address = read_secret(file, "", "write the address of the proxy to it")
    return None if address is None else TypeAdapter(ProxyAddress).validate_python(address).get_secret_value()
