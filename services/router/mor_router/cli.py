"""Command ``mor-router``."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import structlog
import typer
from cryptography.fernet import Fernet
from mor_core import atomic, process, writable
from mor_core.command_group import CommandGroup
from mor_core.errors import Invalid, MorError
from mor_core.failures import describe, describe_failure
from mor_core.hidden_secrets import hide_secrets
from mor_core.printable import visible
from mor_core.service import check_start
from mor_core.service import serve as serve_app
from mor_core.streams import connect
from mor_core.uncaught import guard_uncaught
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router.audit import AuditLog
from mor_router.clients.secret_store import SecretStore
from mor_router.config import RouterSettings
from mor_router.rekeying import RekeyResult, rekey_all, unusable_secrets
from mor_router.snapshots.snapshot_folder import SnapshotFolder, is_snapshot, read_snapshot
from mor_router.store import RouterSnapshot, export, restore

_RENAMED = {"MOR_GROUP_ATTEMPTS": "MOR_QUORUM_ATTEMPTS"}
"""Former variable of the router, which the trainer still reads -> present one. A silent default could surprise an
operator."""

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Router of MoR: fuses the clients' scores into rewards.",
)
log = structlog.get_logger(__name__)

Result = TypeVar("Result")


@app.callback()
def _begin(context: typer.Context) -> None:
    guard_uncaught()
    if context.invoked_subcommand != "serve":  # whose log names them
        process.warn_of_unread_variables()


def _fail(message: str) -> NoReturn:
    for line in message.splitlines():
        typer.secho(f"mor-router: {visible(hide_secrets(line))}", err=True, fg="red")
    raise typer.Exit(2)


def _with_redis(work: Callable[[Redis, RouterSettings], Awaitable[Result]]) -> Result:
    with process.reported_errors("mor-router"):
        settings = process.load(RouterSettings)

    async def run() -> Result:
        redis = connect(settings)
        try:
            return await work(redis, settings)
        finally:
            await redis.aclose()

    try:
        return asyncio.run(run())
    except MorError as error:
        _fail(describe_failure(error))
    except RedisError as error:
        reason = describe_failure(error).rstrip(".")
        _fail(f"the queue server failed: {reason}; check MOR_REDIS_URL, and that the server runs")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
    port_file: Annotated[Path | None, typer.Option(help="File to write the address to once it listens.")] = None,
) -> None:
    """Serve the API and score the groups of active runs. Settings come from MOR_* variables."""
    from mor_router.app import create_app

    with process.reported_errors("mor-router"):
        settings = process.load(RouterSettings, host=host, port=port)
        check_start(settings, port_file)
        SecretStore(settings.secret_key)
        process.begin(settings, "router")
        _report_renamed_variables()
        serve_app(create_app(settings), settings, port_file=port_file)


def _report_renamed_variables() -> None:
    for former, present in _RENAMED.items():
        if former in os.environ and present not in os.environ:
            log.warning("the router does not read this variable any more", name=former, use=present)


@app.command("export")
def export_state(file: Annotated[Path, typer.Argument(help="JSON file to write.")]) -> None:
    """Write clients, objectives, anchors and gate versions to a file. Its secrets stay encrypted."""

    with process.reported_errors("mor-router"):
        writable.check_file(file, "FILE")

    async def work(redis: Redis, _: RouterSettings) -> RouterSnapshot:
        return await export(redis)

    snapshot = _with_redis(work)
    atomic.write(file, snapshot.model_dump_json(indent=1).encode(), mode=0o600)
    typer.echo(f"{len(snapshot.hashes['clients'])} clients, {len(snapshot.hashes['objectives'])} objectives -> {file}")


@app.command("import")
def import_state(
    file: Annotated[Path, typer.Argument(help="JSON file of 'mor-router export', or a snapshot in its folder.")],
    replace: Annotated[bool, typer.Option(help="Discard the router's present state.")] = False,
) -> None:
    """Restore exported state. Its secrets need the MOR_SECRET_KEY that encrypted them; those that cannot be used are
    named. Restart running routers afterwards."""
    snapshot = _read_state(file)

    async def work(redis: Redis, settings: RouterSettings) -> list[str]:
        await restore(redis, snapshot, replace=replace, installation=_installation(settings))
        AuditLog(settings.audit_log).record("import", file.name, "command line")
        if not settings.secret_key.get_secret_value():
            return ["MOR_SECRET_KEY is not set here, so the secrets were not checked"]
        return await unusable_secrets(redis, SecretStore(settings.secret_key))

    problems = _with_redis(work)
    typer.echo(f"{file}: {len(snapshot.hashes.get('clients', {}))} clients imported")
    for problem in problems:
        typer.secho(f"mor-router: {visible(hide_secrets(problem))}", err=True, fg="yellow")


def _read_state(file: Path) -> RouterSnapshot:
    try:
        if is_snapshot(file):
            return SnapshotFolder(file.parent, 1).whole(read_snapshot(file))
        return RouterSnapshot.model_validate_json(file.read_bytes())
    except OSError as error:
        _fail(f"{file}: {error.strerror}; give a file of 'mor-router export', or a snapshot")
    except ValidationError as error:
        _fail(f"{file}: not a file of 'mor-router export' ({describe(error)}); give one, or a snapshot")
    except Invalid as error:
        _fail(f"{file}: {error}")


def _installation(settings: RouterSettings) -> str | None:
    """Return the name of the state that the snapshots here are of, so that they go on."""
    if settings.router_state_dir is None:
        return None
    with contextlib.suppress(Invalid, OSError):
        newest = SnapshotFolder(settings.router_state_dir, settings.router_state_keep).newest()
        return None if newest is None else newest.mark.installation
    return None


@app.command()
def rekey() -> None:
    """Encrypt all secrets with the first key of MOR_SECRET_KEY; the other keys can be removed afterwards.

    With MOR_BIND_SECRETS=true it also reads the secrets of earlier versions, and binds them to their addresses.
    """

    async def work(redis: Redis, settings: RouterSettings) -> RekeyResult:
        result = await rekey_all(redis, SecretStore(settings.secret_key, reads_unbound=settings.bind_secrets))
        AuditLog(settings.audit_log).record(
            "rekey", "secrets", "command line", clients=result.clients, labellers=result.labellers
        )
        return result

    result = _with_redis(work)
    typer.echo(f"{result.clients + result.labellers} secrets are encrypted with the first key")
    if result.problems:
        _fail("\n".join(result.problems))


@app.command()
def key() -> None:
    """Print a new key for MOR_SECRET_KEY."""
    typer.echo(Fernet.generate_key().decode())
