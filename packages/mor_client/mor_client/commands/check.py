"""``mor check``: find the rows of a data set that no run can use, without a cluster."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from mor_core.errors import Invalid, MorError
from mor_core.prompt_check import PromptCheck, RowProblem
from mor_core.prompt_limits import PromptLimits
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mor_client.commands.common import Json
from mor_client.exit_codes import ExitCode, exit_code_of
from mor_client.output import cell, err, out, print_error, print_json

_SHOWN = 1000
"""Bad rows that are listed in full; further ones are counted."""


def check(
    *,
    data: Annotated[Path, typer.Argument(help="Prompts: a file, folder, pattern or hub:OWNER/NAME.")],
    model: Annotated[
        str | None, typer.Option(help="Checkpoint that the run will train: its processor encodes each prompt.")
    ] = None,
    columns: Annotated[str, typer.Option("--map", help="Other column names, as prompt=question,images=image.")] = "",
    preferences: Annotated[bool, typer.Option("--preferences", help="The rows are pairs, such as anchors.")] = False,
    response_tokens: Annotated[int, typer.Option(min=1, help="sampling.max_tokens of the run.")] = 1,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="MOR_MAX_MODEL_LEN of the rollout service.")] = None,
    max_images: Annotated[int | None, typer.Option(min=0, help="MOR_MAX_IMAGES of the rollout service.")] = None,
    family: Annotated[
        bool, typer.Option(help="Also try whether the trainer can train the model's family; needs mor-trainer here.")
    ] = True,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes that encode; by default one a core.")] = None,
    as_json: Json = False,
) -> None:
    """Read every row, encode every prompt as the run will, and name each bad row with the reason.

    The exit status is 1 if a row is bad, or if the model's family cannot be trained."""
    found: list[RowProblem] = []
    rows = bad = 0
    trial = _FamilyTrial.begin(model) if model is not None and family else None
    try:
        if model is not None and importlib.util.find_spec("transformers") is None:
            raise Invalid("--model needs transformers and torch; install 'mor-client[check]', or leave --model out")
        limits = PromptLimits(max_model_len, max_images, response_tokens)
        cores = len(os.sched_getaffinity(0))
        checking = PromptCheck(data, columns, preferences, model, limits, processes or cores)
        with Progress(
            SpinnerColumn(), TextColumn("{task.completed:,} rows"), TimeElapsedColumn(), console=err, transient=True
        ) as progress:
            task = progress.add_task("rows", total=None)
            for part in checking.run():
                rows, bad = rows + part.rows, bad + len(part.bad)
                progress.update(task, completed=rows)
                for one in part.bad[: max(0, _SHOWN - len(found))]:
                    found.append(one)
                    if not as_json:
                        _print(one)
        refused = trial.problem() if trial is not None else None
    except MorError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(exit_code_of(error)) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.interrupted) from error
    finally:
        if trial is not None:
            trial.end()
    if as_json:
        print_json({"rows": rows, "bad": bad, "found": [asdict(one) for one in found], "family": refused})
    else:
        more = f"; the first {len(found):,} are listed" if bad > len(found) else ""
        out.print(f"{bad:,} of {rows:,} rows are bad{more}" if bad else f"all {rows:,} rows are good", highlight=False)
        if refused is not None:
            out.print(refused, highlight=False, soft_wrap=True)
    if bad or refused is not None:
        raise typer.Exit(ExitCode.refused)


class _FamilyTrial:
    """Trial of a model's family by the trainer's own code, in a process beside the check of the rows."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    def begin(cls, model: str) -> _FamilyTrial | None:
        """Start the trial; where the trainer is not installed, say so and return ``None``."""
        places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        command = shutil.which("mor-trainer", path=places)
        if command is None:
            err.print("the model's family is not tried: mor-trainer is not installed here", highlight=False)
            return None
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started: subprocess.Popen[str] = subprocess.Popen([command, "try-model", model], text=True, **pipes)  # noqa: S603
        return cls(started)

    def problem(self) -> str | None:
        """Wait for the end of the trial, and return why the family cannot be trained, if it cannot."""
        told, _ = self._process.communicate()
        if self._process.returncode == 0:
            return None
        lines = [line for line in told.splitlines() if line.startswith(("training with", "mor-trainer:"))]
        return "\n".join(lines) or f"the trial of the model's family ended with status {self._process.returncode}"

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def _print(row: RowProblem) -> None:
    name = f" {cell(row.id)}" if row.id else ""
    out.print(f"[bold]{cell(f'{row.file}:{row.line}')}[/]{name}: {cell(row.problem)}", highlight=False, soft_wrap=True)
