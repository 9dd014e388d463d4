"""Every process names a wrong setting in one line, reads no variable silently, and dumps no core."""

from __future__ import annotations

import importlib
import resource
import socket
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from mor_core import process
from mor_core.errors import Invalid
from mor_core.hidden_secrets import HIDDEN, hide_secrets, remember
from mor_core.process import load
from mor_core.settings import Settings
from mor_reward.config import RewardSettings
from mor_rollout.config import RolloutSettings
from mor_router.config import RouterSettings
from mor_trainer.config import ControlSettings, WorkerSettings
from structlog.testing import capture_logs
from typer.testing import CliRunner

COMMANDS = {
    "mor-reward": ["mor_reward.cli", "serve"],
    "mor-router": ["mor_router.cli", "serve"],
    "mor-rollout": ["mor_rollout.cli", "serve"],
    "mor-trainer": ["mor_trainer.cli", "serve"],
    "mor-trainer work": ["mor_trainer.cli", "work"],
}
MARK = "mark-3e1f9c77"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_setting_is_one_line_with_variable_value_and_wish(command: str) -> None:
    module, action = COMMANDS[command]
    environment = {
        **{"MOR_LOG_LEVEL": "loud", "MOR_SECRET_KEY": MARK, "MOR_SERVICE_TOKEN": MARK, "MOR_MODEL": "m"},
        **{"MOR_REDIS_URL": f"redis://mor:{MARK}@127.0.0.1:1/0", "MOR_FUNCTION": "f.py:f"},
    }
    done = CliRunner().invoke(importlib.import_module(module).app, [action], env=environment)
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(
        f"{command.split(maxsplit=1)[0]}: MOR_LOG_LEVEL: got 'loud'; wanted: Input should be 'debug', "
    )
    assert MARK not in done.output


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "mor-trainer work"])
def test_a_half_written_tokens_file_and_a_taken_port_are_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.logs, "configure", lambda *_, **__: None)  # the tests' own logs stay as they are
    (tmp_path / "function.py").write_text(
        "def score(messages, responses, images):\n    return [0.0 for _ in responses]\n"
    )
    tokens = tmp_path / "tokens.json"
    tokens.write_text('[{"name": "ops", "scope": "adm')
    module, action = COMMANDS[command]
    service = importlib.import_module(module).app
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {
            **{"MOR_SECRET_KEY": Fernet.generate_key().decode(), "MOR_MODEL": "m", "MOR_RUNS_DIR": str(tmp_path)},
            **{"MOR_FUNCTION": f"{tmp_path / 'function.py'}:score", "MOR_TOKENS_FILE": str(tokens)},
            **{"MOR_HOST": "127.0.0.1", "MOR_PORT": "0"},
        }
        broken = CliRunner().invoke(service, [action], env=environment)
        tokens.write_text("[]")
        tokens.chmod(0o600)
        environment |= {"MOR_PORT": str(taken.getsockname()[1]), "MOR_FUNCTION": "no-such-file.py:score"}
        occupied = CliRunner().invoke(service, [action], env=environment)
    assert (broken.exit_code, occupied.exit_code) == (2, 2)
    assert f"{command}: tokens file {tokens}: body: Invalid JSON" in broken.stderr
    assert f"{command}: MOR_HOST, MOR_PORT: cannot listen at 127.0.0.1:" in occupied.stderr


def test_a_wildcard_address_takes_calls_of_both_families() -> None:
    with process.listen("::", 0, "MOR_HOST, MOR_PORT") as listener:
        port = listener.getsockname()[1]
        assert process.url_of(listener, tls=False) == f"http://[::]:{port}"
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()
    with process.listen("::1", 0, "MOR_HOST, MOR_PORT") as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5)


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        (RouterSettings, "MOR_PORT", "high", "MOR_PORT: got 'high'; wanted: Input should be a valid integer"),
        (
            RouterSettings,
            "MOR_ALLOWED_NETWORKS",
            "10.0.0.0/8",
            r"got '10.0.0.0/8'; wanted: a JSON list, as \[\"10.0.0.0/8\"\]",
        ),
        (RouterSettings, "MOR_KUBERNETES_NAMESPACES", "one, two", r"wanted: a JSON list, as \[\"one\", \"two\"\]"),
        (
            WorkerSettings,
            "MOR_TRANSFER_ENGINES",
            "",
            r"MOR_TRANSFER_ENGINES: got ''; wanted: a JSON list, as \[\"one\"",
        ),
        (RolloutSettings, "MOR_MODLE", "m", "MOR_MODEL: got nothing; .*MOR_MODLE is set, .*did you mean MOR_MODEL"),
        (RouterSettings, "MOR_ALLOWED_NETWORKS", '["x"]', r"MOR_ALLOWED_NETWORKS \(0"),
        (RolloutSettings, None, None, "MOR_MODEL: got nothing; wanted: Base checkpoint"),
        (RewardSettings, None, None, "give exactly one of MOR_MODEL_DIR"),
        (ControlSettings, "MOR_ROUTER_URL", f"no://b:{MARK}@x", "MOR_ROUTER_URL: got"),
        (WorkerSettings, "MOR_CONTROL_URL", f"no://b:{MARK}@x", "MOR_CONTROL_URL: got .* wanted: http://host:port or"),
        (RolloutSettings, "MOR_REDIS_URL", "x", "wanted: redis://"),
        (WorkerSettings, "MOR_PRECISION", "\x1b[2J", r"MOR_PRECISION: got '\\\\x1b\[2J'"),
    ],
)
def test_each_kind_of_mistake(
    kind: type[Settings], name: str | None, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MOR_MODEL", "MOR_MODEL_DIR", "MOR_FUNCTION"):
        monkeypatch.delenv(variable, raising=False)
    if name is not None:
        monkeypatch.setenv(name, value)
    with pytest.raises(Invalid, match=message) as refused:
        load(kind)
    assert MARK not in str(refused.value)
    assert str(refused.value).isprintable()


def test_variables_of_other_services_are_known_and_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOR_QUORUM_ATTEMPTS", "3")
    monkeypatch.setenv("MOR_QUORUM_ATEMPTS", "3")
    monkeypatch.setenv("MOR_WEIGHTS_URL", "http://control:8300")
    with capture_logs() as logged, pytest.MonkeyPatch.context() as patch:
        patch.setattr(process.logs, "configure", lambda *_, **__: None)
        process.begin(WorkerSettings(), "trainer-worker")
    assert [(line["name"], line["cure"]) for line in logged] == [
        ("MOR_QUORUM_ATEMPTS", "did you mean MOR_QUORUM_ATTEMPTS?"),
        ("MOR_WEIGHTS_URL", "remove it; the rollout service pulls weights from its own MOR_CONTROL_URL"),
    ]
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0


def test_a_secret_is_hidden_in_each_form_and_ordinary_text_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOR_REDIS_URL", "redis://mor:p%40ss-5511/word@redis:6379/0")
    monkeypatch.setenv("MOR_SERVICE_TOKEN", "tok+en/5511=yz")
    load(WorkerSettings)
    remember("short")
    for text in (
        "tok+en/5511=yz",
        "tok%2Ben%2F5511%3Dyz",
        "dG9rK2VuLzU1MTE9eXo=",
        "GET http://user:word-of-pass@host/path",
        "Error 111 connecting to redis://:hunter2@redis:6379",
        "Authorization: Bearer abcdefghijk",
        "https://host/hook?token=abc&x=1",
        "https://host/#token=abc",
        "https://host/x?X-Amz-Signature=abc",
    ):
        assert HIDDEN in hide_secrets(text), text
        for part in ("5511", "abc", "hunter2", "word-of"):
            assert part not in hide_secrets(text)
    for text in ("short", "tokens=5 keys=3", "http://host:80/a@b", "mail me@example.org", "basic idea", "a?b=c&d=e"):
        assert hide_secrets(text) == text
