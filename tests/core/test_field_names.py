"""An unknown field gets the field that may be meant, at any depth of what people write."""

from __future__ import annotations

from typing import Any

import pytest
from mor_client.config import read_settings
from mor_core.clients import Enrolment
from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.runs import RunSpec
from pydantic import TypeAdapter, ValidationError

NEEDED = {"name": "first", "model": "/m", "prompts": "/p"}


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"stesp": 1}, "steps"),
        ({"group-size": 8}, "group_size"),
        ({"optimiser": {"learning_rate": 1}}, None),
        ({"optimiser": {"lrr": 1}}, "lr"),
        ({"sampling": {"temprature": 1}}, "temperature"),
        ({"algorithm": {"loss": {"kind": "grpo", "clp": {}}}}, "clip"),
        ({"tuning": {"kind": "lora", "rnk": 3}}, "rank"),
        ({"prompts": None, "sources": [{"name": "a", "prompt": "/p"}]}, "prompts"),
    ],
    ids=str,
)
def test_a_misspelt_field_of_a_run(fields: dict[str, Any], meant: str | None) -> None:
    with pytest.raises(ValidationError) as refused:
        RunSpec.model_validate({**NEEDED, **fields})
    described = describe(refused.value)
    assert "unknown field; " in described
    assert meant is None or f"did you mean '{meant}'?" in described, described


def test_types_inside_of_others_are_found() -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(dict[str, list[Enrolment]]).validate_python({"x": [{"name": "n", "ulr": "http://x", "token": "t"}]})
    assert "x.0.ulr: unknown field; did you mean 'url'?" in describe(refused.value)


def test_the_names_of_fields_are_listed_where_none_is_similar() -> None:
    with pytest.raises(ValidationError) as refused:
        Enrolment.model_validate({"name": "n", "url": "http://x", "token": "t", "zzz": 1})
    assert "zzz: unknown field; the fields here are " in describe(refused.value)


def test_the_configuration_file_of_the_command(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.toml"
    file.write_text('contrl_url = "http://x"\n')
    monkeypatch.setenv("MOR_CONFIG", str(file))
    with pytest.raises(Invalid, match="contrl_url: unknown field; did you mean 'control_url'"):
        read_settings()
