"""``mor size``: the volumes and the memory that runs of a model need, and the chart's values for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from mor_core.errors import Invalid, MorError
from mor_core.failures import describe
from mor_core.model_parameters import ModelParameters
from mor_core.optimisation import LoraTuning
from mor_core.run_size import FORMAT_BYTES, RunSize, loading_memory, rank_memory
from mor_core.runs import RunSpec
from pydantic import ValidationError

from mor_client.commands.common import Json
from mor_client.commands.run import read_spec_file
from mor_client.exit_codes import exit_code_of
from mor_client.output import out, print_error, print_fields, print_json

_GIB = 1 << 30
_RESERVE = 1 << 30
"""Bytes of the runs' volume for the history, indexes of prompts, and what ``MOR_DISK_RESERVE_BYTES`` keeps free."""

_HEADROOM = 10 << 30
"""Bytes between request and limit of a worker's memory, for activations and libraries: as in the chart's defaults."""


def size(
    *,
    model: Annotated[Path | None, typer.Argument(help="Folder of the checkpoint.")] = None,
    parameters: Annotated[
        float | None, typer.Option(min=1, max=1e15, help="Number of parameters, instead of a folder, such as 3.75e9.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Specification of the run (.toml); by default its defaults.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="MOR_DTYPE of the rollout service.")
    ] = "bfloat16",
    weights_kept: Annotated[int, typer.Option(min=2, help="MOR_WEIGHTS_KEPT of the rollout service.")] = 3,
    pods: Annotated[int, typer.Option(min=1, help="Pods that train one run together.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each of these pods.")] = 1,
    runs_at_once: Annotated[int, typer.Option(min=1, help="Runs that are trained at the same time.")] = 1,
    ended_runs: Annotated[int, typer.Option(min=0, help="Ended runs whose checkpoints and weights are to stay.")] = 1,
    as_json: Json = False,
) -> None:
    """Print the volumes and the memory that runs of a model need, and the chart's values for them.

    They are upper bounds: a vision tower that is not recognised counts as trained. Activations and the engine's
    key-value cache come on top."""
    try:
        spec = _spec(run, model)
        counted = _parameters(model, parameters, spec)
    except MorError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(exit_code_of(error)) from error
    trained = counted.trained(spec)
    sizes = RunSize.of(counted.total, trained, dtype)
    ended_bytes = ended_runs * sizes.ended(spec)
    runs = runs_at_once * sizes.under_way(spec) + ended_bytes + ended_runs * sizes.final + _RESERVE
    ranks = max(1, gpus)
    memory = rank_memory(counted.total, trained, spec, pods * ranks)
    loading = loading_memory(counted.total, trained, spec)
    worker = ranks * loading if gpus else max(loading, memory)
    values = {
        "control": {"settings": {"ended_runs_bytes": ended_bytes}, "runs": {"size": _quantity(runs)}},
        "worker": {
            "resources": {
                "requests": {"memory": _quantity(worker)},
                "limits": {"memory": _quantity(worker + _HEADROOM)},
            }
        },
        "rollout": {"weightsSize": _quantity(sizes.pulled(weights_kept)), "settings": {"dtype": dtype}},
        "model": {"cache": {"size": _quantity(1.1 * (counted.stored_bytes or FORMAT_BYTES[dtype] * counted.total))}},
    }
    found: dict[str, Any] = {
        "parameters": counted.total,
        "trained": trained,
        "version_bytes": sizes.version,
        "checkpoint_bytes": sizes.checkpoint,
        "final_bytes": sizes.final,
        "runs_bytes": runs,
        "pulled_bytes": sizes.pulled(weights_kept),
        "rank_bytes": memory,
        "loading_bytes": loading,
        "engine_bytes": FORMAT_BYTES[dtype] * counted.total,
    }
    if as_json:
        print_json(found | {"values": values})
        return
    print_fields(
        [
            ("parameters, trained", f"{counted.total:,}, {trained:,}"),
            ("a version of the weights", _readable(sizes.version)),
            ("a checkpoint", _readable(sizes.checkpoint)),
            ("the final model", _readable(sizes.final)),
            ("volume of runs", _readable(runs)),
            ("volume of pulled weights", _readable(sizes.pulled(weights_kept))),
            (f"memory of each rank ({pods * ranks} in all), without activations", _readable(memory)),
            ("main memory of a rank while it loads", _readable(loading)),
            ("model in an engine, without its key-value cache", _readable(FORMAT_BYTES[dtype] * counted.total)),
        ]
    )
    out.print("\n# values of the chart mor", highlight=False)
    for line in _lines(values):
        out.print(line, highlight=False)


def _spec(run: Path | None, model: Path | None) -> RunSpec:
    """Return the specification of the run.

    Raises:
        Invalid: it cannot be read.
    """
    needed = {"name": "size", "model": str(model or "model"), "prompts": "prompts.jsonl"}
    values = read_spec_file(run)
    try:
        return RunSpec.model_validate((needed if run is None else {}) | values)
    except ValidationError as error:
        raise Invalid(f"{run}: {describe(error)}") from error


def _parameters(model: Path | None, number: float | None, spec: RunSpec) -> ModelParameters:
    """Return the parameters of the model.

    Raises:
        Invalid: neither a folder nor a number is given, both are, or a number where shapes are needed.
    """
    if (model is None) == (number is None):
        raise Invalid("give the folder of a checkpoint, or the number of its parameters as --parameters")
    if model is not None:
        return ModelParameters.of_folder(model)
    assert number is not None
    if isinstance(spec.tuning, LoraTuning):
        raise Invalid("the size of adapters depends on the shapes of the layers; give the folder of the checkpoint")
    return ModelParameters(total=int(number), language=int(number))


def _lines(values: dict[str, Any], depth: int = 0) -> Iterator[str]:
    """Yield nested values as YAML."""
    for name, value in values.items():
        yield f"{'  ' * depth}{name}:{'' if isinstance(value, dict) else f' {value}'}"
        if isinstance(value, dict):
            yield from _lines(value, depth + 1)


def _quantity(amount: float) -> str:
    """Return a quantity of Kubernetes that is not below ``amount`` bytes."""
    return f"{max(1, math.ceil(amount / _GIB))}Gi"


def _readable(amount: int) -> str:
    return f"{amount / _GIB:,.1f} GiB" if amount >= _GIB else f"{amount / (1 << 20):,.1f} MiB"
