"""``mor-reward``: train, evaluate, serve, examine and register a reward model."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from mor_core.errors import Invalid, MorError
from mor_core.problems import describe
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    help="Train a reward model on private preferences, serve its scores, enrol it at a MoR router.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
out = Console()
err = Console(stderr=True)

Data = Annotated[
    Path, typer.Option(help="Preferences in mor.prefs/1: JSONL or Parquet with prompt, images, chosen, rejected.")
]


@contextmanager
def _errors() -> Iterator[None]:
    """Errors that MoR raises on purpose end the command with their message, not with a traceback."""
    try:
        yield
    except MorError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    except ValidationError as error:
        err.print(f"[bold red]error:[/] {escape(describe(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error


@app.command()
def train(
    *,
    data: Data,
    backbone: Annotated[str, typer.Option(help="Kind of model: vlm, dual-encoder or text.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to write; it appears whole at the end.")],
    model: Annotated[str | None, typer.Option(help="Checkpoint of a vlm or text model: folder or hub name.")] = None,
    vision: Annotated[str | None, typer.Option(help="Image encoder of a dual encoder: folder or hub name.")] = None,
    text: Annotated[str | None, typer.Option(help="Text encoder of a dual encoder: folder or hub name.")] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="Rank of adapters of a vlm; 0 trains its decoder in full.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens that are read.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting of the backbone, as name=value.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training pairs; 0 only calibrates.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Pairs a step.")] = 32,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 5e-4,
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay.")] = 0.01,
    mismatch: Annotated[int, typer.Option(help="Responses to other pictures each chosen one is compared with.")] = 0,
    centring: Annotated[float, typer.Option(help="Weight that draws scores to zero.")] = 0.01,
    patience: Annotated[int, typer.Option(help="Epochs without progress after which training stops.")] = 3,
    heldout_fraction: Annotated[float, typer.Option(help="Share of the rows held out, by picture.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Decides splits, order and new weights.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 1,
    device: Annotated[str, typer.Option(help="Device as torch names it: cpu, cuda, cuda:1.")] = "cpu",
    name: Annotated[str | None, typer.Option(help="Name on the card; the folder's otherwise.")] = None,
    domains: Annotated[str, typer.Option(help="What the model knows about, in words, for the card.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")] = False,
) -> None:
    """Train and calibrate a reward model; print how it does on pairs that it never saw."""
    with _errors():
        from mor_reward.train_config import Recipe

        given = {"model": model, "vision": vision, "text": text, "lora_rank": lora_rank, "max_length": max_length}
        named = {key: value for key, value in given.items() if value is not None}
        config = _backbone({"kind": backbone, **named, **_settings(setting or [])})
        recipe = Recipe(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            mismatch=mismatch,
            centring=centring,
            patience=patience,
            heldout_fraction=heldout_fraction,
            seed=seed,
            checkpoint_every=checkpoint_every,
        )
        _quiet(threads)
        from mor_reward import training
        from mor_reward.progress import Bar, bar_columns

        job = training.Job(data, folder, name or folder.name, domains, config, recipe, resume, overwrite, device)
        with bar_columns() as progress, _stop_signals() as stopped:
            manifest = training.train(job, Bar(progress), stopped)
        _show(manifest.name, manifest.calibration.model_dump(), f"version {manifest.version} in {folder}")
        times = manifest.training
        out.print(f"encoding {times.feature_seconds:.1f} s, training {times.train_seconds:.1f} s, {times.steps} steps")


@app.command()
def evaluate(
    data: Data,
    model: Annotated[Path, typer.Option(help="Folder that 'mor-reward train' wrote.")],
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 1,
    device: Annotated[str, typer.Option(help="Device as torch names it: cpu, cuda, cuda:1.")] = "cpu",
) -> None:
    """Print how a trained model agrees with the preferences of a file, at its own temperature."""
    with _errors():
        _quiet(threads)
        from mor_reward import model_store, training

        manifest, report = training.evaluate(data, model, device)
        figures = model_store.card_calibration(report, manifest.calibration.temperature).model_dump()
        _show(manifest.name, figures, f"version {manifest.version} on {data}")


@app.command()
def serve(
    *,
    model: Annotated[Path | None, typer.Option(help="Folder that 'mor-reward train' wrote.  [MOR_MODEL_DIR]")] = None,
    function: Annotated[str | None, typer.Option(help="Python function, as file.py:name.  [MOR_FUNCTION]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [MOR_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.  [MOR_PORT]")] = None,
    tokens_file: Annotated[Path | None, typer.Option(help="Tokens of callers.  [MOR_TOKENS_FILE]")] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads.  [MOR_THREADS]")] = None,
    port_file: Annotated[Path | None, typer.Option(help="Write the address here once it listens.")] = None,
) -> None:
    """Serve a reward model by the contract mor.reward/1. All other settings are MOR_* environment variables."""
    with _errors():
        given: dict[str, Any] = {
            "model_dir": model,
            "function": function,
            "host": host,
            "port": port,
            "tokens_file": tokens_file,
            "threads": threads,
        }
        from mor_core import service

        from mor_reward.config import RewardSettings

        settings = RewardSettings(**{key: value for key, value in given.items() if value is not None})
        _quiet(settings.threads)
        from mor_reward.app import create_app

        service.serve(create_app(settings), settings, name="reward", port_file=port_file)


@app.command()
def conformance(
    *,
    url: Annotated[str, typer.Argument(help="Address of a running reward service.")],
    token: Annotated[str, typer.Option(envvar="MOR_REWARD_TOKEN", help="Token that the service wants.")] = "",
    secret_file: Annotated[Path | None, typer.Option(help="File with that token instead.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Try every clause of the reward contract on a running service; exit status 1 where one is broken."""
    with _errors():
        import json
        from dataclasses import asdict

        from mor_reward.conformance import examine
        from mor_reward.conformance.endpoint import Endpoint

        if secret_file is not None and not secret_file.is_file():
            raise Invalid(f"no file {secret_file}; 'mor-reward token --secret-file' writes one")
        secret = secret_file.read_text().strip() if secret_file else token
        endpoint = Endpoint(url, secret, timeout_s=timeout)
        try:
            findings = list(examine(endpoint))
        finally:
            endpoint.close()
        broken = sum(finding.outcome == "broken" for finding in findings)
        if as_json:
            checks = [asdict(finding) for finding in findings]
            sys.stdout.write(json.dumps({"url": url, "conforms": not broken, "checks": checks}, indent=2) + "\n")
        else:
            colours = {"kept": "green", "broken": "red", "skipped": "yellow"}
            table = Table("check", "", "the contract asks", "got", title=url, show_lines=True)
            for one in findings:
                outcome = f"[{colours[one.outcome]}]{one.outcome}[/]"
                table.add_row(one.check, outcome, escape(one.clause), escape(one.detail))
            out.print(table)
            out.print(f"{broken} of {len(findings)} clauses are broken" if broken else "the contract is kept")
        if broken:
            raise typer.Exit(1)


@app.command()
def register(
    *,
    router: Annotated[str, typer.Option(help="Address of the router.")],
    name: Annotated[str, typer.Option(help="Name of this client at the router.")],
    url: Annotated[str, typer.Option(help="Address at which the router reaches this reward service.")],
    secret_file: Annotated[Path, typer.Option(help="File with the token that this service wants from the router.")],
    enrolment_token: Annotated[
        str, typer.Option(envvar="MOR_ENROLMENT_TOKEN", help="Token to enrol with, from the platform team.")
    ],
    domains: Annotated[str, typer.Option(help="What the model knows about; from its card otherwise.")] = "",
    page_token_file: Annotated[
        Path | None,
        typer.Option(help="Token of this client's page on the router: taken from here, or kept here if there is none."),
    ] = None,
) -> None:
    """Enrol a running reward service at a router."""
    with _errors():
        from mor_reward.enrolment import register as enrol
        from mor_reward.files import write_whole

        if not secret_file.is_file():
            raise Invalid(f"no file {secret_file}; make it with 'mor-reward token --secret-file {secret_file}'")
        secret = secret_file.read_text().strip()
        own = page_token_file.read_text().strip() if page_token_file and page_token_file.is_file() else None
        enrolled = enrol(
            router, enrolment_token, name=name, url=url, domains=domains, secret=secret, page_token=own or None
        )
        out.print(f"[green]enrolled[/] {name} at {router}: it will score at {url}")
        if enrolled.trial:
            out.print(f"trial: {enrolled.trial}")
        if enrolled.token is None:
            out.print(f"token of this client's page: the one in {page_token_file}")
        elif page_token_file is None:
            out.print(f"token of this client's page, shown once: {enrolled.token}", soft_wrap=True)
        else:
            write_whole(page_token_file, enrolled.token.encode(), mode=0o600)
            out.print(f"token of this client's page: {page_token_file}")


@app.command()
def deregister(
    *,
    router: Annotated[str, typer.Option(help="Address of the router.")],
    name: Annotated[str, typer.Option(help="Name of this client at the router.")],
    page_token_file: Annotated[Path, typer.Option(help="File with the token of this client's page on the router.")],
) -> None:
    """Have a router forget this client: it is not asked again, and its token ends."""
    with _errors():
        from mor_reward.enrolment import deregister as leave

        if not page_token_file.is_file():
            raise Invalid(f"no file {page_token_file}; 'mor-reward register --page-token-file' wrote it")
        known = leave(router, page_token_file.read_text().strip(), name=name)
        out.print(f"[green]deregistered[/] {name} at {router}" if known else f"{name} is not enrolled at {router}")


@app.command()
def token(
    tokens_file: Annotated[Path, typer.Option(help="The service's file of token hashes; made if need be.")],
    name: Annotated[str, typer.Option(help="Who will hold the token.")] = "router",
    scope: Annotated[str, typer.Option(help="service for the router; viewer or admin otherwise.")] = "service",
    secret_file: Annotated[Path | None, typer.Option(help="Write the token here instead of to the terminal.")] = None,
) -> None:
    """Make a token for a caller of the reward service; only its hash is kept."""
    with _errors():
        from mor_core.auth import Scope

        from mor_reward.files import write_whole
        from mor_reward.tokens import issue

        if scope not in list(Scope):
            raise Invalid(f"--scope {scope!r}; the scopes are {', '.join(Scope)}")
        issued = issue(tokens_file, name, Scope(scope))
        if secret_file is None:
            sys.stdout.write(issued + "\n")
        else:
            write_whole(secret_file, issued.encode(), mode=0o600)


def _settings(pairs: list[str]) -> dict[str, Any]:
    """``name=value`` pairs; a value is JSON where it can be read as such and a string otherwise."""
    import json

    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise Invalid(f"--set {pair!r}: write it as name=value")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _backbone(values: dict[str, Any]) -> Any:
    from mor_reward.backbones import AnyConfig

    try:
        return TypeAdapter(AnyConfig).validate_python(values)
    except ValidationError as error:
        raise Invalid(f"backbone: {describe(error)}") from error


def _quiet(threads: int) -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def _stop_signals() -> Iterator[Any]:
    """A first SIGINT or SIGTERM asks training to stop after its step, where it can go on; a second ends it at once."""
    asked = False

    def ask(_: int, __: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(name: str, figures: dict[str, Any], caption: str) -> None:
    low, high = figures["pair_accuracy_interval"]
    table = Table("reward model", "held-out pairs", "accuracy", "95 % interval", "ECE", "temperature", caption=caption)
    table.add_row(
        name,
        str(figures["pairs"]),
        f"{figures['pair_accuracy']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{figures['ece']:.3f}",
        f"{figures['temperature']:.3g}",
    )
    out.print(table)


if __name__ == "__main__":
    app()
