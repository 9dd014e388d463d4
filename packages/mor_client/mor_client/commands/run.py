"""``mor run``: create, inspect, follow and control runs."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from mor_core.command_group import CommandGroup
from mor_core.errors import Invalid
from mor_core.failures import quote_failure
from mor_core.runs import RunSnapshot, RunSpec, RunState
from mor_core.step_metrics import StepMetrics
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mor_client.commands import stored_run
from mor_client.commands.common import Json, RunName, Watch, session, show
from mor_client.config import NOT_UTF_8
from mor_client.exit_codes import ExitCode
from mor_client.output import err, format_duration, format_time, out, print_fields, print_json, print_table

app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Create, inspect, follow, control, export and delete runs."
)

_SHOWN = ("reward_mean", "kl", "entropy", "response_length_mean", "truncation_ratio", "tokens_per_second")


@app.command()
def create(
    *,
    spec: Annotated[
        Path | None, typer.Argument(help="JSON or TOML file with the run's specification; '-' reads JSON from stdin.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field, as name=value; nested ones with dots: optimiser.lr=4e-5. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Queue a run and print its id at once; its prompts are all checked before the first step.

    The OpenAPI page at /docs of run control lists fields and defaults."""
    with session(as_json) as mor:
        values = read_spec_file(spec)
        for pair in setting or []:
            _assign(values, pair)
        snapshot = mor.runs.create(RunSpec.model_validate(values))
        if as_json:
            print_json(snapshot)
        else:
            out.print(snapshot.id, highlight=False)
            for warning in snapshot.warnings:
                err.print(f"warning: {warning}", highlight=False)
            err.print(
                f"queued; its prompts are checked before the first step; follow it with: mor run watch {snapshot.id}",
                highlight=False,
            )


def read_spec_file(spec: Path | None) -> dict[str, Any]:
    """Read the fields of a run from a file; there are none without one.

    Raises:
        Invalid: the file cannot be read, or is neither TOML nor JSON.
    """
    if spec is None:
        return {}
    if spec.suffix in (".yaml", ".yml"):
        raise Invalid(f"{spec}: got YAML, wanted TOML or JSON; write the fields of a run as one of these")
    try:
        text = sys.stdin.read() if str(spec) == "-" else spec.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text) if spec.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise Invalid(f"{spec}: {error.strerror}; name a readable file") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{spec}: {NOT_UTF_8}") from error
    except RecursionError as error:
        raise Invalid(f"{spec}: nested too deeply; write the fields of a run as a JSON object") from error
    except ValueError as error:
        cure = "correct it" if spec.suffix == ".toml" else "write it as JSON, or as TOML in a file that ends in .toml"
        raise Invalid(f"{spec}: {quote_failure(error)}; {cure}") from error
    if not isinstance(values, dict):
        raise Invalid(
            f"{spec}: got {type(values).__name__}, expected an object; write the fields of a run as a JSON object"
        )
    return values


def _assign(values: dict[str, Any], pair: str) -> None:
    """Set a field; a value that is not JSON is a string."""
    path, equals, text = pair.partition("=")
    if not equals or not path:
        raise Invalid(f"--set {pair!r}: write it as name=value")
    *outer, name = path.split(".")
    for key in outer:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise Invalid(f"--set {pair!r}: {key} has no fields; set {key} itself")
    try:
        values[name] = json.loads(text)
    except (ValueError, RecursionError):
        values[name] = text


@app.command("list")
def list_runs(
    *,
    tag: Annotated[list[str] | None, typer.Option(help="Only runs with this tag. Repeatable.")] = None,
    archived: Annotated[bool, typer.Option("--archived", help="The archived runs instead of the others.")] = False,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """List the runs, newest first."""
    empty = "no archived runs" if archived else "no runs; create one with 'mor run create'"
    wanted = set(tag or ())
    with session(as_json) as mor:
        show(
            lambda: [run for run in mor.runs.list(archived=archived) if wanted.issubset(run.tags or ())],
            lambda runs: _print_list(runs, "no run has all of these tags" if wanted else empty),
            as_json=as_json,
            watch=watch,
        )


def _print_list(runs: list[RunSnapshot], empty: str) -> None:
    tagged = any(run.tags for run in runs)
    print_table(
        ("run", "state", "step", "left", "reward", "gate", "KL", "updated", *(["tags"] if tagged else [])),
        [
            (run.id, run.state, _steps(run), format_duration(run.eta_s), _metrics(run).reward_mean,
             run.gate_version, _metrics(run).kl, format_time(run.updated_at),
             *([" ".join(run.tags or ())] if tagged else []))
            for run in runs
        ],
        empty=empty,
    )  # fmt: skip
    if len({run.gate_version for run in runs if run.gate_version is not None}) > 1:
        err.print("rewards of different gate versions are not comparable", highlight=False)


@app.command("show")
def show_run(run: RunName, *, watch: Watch = False, as_json: Json = False) -> None:
    """Show the current state of a run."""
    with session(as_json) as mor:
        show(lambda: mor.runs.get(run), _print_run, as_json=as_json, watch=watch)


def _print_run(snapshot: RunSnapshot) -> None:
    numbers = _metrics(snapshot).numbers()
    pending = "" if snapshot.desired == "run" else f" ({snapshot.desired} requested)"
    print_fields(
        [
            ("run", snapshot.id),
            ("state", snapshot.state),
            *([("tags", " ".join(snapshot.tags))] if snapshot.tags else []),
            *([("note", snapshot.note)] if snapshot.note else []),
            ("step", f"{_steps(snapshot)}{pending}"),
            ("prompts", _preflight(snapshot)),
            ("time left", format_duration(snapshot.eta_s)),
            ("model", snapshot.model),
            ("weights version", snapshot.weights_version),
            ("gate version", snapshot.gate_version),
            ("created", format_time(snapshot.created_at)),
            ("updated", format_time(snapshot.updated_at)),
            *((name, numbers[name]) for name in _SHOWN if name in numbers),
            ("evaluation", _evaluation(snapshot)),
            *(("warning", warning) for warning in snapshot.warnings),
            *([("aligned model", snapshot.final)] if snapshot.final else []),
            *([("error", snapshot.error)] if snapshot.error else []),
        ]
    )
    clients = _metrics(snapshot).clients
    if clients:
        out.print()
        print_table(
            ("client", "reward", "weight", "failures"),
            [(name, c.reward_mean, c.weight, sum(c.failures_total.values())) for name, c in clients.items()],
            empty="",
        )
    sources = _metrics(snapshot).sources
    if sources:
        out.print()
        print_table(
            ("source", "reward", "groups", "share", "by weights", "epochs"),
            [(name, s.reward_mean, s.drawn, s.drawn_ratio, s.expected_ratio, s.epochs) for name, s in sources.items()],
            empty="",
        )


@app.command("bad-prompts")
def bad_prompts(
    run: RunName,
    *,
    limit: Annotated[int, typer.Option(min=1, max=50_000, help="Most rows that are listed.")] = 1000,
    as_json: Json = False,
) -> None:
    """List the prompts that the check before the first step found bad: file, line, id and reason."""
    with session(as_json) as mor:
        found = mor.runs.bad_prompts(run, limit)
        if as_json:
            print_json(found)
            return
        print_table(
            ("place", "id", "reason"),
            [(f"{row.file}:{row.line}", row.id, row.problem) for row in found.listed],
            empty="no bad prompts, or they are not checked yet: 'mor run show' says which",
        )
        if found.bad > len(found.listed):
            err.print(f"{found.bad:,} in all, the first {len(found.listed):,} are listed", highlight=False)


@app.command("watch")
def watch_run(run: RunName, *, as_json: Json = False) -> None:
    """Follow a run until it ends. With --json, print one snapshot per line. The exit status is 7 unless it finished."""
    with session(as_json) as mor:
        follow = _follow_json if as_json else _follow
        last = follow(mor.runs.watch(run))
        if last.state is not RunState.finished:
            if not as_json:
                err.print(f"run {last.id} {last.state}: {last.error or 'on request'}", highlight=False)
            raise typer.Exit(ExitCode.run_failed)
        if not as_json:
            out.print(last.final, highlight=False, soft_wrap=True)


def _follow_json(snapshots: Any) -> RunSnapshot:
    for snapshot in snapshots:
        print_json(snapshot)
    last: RunSnapshot = snapshot
    return last


def _follow(snapshots: Any) -> RunSnapshot:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("")
        told: str | None = None
        for snapshot in snapshots:
            progress.update(task, total=snapshot.total, completed=snapshot.step or 0, description=_line(snapshot))
            if not err.is_terminal:
                err.print(f"{_steps(snapshot)}  {_line(snapshot)}", highlight=False)
            if snapshot.error not in (None, told) and not snapshot.state.over:
                err.print(f"{snapshot.state}: {snapshot.error}", highlight=False, soft_wrap=True)
            told = snapshot.error
    last: RunSnapshot = snapshot
    return last


def _line(run: RunSnapshot) -> str:
    figures = [f"reward {reward:.3f}" if (reward := _metrics(run).reward_mean) is not None else None,
               f"KL {kl:.4f}" if (kl := _metrics(run).kl) is not None else None,
               f"evaluation {reward:.3f}" if (reward := _evaluated(run)) is not None else None,
               f"{left} left" if (left := format_duration(run.eta_s)) else None]  # fmt: skip
    checked = _preflight(run) if run.preflight is not None and run.step is None and not run.state.over else None
    return ", ".join([str(run.state), *([checked] if checked else []), *(figure for figure in figures if figure)])


@app.command()
def pause(run: RunName, *, as_json: Json = False) -> None:
    """Pause a run at the end of its step."""
    with session(as_json) as mor:
        _print_control(mor.runs.pause(run), as_json)


@app.command()
def resume(run: RunName, *, as_json: Json = False) -> None:
    """Resume a run after a pause, a stop or a failure."""
    with session(as_json) as mor:
        _print_control(mor.runs.resume(run), as_json)


@app.command()
def stop(run: RunName, *, as_json: Json = False) -> None:
    """Stop a run at the end of its step, with a checkpoint from which 'resume' continues."""
    with session(as_json) as mor:
        _print_control(mor.runs.stop(run), as_json)


app.command()(stored_run.export)
app.command()(stored_run.push)
app.command()(stored_run.storage)
app.command()(stored_run.archive)
app.command()(stored_run.unarchive)
app.command()(stored_run.prune)
app.command()(stored_run.delete)


def _print_control(run: RunSnapshot, as_json: bool) -> None:
    if as_json:
        print_json(run)
    else:
        err.print(f"{run.id} is {run.state}, {run.desired} requested", highlight=False)


def _steps(run: RunSnapshot) -> str:
    return f"{'-' if run.step is None else run.step} of {run.total}"


def _evaluated(run: RunSnapshot) -> float | None:
    """Return the reward of the last evaluation."""
    reward = None if run.evaluation is None else run.evaluation.get("reward")
    return float(reward) if isinstance(reward, int | float) else None


def _evaluation(run: RunSnapshot) -> str | None:
    """Describe the last evaluation, with the gate version that scored it."""
    if run.evaluation is None or (reward := _evaluated(run)) is None:
        return None
    gate = run.evaluation.get("gate_version")
    other = ", not comparable with reward_mean" if gate is not None and gate != run.gate_version else ""
    return f"{reward:.4g} after step {run.evaluation.get('step')} (gate {'unknown' if gate is None else gate}{other})"


def _preflight(run: RunSnapshot) -> str | None:
    """Describe the check of the prompts."""
    if (check := run.preflight) is None:
        return None
    bad = f", {check.bad:,} bad" if check.bad else ""
    if check.state == "done":
        return f"{check.rows:,} checked{bad}"
    of = "" if check.total is None else f" of {check.total:,}"
    return f"{check.state} prompts, {check.rows:,}{of} done{bad}"


def _metrics(run: RunSnapshot) -> StepMetrics:
    return run.metrics or StepMetrics()
