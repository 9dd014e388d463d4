"""``mor size`` prints what runs of a model need, from its folder or from the number of its parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from mor_client.cli import app
from typer.testing import CliRunner

GIB = 1 << 30


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["size", *arguments])
    return done.exit_code, done.output


def sizes(*arguments: str) -> dict[str, Any]:
    status, output = run(*arguments, "--json")
    assert status == 0, output
    return dict(json.loads(output))


def test_three_versions_of_the_model_that_filled_the_former_volume_fit() -> None:
    found = sizes("--parameters", "3.75e9", "--weights-kept", "3")
    assert found["version_bytes"] == 2 * 3.75e9
    assert found["checkpoint_bytes"] == 12 * 3.75e9
    assert found["rank_bytes"] == 20 * 3.75e9  # parameters, gradients, two moments and the reference in float32
    assert found["values"]["rollout"]["weightsSize"] == "28Gi"  # four in bfloat16: three and the next
    assert sizes("--parameters", "3.75e9", "--dtype", "float32")["version_bytes"] == 4 * 3.75e9


def test_ranks_divide_the_memory_and_more_runs_need_more_disk() -> None:
    one, eight = sizes("--parameters", "8e9"), sizes("--parameters", "8e9", "--pods", "2", "--gpus", "4")
    assert eight["rank_bytes"] == one["rank_bytes"] / 8
    assert eight["runs_bytes"] == one["runs_bytes"]
    two = sizes("--parameters", "8e9", "--runs-at-once", "2")
    version = 9 / 8 * one["version_bytes"]  # with its delta
    assert two["runs_bytes"] - one["runs_bytes"] == 3 * one["checkpoint_bytes"] + 5 * version + 4 * 8e9


def test_a_folder_is_counted_and_adapters_are_small(tiny_vlm: Path, tmp_path: Path) -> None:
    full = sizes(str(tiny_vlm))
    assert 0 < full["trained"] < full["parameters"], "the vision tower is frozen"
    spec = tmp_path / "run.toml"
    spec.write_text('name="x"\nmodel="m"\nprompts="p"\ntuning.kind="lora"\ntuning.rank=2\n')
    adapters = sizes(str(tiny_vlm), "--run", str(spec))
    assert 0 < adapters["trained"] < full["trained"] / 10
    spec.write_text('name="x"\nmodel="m"\nprompts="p"\nfreeze_vision=false\nkeep_weights=9\n')
    assert sizes(str(tiny_vlm), "--run", str(spec))["trained"] == full["parameters"]


def test_values_are_yaml_of_the_chart_and_errors_name_the_cure(tmp_path: Path) -> None:
    status, output = run("--parameters", "3.75e9")
    assert status == 0
    values = yaml.safe_load(output[output.index("# values") :])
    assert values["control"]["runs"]["size"].endswith("Gi")
    assert values == sizes("--parameters", "3.75e9")["values"]
    assert "volume of pulled weights" in output and "27.9 GiB" in output

    status, output = run()
    assert status == 2 and "or the number of its parameters" in output
    status, output = run(str(tmp_path))
    assert status == 2 and "safetensors" in output
    spec = tmp_path / "run.toml"
    spec.write_text('name="x"\nmodel="m"\nprompts="p"\ntuning.kind="lora"\n')
    status, output = run("--parameters", "1e9", "--run", str(spec))
    assert status == 2 and "give the folder of the checkpoint" in output
