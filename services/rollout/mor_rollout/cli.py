"""Command line of the rollout service, ``mor-rollout``."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from mor_core import process, writable
from mor_core.command_group import CommandGroup
from mor_core.printable import visible
from mor_core.service import check_start
from mor_core.service import serve as serve_app
from mor_core.uncaught import guard_uncaught

app = typer.Typer(
    cls=CommandGroup,
    help="Sample groups of responses from the current policy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _main() -> None:
    """Sample groups of responses from the current policy."""
    guard_uncaught()


@app.command()
def serve(
    *,
    model: Annotated[str | None, typer.Option(help="Base checkpoint: path or hub name. [MOR_MODEL]")] = None,
    backend: Annotated[str | None, typer.Option(help="vllm or transformers. [MOR_BACKEND]")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. [MOR_DEVICE]")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. [MOR_DTYPE]")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Prompt and response, tokens. [MOR_MAX_MODEL_LEN]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [MOR_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for a free one. [MOR_PORT]")] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="Write the service's address to this file when it listens.")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. All other settings are MOR_* environment variables."""
    from mor_rollout.config import RolloutSettings

    with process.reported_errors("mor-rollout"):
        settings = process.load(
            RolloutSettings,
            model=model,
            backend=backend,
            device=device,
            dtype=dtype,
            max_model_len=max_model_len,
            host=host,
            port=port,
        )
        check_start(settings, port_file)
        writable.check_contents(settings.weights_dir, "MOR_WEIGHTS_DIR")
        from mor_rollout import environment  # it and the app import the engine, which takes seconds
        from mor_rollout.app import create_app

        environment.prepare(settings)
        process.begin(settings, "rollout")
        service = create_app(settings)
    signal.signal(signal.SIGTERM, _terminated)  # uvicorn raises the signal again once it has shut down
    with contextlib.suppress(_Terminated), process.reported_errors("mor-rollout"):
        serve_app(service, settings, port_file=port_file)
    failure = service.state.service.failure
    if failure is not None:
        typer.echo(f"mor-rollout: {visible(failure)}", err=True)
        raise typer.Exit(1)


class _Terminated(SystemExit):
    """The process received SIGTERM."""


def _terminated(number: int, frame: FrameType | None) -> None:
    raise _Terminated(128 + number)


if __name__ == "__main__":
    app()
