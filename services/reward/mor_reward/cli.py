"""Command line ``mor-reward``: train, evaluate, serve, check and register a reward model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from mor_core import atomic, process, writable
from mor_core.command_group import CommandGroup
from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.printable import visible, visible_json
from mor_core.terminal import print_table
from mor_core.uncaught import guard_uncaught
from pydantic import TypeAdapter, ValidationError
from rich.markup import escape

from mor_reward.adopt_command import adopt
from mor_reward.audit_command import audit
from mor_reward.calibration_table import show_calibration
from mor_reward.command_values import card_name, configure_libraries, named_values
from mor_reward.console import out, printed_errors, read_secret
from mor_reward.data_options import Columns, Data, MostInvalid, SkipInvalid, show_left_out
from mor_reward.privacy_options import Clip, Delta, Epsilon, Part, Public, Unit, private_training
from mor_reward.registration_commands import deregister, negatives, register
from mor_reward.report_command import report
from mor_reward.serving_command import serve
from mor_reward.stop_signals import stop_signals

app = typer.Typer(
    help="Train a reward model on private preferences, serve its scores and enrol it at a MoR router.",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _begin(context: typer.Context) -> None:
    guard_uncaught()
    if context.invoked_subcommand != "serve":  # whose log names them
        process.warn_of_unread_variables()


@app.command()
def train(
    *,
    data: Data,
    folder: Annotated[Path, typer.Option("--out", help="Output folder; written whole at the end.")],
    backbone: Annotated[str | None, typer.Option(help="Kind of model: vlm, dual-encoder or text.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Reward model to train further, in place of --backbone and its checkpoints.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint of a vlm or text model: folder or hub name.")] = None,
    vision: Annotated[str | None, typer.Option(help="Image encoder of a dual encoder: folder or hub name.")] = None,
    text: Annotated[str | None, typer.Option(help="Text encoder of a dual encoder: folder or hub name.")] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="Rank of adapters of a vlm; 0 trains its decoder in full.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Maximum tokens of an input.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting of the backbone, as name=value.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training pairs; 0 calibrates only.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Pairs per step.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay.")] = 0.01,
    mismatch: Annotated[int, typer.Option(help="Synthetic pairs per pair, with responses to other pictures.")] = 0,
    centring: Annotated[float, typer.Option(help="Weight of the term that pulls scores to zero.")] = 0.01,
    patience: Annotated[int, typer.Option(help="Epochs without improvement after which training stops.")] = 3,
    heldout_fraction: Annotated[float, typer.Option(help="Fraction of the rows held out, split by picture.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of splits, order and new weights.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.")] = "cpu",
    name: Annotated[str | None, typer.Option(help="Name on the card; by default the folder's name.")] = None,
    domains: Annotated[str, typer.Option(help="Topics that the model can judge, as free text for the card.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")] = False,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    most_invalid: MostInvalid = 0.1,
    dp_epsilon: Epsilon = None,
    dp_delta: Delta = None,
    dp_unit: Unit = "picture",
    dp_part: Part = "head",
    dp_public: Public = None,
    dp_clip: Clip = 1.0,
) -> None:
    """Train and calibrate a reward model; print its accuracy on held-out pairs.

    Rejected answers must include what the policy says, garbage and hedges too: see 'mor-reward negatives'."""
    with printed_errors():
        from mor_reward import given_paths
        from mor_reward.train_config import TrainConfig

        given_paths.check_data(data)
        given_paths.check_output(folder, overwrite=overwrite)
        for option, checkpoint in (("--model", model), ("--vision", vision), ("--text", text)):
            given_paths.check_checkpoint(option, checkpoint)
        if start is not None:
            given_paths.check_model(start)
        given = {"model": model, "vision": vision, "text": text, "lora_rank": lora_rank, "max_length": max_length}
        named = {key: value for key, value in given.items() if value is not None}
        train_config = TrainConfig(
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
            privacy=private_training(
                dp_epsilon, delta=dp_delta, unit=dp_unit, part=dp_part, clip=dp_clip, public=dp_public
            ),
        )
        settings = named_values("--set", setting or [])
        config = _start_backbone(start, backbone, {**named, **settings})
        configure_libraries(threads)
        from mor_reward import training_job
        from mor_reward.progress import shown_progress

        job = training_job.TrainingJob(
            data,
            folder,
            card_name(name, folder),
            domains,
            config,
            train_config,
            resume,
            overwrite,
            device,
            columns,
            most_invalid if skip_invalid else 0.0,
            start,
            dp_public,
        )
        left_out: list[str] = []
        with shown_progress(out) as reporter, stop_signals() as stopped:
            manifest = training_job.train(job, reporter, stopped, left_out)
        show_left_out(left_out)
        show_calibration(manifest.name, manifest.calibration, f"version {manifest.version} in {folder}")
        times = manifest.training
        out.print(f"encoding {times.feature_seconds:.1f} s, training {times.train_seconds:.1f} s, {times.steps} steps")


@app.command()
def evaluate(
    *,
    data: Data,
    model: Annotated[Path, typer.Option(help="Folder written by 'mor-reward train'.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.")] = "cpu",
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    most_invalid: MostInvalid = 0.1,
) -> None:
    """Print how a trained model, at its own temperature, agrees with the preferences of a file."""
    with printed_errors():
        from mor_reward import given_paths

        given_paths.check_data(data)
        given_paths.check_model(model)
        configure_libraries(threads)
        from mor_reward import model_store, training_job

        left_out: list[str] = []
        most = most_invalid if skip_invalid else 0.0
        manifest, report = training_job.evaluate(data, model, device, columns, most_invalid=most, left_out=left_out)
        show_left_out(left_out)
        figures = model_store.as_card_calibration(report, manifest.temperature)
        show_calibration(manifest.name, figures, f"version {manifest.version} on {data}")


@app.command()
def convert(
    *,
    source: Annotated[Path, typer.Argument(help="Data: a file, folder, pattern, archive or hub:OWNER/NAME.")],
    target: Annotated[Path, typer.Argument(help="New .jsonl file, with a folder of pictures, or .parquet file.")],
    columns: Columns = "",
    prompts: Annotated[bool, typer.Option("--prompts", help="Write prompts instead of preferences.")] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave invalid rows out, and name them.")
    ] = False,
) -> None:
    """Write preferences or prompts of any layout that is read as one plain file of mor.prefs/1 or mor.prompts/1."""
    with printed_errors():
        from mor_core import datafiles

        datafiles.check_target(target)
        writable.check_file(target, "TARGET")
        left_out: list[str] | None = [] if skip_invalid else None
        if prompts:
            rows = datafiles.read_prompts(source, columns, left_out)
            datafiles.write_prompts(rows, target)
            out.print(f"{len(rows)} prompts in {target}")
        else:
            pairs = datafiles.read_preferences(source, columns, left_out)
            datafiles.write_preferences(pairs, target)
            out.print(f"{len(pairs)} preferences in {target}")
        show_left_out(left_out or [], shown=None)


@app.command()
def conformance(
    *,
    url: Annotated[str, typer.Argument(help="Address of a running reward service.")],
    secret_file: Annotated[
        Path | None,
        typer.Option(help="File with the service's token.  [or the token: MOR_REWARD_TOKEN]"),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a response.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Check every clause of the reward contract on a running service; exit with status 1 if one is broken."""
    with printed_errors():
        import json
        from dataclasses import asdict

        from mor_reward.conformance import run_checks
        from mor_reward.conformance.endpoint import Endpoint

        secret = read_secret(secret_file, "MOR_REWARD_TOKEN", "create it with 'mor-reward token --secret-file'")
        endpoint = Endpoint(url, secret, timeout_s=timeout)
        try:
            results = list(run_checks(endpoint))
        finally:
            endpoint.close()
        broken = sum(result.outcome == "broken" for result in results)
        if as_json:
            checks = [asdict(result) for result in results]
            document = json.dumps({"url": url, "conforms": not broken, "checks": checks}, indent=2)
            sys.stdout.write(visible_json(document) + "\n")
        else:
            colours = {"kept": "green", "broken": "red", "skipped": "yellow"}
            rows = [
                (
                    one.check,
                    f"[{colours[one.outcome]}]{one.outcome}[/]",
                    escape(one.clause),
                    escape(visible(one.detail)),
                )
                for one in results
            ]
            print_table(out, ("check", "outcome", "clause", "detail"), rows, prose=("clause", "detail"))
            out.print(f"{broken} of {len(results)} clauses are broken" if broken else "all clauses are kept")
        if broken:
            raise typer.Exit(1)


app.command()(serve)
app.command()(adopt)
app.command()(audit)
app.command()(register)
app.command()(deregister)
app.command()(negatives)
app.command()(report)


@app.command()
def token(
    tokens_file: Annotated[Path, typer.Option(help="The service's file of token hashes; created if absent.")],
    name: Annotated[str, typer.Option(help="Name of the token's holder.")] = "router",
    scope: Annotated[
        str, typer.Option(help="service (for the router), metrics (for Prometheus), viewer or admin.")
    ] = "service",
    secret_file: Annotated[
        Path | None, typer.Option(help="Write the token to this file instead of the terminal.")
    ] = None,
) -> None:
    """Create a token for a caller of the reward service; only its hash is stored."""
    with printed_errors():
        from mor_core.auth import Scope
        from mor_core.issued_tokens import issue

        if scope not in list(Scope):
            raise Invalid(f"--scope {scope!r}: the scopes are {', '.join(Scope)}; choose one")
        if secret_file is not None:  # else the hash of a token that nobody has would stay in the file
            writable.check_file(secret_file, "--secret-file")
        issued = issue(tokens_file, name, Scope(scope))
        if secret_file is None:
            sys.stdout.write(issued + "\n")
        else:
            atomic.write(secret_file, issued.encode(), mode=0o600)


def _start_backbone(start: Path | None, kind: str | None, settings: dict[str, Any]) -> Any:
    """Return the backbone's configuration: that of the model to start from, or the one that the options give."""
    if start is None:
        if kind is None:
            raise Invalid("give --backbone vlm, dual-encoder or text, or --start with a reward model to train further")
        return _backbone({"kind": kind, **settings})
    if kind is not None or settings:
        raise Invalid("--start brings its backbone with its settings; leave --backbone, its checkpoints and --set out")
    from mor_reward import model_store

    return model_store.read_manifest(start).backbone


def _backbone(values: dict[str, Any]) -> Any:
    from mor_reward.backbones import AnyConfig

    try:
        return TypeAdapter(AnyConfig).validate_python(values)
    except ValidationError as error:
        raise Invalid(f"backbone: {describe(error)}") from error


if __name__ == "__main__":
    app()
