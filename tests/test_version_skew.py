"""Releases beside each other: a reader ignores fields that a newer writer added, and a request with them is refused."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from mor_core.streams import RECORD_TYPES
from mor_core.visibility import models_in
from mor_core.wire import RolloutRecord, TokenBlock, WeightsManifest
from mor_reward.app import create_app as reward
from mor_reward.config import RewardSettings
from mor_rollout.app import create_app as rollout
from mor_rollout.config import RolloutSettings
from mor_router.app import create_app as router
from mor_router.config import RouterSettings
from mor_trainer.app import create_app as control
from mor_trainer.config import ControlSettings
from pydantic import BaseModel, TypeAdapter, ValidationError

from tests.core.records import prompt
from tests.core.records import rollout as sampled

ROOT = Path(__file__).parent.parent
PARSERS = {"model_validate", "model_validate_json", "validate_json", "validate_python"}
NEW = "field_of_a_newer_release"

STRICT = {
    "packages/mor_client/mor_client/commands/check.py:RunSpec": "a person's file",
    "packages/mor_client/mor_client/commands/objective.py:ObjectiveChange": "a person's options",
    "packages/mor_client/mor_client/commands/run.py:RunSpec": "a person's file and options",
    "packages/mor_client/mor_client/commands/size.py:RunSpec": "a person's file",
    "packages/mor_client/mor_client/given_arguments.py:kind": "a person's arguments",
    "packages/mor_client/mor_client/machine/machine_file.py:MachineFile": "a person's file",
    "packages/mor_core/mor_core/bounded_json.py:adapter": "requests",
    "packages/mor_core/mor_core/token_file.py:TypeAdapter(list[Token])": "a person's file",
    "services/reward/mor_reward/cli.py:TypeAdapter(AnyConfig)": "a person's options",
    "services/reward/mor_reward/command_values.py:TypeAdapter[str](ModelName)": "a person's options",
    "services/reward/mor_reward/privacy_options.py:PrivateTraining": "a person's options",
    "services/reward/mor_reward/model_store.py:RewardManifest": "a model may need what an older release lacks",
    "services/reward/mor_reward/upstream/upstream_settings.py:cls": "a person's options",
    "services/router/mor_router/cli.py:RouterSnapshot": "a person's file",
}
"""Parsers of what a person wrote, and of what an older release must not use: an unknown field is an error."""
PLAIN = {"_COUNT", "RUN_ID", "_NAME", "_DIGEST", "_GROUP", "_ATTEMPTS", "_OBJECT", "_FIELD", "_VALUE", "_PAIR"} | {
    "_RUN_ID", "_MISSING", "_TAGS", "parser", "TypeAdapter(ProxyAddress)"
}  # fmt: skip
"""Parsers of values without fields of their own: numbers, names, tuples, free-form objects."""

OWN = {
    "services/reward/mor_reward/conformance/checks.py:ScoreItem",
    "services/rollout/mor_rollout/app.py:ModelList",
    "services/trainer/mor_trainer/model/family_trial.py:RunSpec",
}
"""Values that the same function writes."""


def parsers(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield what each use of a parser parses, and whether it ignores unknown fields."""
    keywords = {id(call.func): call.keywords for call in ast.walk(tree) if isinstance(call, ast.Call)}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "partial" and call.args:
            keywords[id(call.args[0])] = call.keywords
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in PARSERS:
            extra = [word.value for word in keywords.get(id(node), []) if word.arg == "extra"]
            yield ast.unparse(node.value), bool(extra) and ast.unparse(extra[0]) == "'ignore'"


def test_whoever_reads_what_another_process_wrote_ignores_unknown_fields() -> None:
    seen, strict = set(), set()
    for path in [*ROOT.glob("packages/*/mor_*/**/*.py"), *ROOT.glob("services/*/mor_*/**/*.py")]:
        for parsed, ignores in parsers(ast.parse(path.read_text())):
            name = f"{path.relative_to(ROOT)}:{parsed}"
            seen.add(name)
            if not ignores and parsed not in PLAIN and name not in OWN:
                strict.add(name)
    assert strict == set(STRICT), 'parse with extra="ignore", or say here why an unknown field must be an error'
    assert seen >= OWN


FOREIGN = {"OpenRLHFRequest"} | {
    "VerifyRequest", "CreateParams", "InputTurn", "InputText", "InputImage", "PolicyOutput", "OutputItem", "OutputPart"
}  # fmt: skip
"""Requests in the shapes of OpenRLHF and NeMo Gym, which send and add fields that have no use here."""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> list[FastAPI]:
    folder = tmp_path_factory.mktemp("services")
    scorer = folder / "scorer.py"
    scorer.write_text("def score(messages, responses, images): return [0.0 for _ in responses]\n")
    return [
        control(ControlSettings(runs_dir=folder)),
        router(RouterSettings()),
        rollout(RolloutSettings(model="any/model", weight_transfer="nccl")),
        reward(RewardSettings(function=f"{scorer}:score")),
    ]


def routes(services: Iterable[FastAPI]) -> Iterator[APIRoute]:
    return (route for app in services for route in app.routes if isinstance(route, APIRoute))


def models_below(*annotations: Any) -> set[type[BaseModel]]:
    """Return the models in types, at any depth."""
    found: set[type[BaseModel]] = set()
    waiting = list(annotations)
    while waiting:
        new = set(models_in(waiting.pop())) - found
        found |= new
        waiting += [field.annotation for model in new for field in model.model_fields.values()]
    return found


def errors(model: type[BaseModel], **how: Any) -> set[str]:
    """Return the kinds of errors of an object with one unknown field."""
    try:
        TypeAdapter(model).validate_python({NEW: 1}, **how)
    except ValidationError as error:
        return {each["type"] for each in error.errors()}
    return set()


def test_no_request_has_an_unknown_field(services: list[FastAPI]) -> None:
    bodies = [route.body_field for route in routes(services) if route.body_field is not None]
    requests = models_below(*(body.field_info.annotation for body in bodies))
    assert len(requests) > 30
    assert {model.__name__ for model in requests if "extra_forbidden" not in errors(model)} == FOREIGN


def test_every_answer_and_record_may_have_an_unknown_field(services: list[FastAPI]) -> None:
    answers = [route.response_model for route in routes(services)]
    written = models_below(*answers, *RECORD_TYPES.values(), TokenBlock, WeightsManifest)
    assert len(written) > 60
    assert {model.__name__ for model in written if "extra_forbidden" in errors(model, extra="ignore")} == set()


def newer(value: Any) -> Any:
    """Return ``value`` as a newer release might write it: with another field in each object."""
    if isinstance(value, dict):
        return {**{name: newer(inner) for name, inner in value.items()}, NEW: 1}
    return [newer(inner) for inner in value] if isinstance(value, list) else value


def test_fields_are_ignored_at_any_depth() -> None:
    record = sampled(prompt("r"))
    given = newer(record.model_dump(mode="json"))
    assert NEW in given["prompt"]["messages"][0]["content"][0]["image_url"]
    for holder in (given, given["prompt"]):
        del holder["stamps"][NEW]  # a free-form object
    assert RolloutRecord.model_validate(given, extra="ignore") == record
    with pytest.raises(ValidationError, match="Extra inputs"):
        RolloutRecord.model_validate(given)
