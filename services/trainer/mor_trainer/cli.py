"""Command line: ``mor-trainer serve`` (run control and status API), ``mor-trainer work`` (training process)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from mor_core.command_group import CommandGroup

_HELP = "Train a policy by GRPO (work), and serve run control, status, dashboard and weight files (serve)."

app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False, help=_HELP
)


@app.callback()
def _begin() -> None:
    from mor_core.uncaught import guard_uncaught

    guard_uncaught()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (MOR_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one (MOR_PORT).")] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="File that receives the address once the service listens.")
    ] = None,
) -> None:
    """Serve run control, status API, dashboard and weight files."""
    from mor_core import process, service, writable

    from mor_trainer.config import ControlSettings

    with process.reported_errors("mor-trainer"):
        settings = process.load(ControlSettings, host=host, port=port)
        service.check_start(settings, port_file)
        writable.check_contents(settings.runs_dir, "MOR_RUNS_DIR")
        process.begin(settings, "trainer")
        from mor_trainer.app import create_app

        service.serve(create_app(settings), settings, port_file=port_file)


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


@app.command()
def work(
    once: Annotated[bool, typer.Option(help="Return after one run instead of waiting for the next.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads of tensor operations (MOR_TORCH_THREADS).")] = None,
) -> None:
    """Claim queued runs and train them; under torchrun, all ranks train one run together.

    SIGTERM and Ctrl-C end it with status 0, after the step. With --once, the status is 1 if the run failed or was lost.
    """
    for name in (signal.SIGTERM, signal.SIGINT):  # until the worker takes over: PyTorch takes seconds to load
        signal.signal(name, _end_at_once)
    from mor_core import process, writable

    from mor_trainer.config import WorkerSettings
    from mor_trainer.ranks import RanksBroken, exit_rank, world_size
    from mor_trainer.run.worker import TrainingWorker

    # Deterministic runs on CUDA need it, and cuBLAS reads it only once.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with process.reported_errors("mor-trainer"):
        settings = process.load(WorkerSettings, torch_threads=threads)
        writable.check_contents(settings.runs_dir, "MOR_RUNS_DIR")
        process.begin(settings, "trainer-worker")
        worker = TrainingWorker(settings)
    worker.install_signals()
    try:
        status = 0 if worker.work(once=once) else 1
    except RanksBroken:
        raise typer.Exit(0 if worker.ending else 1) from None
    if world_size() > 1:
        exit_rank(status)
    raise typer.Exit(status)


@app.command("back-up")
def back_up(
    file: Annotated[Path, typer.Argument(help="New file that receives the copy.")],
) -> None:
    """Write a consistent copy of the history's SQLite file; run control may be running. PostgreSQL has pg_dump."""
    from mor_core import process, writable
    from mor_core.errors import Invalid

    from mor_trainer.config import ControlSettings
    from mor_trainer.control import history_copies
    from mor_trainer.control.database_address import history_address

    with process.reported_errors("mor-trainer"):
        source = history_address(process.load(ControlSettings)).file
        if source is None:
            raise Invalid("MOR_DATABASE_URL names a PostgreSQL server; back it up with pg_dump")
        writable.check_file(file, "FILE")
        history_copies.back_up(source, file)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint of a run: a folder checkpoints/step-... below MOR_RUNS_DIR.")
    ],
    folder: Annotated[Path, typer.Argument(help="New folder that receives the model.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the trained adapter alone, for PEFT; by default it is merged.")
    ] = False,
) -> None:
    """Write the model of a checkpoint in Hugging Face's format. 'mor run export' does it through run control."""
    from mor_core import process

    from mor_trainer.update.model_export import export_checkpoint

    with process.reported_errors("mor-trainer"):
        export_checkpoint(checkpoint, folder, adapter=adapter)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a model: 'final' of a run, or an export.")],
    destination: Annotated[str, typer.Argument(help="hf://OWNER/NAME, or oci://HOST/NAME:TAG.")],
    public: Annotated[
        bool, typer.Option("--public", help="A hub's repository may be public; by default it is created as private.")
    ] = False,
) -> None:
    """Push a model to a Hugging Face hub or an OCI registry. 'mor run push' does it through run control.

    A push that was cut off continues at the next call."""
    from mor_core import hidden_secrets, process

    from mor_trainer.config import PushSettings
    from mor_trainer.results.push import push as push_model

    with process.reported_errors("mor-trainer"):
        hidden_secrets.remember_environment()
        settings = process.load(PushSettings)
        typer.echo(push_model(folder, destination, public=public, proxy=settings.push_proxy))


@app.command("try-model")
def try_model(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or hub name.")],
    whole: Annotated[
        bool, typer.Option("--whole", help="Try the whole model; by default a copy with few layers.")
    ] = False,
) -> None:
    """Try whether the family of a model can be trained: compare the trainer with the family's own code.

    The exit status is 1 if it cannot."""
    from mor_core import process
    from mor_core.errors import Invalid

    with process.reported_errors("mor-trainer"):
        if model.startswith((".", "/", "~")) and not Path(model).is_dir():
            raise Invalid(f"{model}: no such folder; give the folder of a checkpoint or a hub name")
        from mor_trainer.model import family_trial

        problems = family_trial.try_model(model, whole=whole)
    for name, problem in problems.items():
        typer.echo(f"training with {name} does not work: {problem}")
    if not problems:
        typer.echo("the family can be trained: frozen vision, trained vision, adapters")
    raise typer.Exit(1 if problems else 0)


def main() -> None:
    app()
