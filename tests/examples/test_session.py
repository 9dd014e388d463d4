"""The demonstration's Procfile with tiny models: every service is a real process, called as operators do."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mor_reward.backbones import DualEncoderConfig
from mor_reward.progress import NoProgress
from mor_reward.train_config import TrainConfig
from mor_reward.training_job import TrainingJob, train
from three_domains import session
from three_domains.stack import CLIENTS, HTTP_SERVICES, Stack, StackError, prepare

from tests.examples.test_stack import ended, session_of, started
from tests.reward import reward_kit as kit
from tests.tiny_models import build_tiny_vlm

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


def make_models(state: Path) -> None:
    """Create a reward model, which every client serves, the router's text encoder and a base VLM, each at once."""
    made = state / "made"
    text, vision = kit.build_text_encoder(made / "parts/minilm"), kit.build_vision_encoder(made / "vision")
    config = DualEncoderConfig(vision=str(vision), text=str(text), image_size=64, width=32, max_length=32, max_images=2)
    anchors = kit.write_colour_preferences(state / "data/server", 20)
    anchors.rename(anchors.with_name("anchors.jsonl"))
    prefs = kit.write_colour_preferences(state / "data/clients", 20, seed=1)
    train(TrainingJob(prefs, made / "model", "m", "shapes", config, TrainConfig(epochs=1)), NoProgress())
    for client in CLIENTS:
        shutil.copytree(made / "model", made / client)
        (made / client).rename(state / "clients" / client / "model")
    build_tiny_vlm(made / "base")
    for name in ("parts", "base"):
        (made / name).rename(state / name)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start a stack before its models exist, as the demonstration does."""
    state = tmp_path_factory.mktemp("stack")
    stack = prepare(state, state / "base")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MOR_BACKEND", "transformers")
        stack.start("redis", *HTTP_SERVICES)
    try:
        assert list(stack.wait_until_ready(["control"])) == ["control"]
        make_models(state)
        assert set(stack.wait_until_ready()) == set(HTTP_SERVICES)
        yield stack
    finally:
        stack.stop()


def opened(pid: int) -> set[str]:
    """List the files that a process and its children have open or mapped."""
    found = set()
    for member in session_of(pid):
        process = Path(f"/proc/{member}")
        found |= {str(file.readlink()) for file in (process / "fd").iterdir() if file.is_symlink()}
        found |= {line.split(maxsplit=5)[-1] for line in (process / "maps").read_text().splitlines()}
    return found


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_its_own_folder_and_nobodys_secret(stack: Stack, client: str) -> None:
    pid = started(stack)[client]
    given = dict(entry.partition("=")[::2] for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    own = f"{stack.state}/clients/{client}/"
    named = [value for value in [*given.values(), *command] if f"{stack.state}/" in value]
    assert named
    assert all(value.startswith(own) for value in named), named
    assert all(file.startswith(own) for file in opened(pid) if file.startswith(f"{stack.state}/"))
    server = dict(line.split("=", 1) for line in (stack.state / "server.env").read_text().splitlines())
    assert given.keys() & server.keys() == {"MOR_TOKENS_FILE"}
    secrets = [*shlex.split(f"{server['MOR_SECRET_KEY']} {server['MOR_SERVICE_TOKEN']}"), stack.admin_token]
    assert not any(secret in str(given) for secret in (*secrets, *stack.client_secrets.values()))


def test_clients_are_enrolled_and_a_gate_is_fitted_on_the_anchors(stack: Stack) -> None:
    session.enrol(stack)
    with stack.http("router") as router:
        assert {client["name"] for client in router.get("/v1/clients").json()} == set(CLIENTS)
    fitted = session.fit_gate(stack, stack.state / "data/server/anchors.jsonl")
    assert fitted["report"]["pairs"] == 40
    assert {line["client"] for line in fitted["report"]["clients"]} == set(CLIENTS)
    with stack.http("router") as router:
        assert [audits["share"] for audits in router.get("/v1/audits").json()] == [0.0]
    with pytest.raises(StackError, match=r"POST http://127.0.0.1:\d+/v1/clients -> 409: .*is enrolled already"):
        session.enrol(stack)


def test_a_run_is_queued_and_can_be_read(stack: Stack) -> None:
    prompts = write_questions(stack.state / "data/server", 4)
    spec = {"name": "tiny", "model": str(stack.state / "base"), "prompts": str(prompts), "steps": 1}
    run = session.create_run(stack, spec)
    with stack.http("control") as control:
        found = session.snapshot(control, run)
    assert (found["state"], found["step"], found["total"]) == ("queued", None, 1)
    assert session.metrics(stack, run) == []
    with pytest.raises(StackError, match=r"/v1/runs -> 422: .*steps"):
        session.create_run(stack, spec | {"steps": 0})


def test_runs_of_an_earlier_demonstration_are_stopped(stack: Stack) -> None:
    session.expect_base(stack)
    prompts = write_questions(stack.state / "data/server", 4)
    spec = {"name": "left", "model": str(stack.state / "base"), "prompts": str(prompts), "steps": 1}
    runs = [session.create_run(stack, spec) for _ in range(2)]
    session.stop_earlier_runs(stack)
    with stack.http("control") as control:
        assert [session.snapshot(control, run)["state"] for run in runs] == ["stopped", "stopped"]


def write_questions(folder: Path, count: int, pictures: int = 20) -> Path:
    rows: list[dict[str, Any]] = []
    for index in range(count):
        content = [{"type": "image"}, {"type": "text", "text": f"What is in picture {index}?"}]
        rows.append(
            {"id": f"q{index}", "prompt": [{"role": "user", "content": content}], "images": [f"{index % pictures}.png"]}
        )
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_policy_answers_the_questions_picture_by_picture(stack: Stack) -> None:
    questions = write_questions(stack.state / "data/server", 12, pictures=5)
    first, again = ([*session.answer(stack, questions, 6)] for _ in range(2))
    order = [0, 5, 10, 1, 6, 11, 2, 7, 3, 8, 4, 9]
    assert [name for name, _ in first] == [f"q{index}" for index in order]
    assert first == again, "greedy"
    assert session.weight_swaps(stack)["count"] == 0


def test_a_service_that_died_is_named(stack: Stack) -> None:
    """Kill a service; the last test of this stack."""
    os.kill(started(stack)["medical"], signal.SIGKILL)
    assert str(ended(stack)).startswith("medical ended with status -9, which ended all others\n")
    assert not any(session_of(pid) for pid in started(stack).values())
