"""A family that the trainer computes otherwise than its own code is refused before any run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mor_client.cli import app
from mor_core.errors import Invalid
from mor_trainer.model import family_trial
from mor_trainer.model.policy import Policy
from typer.testing import CliRunner

from tests.tiny_models import build_tiny_vlm

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_vlm(tmp_path_factory.mktemp("tried")))


def test_a_family_that_works_has_no_problem(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_trial, "_TUNINGS", {"frozen vision": {}})
    assert family_trial.try_model(checkpoint) == {}


def test_a_trainer_that_computes_something_else_is_named(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without the last word of the prompt, as a wrong mask would have it."""
    logprobs = Policy.logprobs

    def wrong(policy: Policy, sequences: Any) -> Any:
        values, entropies = logprobs(policy, sequences)
        return values.flip(0), entropies

    monkeypatch.setattr(Policy, "logprobs", wrong)
    monkeypatch.setattr(family_trial, "_TUNINGS", {"frozen vision": {}})
    problems = family_trial.try_model(checkpoint)
    assert "the trainer's log-probabilities differ from the model's own" in problems["frozen vision"]


def test_a_model_that_fails_is_named_with_its_reason(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise AttributeError("no such part")

    monkeypatch.setattr(Policy, "_hidden", failing)
    problems = family_trial.try_model(checkpoint)
    assert set(problems) == {"frozen vision", "trained vision", "adapters"}
    assert all("cannot be trained" in problem for problem in problems.values())


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="processor"):
        family_trial.try_model(str(tmp_path))


@pytest.mark.slow
def test_the_check_of_a_data_set_tries_the_family(checkpoint: str, tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text(json.dumps({"prompt": "What is it?"}) + "\n")
    good = CliRunner().invoke(app, ["check", str(data), "--model", checkpoint, "--json"])
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["family"] is None
