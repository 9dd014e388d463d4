"""``mor check``: find the rows of a data set that no run can use, without a cluster."""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer
from mor_core.errors import Invalid, MorError
from mor_core.failures import describe
from mor_core.model_family import model_class
from mor_core.optimisation import LoraTuning
from mor_core.prompt_check import CheckProgress, PromptCheck, RowProblem
from mor_core.prompt_limits import PromptLimits
from mor_core.prompt_sources import PromptFile
from mor_core.runs import RunSpec
from mor_core.vllm_families import check_vllm_family
from pydantic import ValidationError
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mor_client.commands.common import Json
from mor_client.commands.run import read_spec_file
from mor_client.exit_codes import ExitCode, exit_code_of
from mor_client.model_trial import ModelTrial
from mor_client.output import cell, err, out, print_error, print_json

_SHOWN = 1000
"""Bad rows that are listed in full; further ones are counted."""
_LINE_S = 30.0
"""Seconds between lines about the progress where no terminal shows it."""


def check(
    *,
    data: Annotated[
        Path,
        typer.Argument(help="Prompts: a file, folder, pattern or hub:OWNER/NAME; or a run's specification (.toml)."),
    ],
    model: Annotated[
        str | None, typer.Option(help="Checkpoint that the run will train: its processor encodes each prompt.")
    ] = None,
    columns: Annotated[str, typer.Option("--map", help="Other column names, as prompt=question,images=image.")] = "",
    preferences: Annotated[bool, typer.Option("--preferences", help="The rows are pairs, such as anchors.")] = False,
    response_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="sampling.max_tokens of the run; by default that of a specification, or 1."),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="MOR_MAX_MODEL_LEN of the rollout service; by default the model's length.")
    ] = None,
    max_images: Annotated[int | None, typer.Option(min=0, help="MOR_MAX_IMAGES of the rollout service.")] = None,
    family: Annotated[
        bool, typer.Option(help="Also try whether the trainer can train the model's family; needs mor-trainer here.")
    ] = True,
    engine: Annotated[
        Literal["vllm", "transformers"] | None,
        typer.Option(help="MOR_BACKEND of the rollout service: refuse a model that this engine does not serve."),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="MOR_DEVICE of the rollout service.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="MOR_DTYPE of the rollout service.")] = "float32",
    processes: Annotated[int | None, typer.Option(min=1, help="Processes that encode; by default one a core.")] = None,
    as_json: Json = False,
) -> None:
    """Read every row, encode every prompt as the run will, and name each bad row with the reason.

    The exit status is 1 if a row is bad, or if the model's family cannot be trained."""
    _silence_libraries()
    found: list[RowProblem] = []
    rows = bad = 0
    trial = ModelTrial.begin(model) if model is not None and family else None
    try:
        if model is not None and importlib.util.find_spec("transformers") is None:
            raise Invalid("--model needs transformers and torch; install 'mor-client[check]', or leave --model out")
        spec = _read_spec(data, for_rows=bool(columns or preferences)) if data.suffix == ".toml" else None
        _check_engine(engine, model, device=device, dtype=dtype, spec=spec, images=max_images)
        files = (PromptFile(str(data), columns),) if spec is None else spec.prompt_files()
        response = response_tokens or (1 if spec is None else spec.sampling.max_tokens)
        update = None if spec is None else spec.micro_batch_tokens
        limits = PromptLimits(max_model_len, max_images, response, micro_batch_tokens=update)
        workers = processes or len(os.sched_getaffinity(0))
        checks = [
            PromptCheck(
                Path(file.path), file.columns, preferences, model, limits, workers, domains=_domains(spec, file)
            )
            for file in files
        ]
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.completed:,} rows checked"),
            TimeElapsedColumn(),
            console=err,
            transient=True,
        ) as progress:
            task = progress.add_task("rows", total=None)
            parts = chain.from_iterable(check.run() for check in checks)
            for part in parts if as_json or err.is_terminal else _told(parts):
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


def _told(parts: Iterable[CheckProgress]) -> Iterator[CheckProgress]:
    """Yield the parts of a check, and write now and then how many rows they have."""
    rows, told = 0, time.monotonic()
    for part in parts:
        rows += part.rows
        if time.monotonic() - told >= _LINE_S:
            told = time.monotonic()
            err.print(f"{rows:,} rows", highlight=False)
        yield part


def _silence_libraries() -> None:
    """Keep warnings of libraries off the terminal: they are about tokens and classes, and the reader's rows are not."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")


def _check_engine(
    engine: str | None,
    model: str | None,
    *,
    device: Literal["cpu", "cuda"],
    dtype: str,
    spec: RunSpec | None,
    images: int | None,
) -> None:
    """Check that the engine serves the model; whatever the trainer loads, ``transformers`` serves.

    Raises:
        Invalid: it does not, or there is no model.
    """
    if engine != "vllm":
        return
    if model is None:
        raise Invalid("--engine needs --model, the checkpoint that the rollout service will serve")
    model_class(model)
    from transformers import AutoConfig

    adapters = spec is not None and isinstance(spec.tuning, LoraTuning)
    config = AutoConfig.from_pretrained(model)
    check_vllm_family(model, config, device=device, dtype=dtype, adapters=adapters, images=images)


def _read_spec(path: Path, *, for_rows: bool) -> RunSpec:
    """Read the specification of a run. ``for_rows``: whether there are options that describe a file of rows."""
    if for_rows:
        raise Invalid("--map and --preferences are for files of rows; write prompt_columns in the specification")
    try:
        return RunSpec.model_validate(read_spec_file(path))
    except ValidationError as error:
        raise Invalid(f"{path}: {describe(error)}") from error


def _domains(spec: RunSpec | None, file: PromptFile) -> tuple[str, ...]:
    """Return the domains that the sources of a run take from a file."""
    if spec is None:
        return ()
    return tuple(source.domain for source in spec.sources if source.domain and source.file(spec.prompt_columns) == file)


def _print(row: RowProblem) -> None:
    name = f" {cell(row.id)}" if row.id else ""
    out.print(
        f"[bold]{cell(f'{row.file}:{row.line}')}[/]{name}: {cell(row.problem)}",
        markup=True,
        highlight=False,
        soft_wrap=True,
    )
