"""``mor token``: create, list and revoke the tokens of an installation without Kubernetes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from mor_core.command_group import CommandGroup
from mor_core.errors import MorError
from mor_core.issued_tokens import issue, listed, revoke
from mor_core.visibility import Scope

from mor_client.commands.common import Json, write_secret
from mor_client.exit_codes import exit_code_of
from mor_client.output import err, print_error, print_json, print_table

app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Create, list and revoke tokens in a tokens file of this machine."
)

TokensFile = Annotated[
    Path, typer.Option(envvar="MOR_TOKENS_FILE", help="Tokens file of the services.", show_default=False)
]


@app.command()
def create(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the token's holder.")],
    scope: Annotated[Scope, typer.Option(help="Permission of the token.")],
    tokens_file: TokensFile,
    secret_file: Annotated[
        Path | None, typer.Option(help="New file for the token, which only you can read, instead of the terminal.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a token and print it once; the file keeps its hash only, and running services accept it within seconds."""
    with _printed(as_json):
        secret = issue(tokens_file, name, scope)
        if secret_file is not None:
            try:
                write_secret(secret_file, secret)
            except MorError:
                revoke(tokens_file, name)  # nobody has it
                raise
    if as_json:
        shown = {"token": secret} if secret_file is None else {"secret_file": str(secret_file)}
        print_json({"name": name, "scope": scope, **shown})
    elif secret_file is None:
        sys.stdout.write(secret + "\n")
        err.print("the token is shown this once; keep it in a file that only its holder can read", highlight=False)
    else:
        err.print(f"the token of {name} is in {secret_file}", highlight=False, soft_wrap=True)


@app.command("list")
def list_tokens(*, tokens_file: TokensFile, as_json: Json = False) -> None:
    """List the holders of tokens with their scopes."""
    with _printed(as_json):
        found = listed(tokens_file)
    if as_json:
        print_json([{"name": token.name, "scope": token.scope} for token in found])
    else:
        print_table(("name", "scope"), [(token.name, token.scope) for token in found], empty="no tokens")


@app.command("revoke")
def revoke_token(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the token's holder.")],
    tokens_file: TokensFile,
    as_json: Json = False,
) -> None:
    """Revoke the token of a name: running services refuse it within seconds, and end its open event streams."""
    with _printed(as_json):
        revoked = revoke(tokens_file, name)
    if as_json:
        print_json({"name": name, "revoked": revoked})
    else:
        err.print(f"the token of {name} is revoked", highlight=False)


@contextmanager
def _printed(as_json: bool) -> Iterator[None]:
    """End the command with the message and exit status of an error."""
    try:
        yield
    except MorError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(exit_code_of(error)) from error
