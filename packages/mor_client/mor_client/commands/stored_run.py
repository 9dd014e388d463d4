"""``mor run`` for what runs keep: storage, export, push, archive, prune, delete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from mor_core.run_storage import ExportRequest, Freed, PushRequest, RunStorage

from mor_client.commands.common import Json, RunName, RunNames, session
from mor_client.output import err, format_bytes, format_time, out, print_fields, print_json, print_table
from mor_client.sdk import Mor

DryRun = Annotated[bool, typer.Option("--dry-run", help="Delete nothing; print what would be freed.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


def storage(*, as_json: Json = False) -> None:
    """Show what the runs keep on the disk, largest first, and what bounds it."""
    with session(as_json) as mor:
        found = mor.runs.storage()
        if as_json:
            print_json(found)
            return
        limits = found.limits
        print_fields(
            [
                ("disk", f"{format_bytes(found.free_bytes)} of {format_bytes(found.disk_bytes)} are free"),
                ("history", format_bytes(found.history_bytes)),
                ("age of ended runs", f"{limits.ended_run_days:g} days (MOR_ENDED_RUN_DAYS)"),
                ("number of ended runs", f"{limits.ended_runs_kept} (MOR_ENDED_RUNS_KEPT)"),
                ("size of ended runs", f"{format_bytes(limits.ended_runs_bytes)} (MOR_ENDED_RUNS_BYTES)"),
                ("share of the disk", f"{limits.ended_runs_share:.0%} (MOR_ENDED_RUNS_SHARE)"),
                ("events and samples", f"{limits.history_days:g} days after the end (MOR_HISTORY_DAYS)"),
                *([("being deleted", ", ".join(found.deleting))] if found.deleting else []),
            ]
        )
        out.print()
        print_table(
            ("run", "state", "checkpoints", "weights", "replay log", "exports", "final", "all", "files go"),
            [_sizes(run) for run in found.runs],
            empty="no runs",
        )


def _sizes(run: RunStorage) -> tuple[object, ...]:
    sizes = (run.checkpoints, run.weights, run.replay_log, run.exports, run.final, run.bytes)
    return run.run, run.state, *map(format_bytes, sizes), format_time(run.expires_at)


def _checkpoint(given: str | None) -> str | None:
    if given not in (None, "final", "latest", "best") and not given.isdecimal():
        raise typer.BadParameter(f"{given!r} is no checkpoint; give final, latest, best or the number of a step")
    return given


Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="'final', 'latest', 'best' (highest evaluation reward) or a step. By default the final model, or the "
        "latest checkpoint of a run without one.",
        callback=_checkpoint,
    ),
]
Adapter = Annotated[
    bool, typer.Option("--adapter", help="The trained adapter alone, for PEFT; by default it is merged in.")
]


def export(
    run: RunName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder that receives the model.")],
    *,
    checkpoint: Checkpoint = None,
    adapter: Adapter = False,
    as_json: Json = False,
) -> None:
    """Fetch the model of a run that is over, as a folder that transformers loads.

    A download that was cut off continues at the next call."""
    with session(as_json) as mor:
        request = ExportRequest(checkpoint=checkpoint, adapter=adapter)
        made = mor.runs.export(run, folder, request, _ignore if as_json else _tell)
        if as_json:
            print_json(made)
        else:
            of = "final model" if made.step is None else f"step {made.step}"
            err.print(f"{of} of {run}, {format_bytes(sum(file.bytes for file in made.files))}", highlight=False)
            out.print(str(folder), highlight=False, soft_wrap=True)


def push(
    run: RunName,
    destination: Annotated[str, typer.Argument(metavar="DESTINATION", help="hf://OWNER/NAME, or oci://HOST/NAME:TAG.")],
    *,
    checkpoint: Checkpoint = None,
    adapter: Adapter = False,
    public: Annotated[
        bool,
        typer.Option("--public", help="A hub's repository may be public; by default it is created as private."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Push the model of a run that is over to a Hugging Face hub or an OCI registry; run control does it.

    A push that was cut off continues at the next call."""
    with session(as_json) as mor:
        request = ExportRequest(checkpoint=checkpoint, adapter=adapter)
        wanted = PushRequest(destination=destination, public=public)
        made = mor.runs.push(run, request, wanted, _ignore if as_json else _tell)
        if as_json:
            print_json(made)
        else:
            out.print(made.address or made.destination, highlight=False, soft_wrap=True)


def _tell(line: str) -> None:
    err.print(line, highlight=False, soft_wrap=True)


def _ignore(line: str) -> None:
    del line


def archive(runs: RunNames, *, as_json: Json = False) -> None:
    """Leave runs that are over out of the lists; 'unarchive' brings them back."""
    with session(as_json) as mor:
        found = [mor.runs.archive(run) for run in runs]
        if as_json:
            print_json(found)
        else:
            err.print(
                f"archived; 'mor run list --archived' lists {'it' if len(runs) == 1 else 'them'}", highlight=False
            )


def unarchive(runs: RunNames, *, as_json: Json = False) -> None:
    """Bring archived runs back into the lists."""
    with session(as_json) as mor:
        found = [mor.runs.unarchive(run) for run in runs]
        if as_json:
            print_json(found)
        else:
            err.print("back in the lists", highlight=False)


def prune(
    runs: RunNames,
    *,
    keep: Annotated[
        int, typer.Option("--keep", min=0, help="Newest checkpoints that stay, so that the run can be resumed.")
    ] = 0,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete checkpoints, weights versions, replay log and exports of runs that are over; the final model stays."""
    outcome = "" if keep else ", so that it can be neither resumed nor exported from them"
    _delete(
        runs,
        lambda mor, run, dry: mor.runs.prune(run, keep_checkpoints=keep, dry_run=dry),
        question=f"delete {'all but the newest ' + str(keep) if keep else 'all'} checkpoints{outcome}",
        dry_run=dry_run, yes=yes, as_json=as_json,
    )  # fmt: skip


def delete(runs: RunNames, *, dry_run: DryRun = False, yes: Yes = False, as_json: Json = False) -> None:
    """Delete runs that are over for good: files, final model, history and alerts."""
    _delete(
        runs,
        lambda mor, run, dry: mor.runs.delete(run, dry_run=dry),
        question="delete for good, with the final model and the history",
        dry_run=dry_run, yes=yes, as_json=as_json,
    )  # fmt: skip


def _delete(
    runs: list[str],
    act: Callable[[Mor, str, bool], Freed],
    *,
    question: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Print what a deletion frees, and do it after a confirmation."""
    with session(as_json) as mor:
        if not yes and not dry_run:
            for run in runs:
                _print_freed(act(mor, run, True))
            typer.confirm(f"{', '.join(runs)}: {question}?", abort=True, err=True)
        freed = [act(mor, run, dry_run) for run in runs]
        if as_json:
            print_json(freed)
            return
        for one in freed:
            _print_freed(one)


def _print_freed(freed: Freed) -> None:
    verb = "would free" if freed.dry_run else "frees"
    err.print(f"{freed.run}: {verb} {format_bytes(freed.bytes)} (files: {freed.files})", highlight=False)
