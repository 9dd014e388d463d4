"""The volumes and the memory of each profile hold its model, by ``mor size``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mor_client.cli import app
from typer.testing import CliRunner

from tests.helm import charts
from tests.helm.scheduler import quantity

MOR = charts.CHARTS / "mor"
PROFILES = sorted(MOR.glob("ci/*-values.yaml"))
PARAMETERS = {"single-gpu": "3.75e9", "multi-gpu": "8.29e9", "tiny-cpu": "1e6"}
"""Parameters of the profiles' models; the others keep the default volumes."""
BY_DEFAULT = "4.5e8"


def merged(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    both = {name: merged(defaults[name], value) if isinstance(value, dict) and isinstance(defaults.get(name), dict)
            else value for name, value in own.items()}  # fmt: skip
    return defaults | both


@pytest.mark.parametrize("profile", PROFILES, ids=charts.named)
def test_a_profile_holds_its_own_model(profile: Path) -> None:
    values = merged(yaml.safe_load((MOR / "values.yaml").read_text()), yaml.safe_load(profile.read_text()))
    worker = values["worker"]
    dtype = values["rollout"]["settings"].get("dtype", "float32")
    parameters = PARAMETERS.get(profile.stem.removesuffix("-values"), BY_DEFAULT)
    arguments = ["--parameters", parameters, "--dtype", dtype, "--gpus", str(worker["gpus"])]
    if worker["together"]:
        arguments += ["--pods", str(worker["replicas"])]
    done = CliRunner().invoke(app, ["size", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    needed = json.loads(done.output)
    wanted = needed["values"]
    volume = quantity(values["control"]["runs"]["size"])
    assert volume >= quantity(wanted["control"]["runs"]["size"])
    assert quantity(values["rollout"]["weightsSize"]) >= quantity(wanted["rollout"]["weightsSize"])
    assert quantity(worker["resources"]["limits"]["memory"]) >= quantity(
        wanted["worker"]["resources"]["requests"]["memory"]
    )
    if "/models/" not in values["model"]["name"] and not values["model"]["cache"]["existingClaim"]:
        assert quantity(values["model"]["cache"]["size"]) >= quantity(wanted["model"]["cache"]["size"])

    pods = charts.pods(charts.render(MOR, f"--values={profile}"))
    assert charts.variables(pods["m-mor-worker"])["MOR_PUBLISHED_DTYPE"] == dtype
    rollout = pods["m-mor-rollout"]
    (weights,) = (each for each in rollout["volumes"] if each["name"] == "weights")
    limit = int(charts.variables(rollout)["MOR_WEIGHTS_BYTES"])
    assert limit == quantity(weights["emptyDir"]["sizeLimit"])
    ended = int(charts.variables(pods["m-mor-control"])["MOR_ENDED_RUNS_BYTES"])
    under_way = needed["runs_bytes"] - wanted["control"]["settings"]["ended_runs_bytes"]
    assert under_way + ended <= volume, "files of ended runs leave room for the run under way"


@pytest.mark.parametrize("parameters", ["1e6", "8.29e9", "70e9"])
@pytest.mark.parametrize("gpus", ["0", "8"])
def test_the_chart_takes_the_printed_values(parameters: str, gpus: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["size", "--parameters", parameters, "--gpus", gpus])
    assert done.exit_code == 0, done.output
    file = tmp_path / "values.yaml"
    file.write_text(done.output[done.output.index("# values") :])
    worker = charts.pods(charts.render(MOR, f"--values={file}", "--set=model.name=a/b"))["m-mor-worker"]
    resources = worker["containers"][0]["resources"]
    assert quantity(resources["limits"]["memory"]) - quantity(resources["requests"]["memory"]) == 10 << 30


@pytest.mark.parametrize("size", ["1.5Gi", "1500M", "2e9", "20GiB", "-1Gi"])
def test_sizes_are_read_or_refused(size: str) -> None:
    options = ("--set=model.name=a/b", f"--set-string=rollout.weightsSize={size}")
    if size[-1] in "iM" and size[-3:] != "GiB" and size[0] != "-":
        pods = charts.pods(charts.render(MOR, *options))
        assert float(charts.variables(pods["m-mor-rollout"])["MOR_WEIGHTS_BYTES"]) == quantity(size)
    else:
        with pytest.raises(RuntimeError, match=r"weightsSize is .* no quantity: write a number with a unit"):
            charts.render(MOR, *options)
