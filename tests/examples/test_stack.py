"""A stack of real processes: their settings, the errors when one ends, and the end of all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mor_client.config import read_settings
from three_domains.stack import CLIENTS, HTTP_SERVICES, Stack, StackError, prepare

# A stack may outlive the process that started it, so no process waits for its first one.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

QUIET = "exec sleep 600"
STUBBORN = "trap '' TERM; while :; do sleep 0.1; done"
WITH_A_CHILD = "sleep 600 & wait"


class Stacks:
    """Stacks of tiny processes below one folder, all ended after the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Stack] = []

    def start(self, name: str = "state", **processes: str) -> Stack:
        state = self._folder / name
        state.mkdir(exist_ok=True)
        procfile = state / "Procfile"
        procfile.write_text("".join(f"{name}: {command}\n" for name, command in processes.items()))
        stack = replace(prepare(state, Path("/models/base")), procfile=procfile)
        self._made.append(stack)
        stack.start()
        until(lambda: len(started(stack)) == len(processes))
        return stack

    def stop(self) -> None:
        for stack in self._made:
            stack.stop(patience_s=0)


@pytest.fixture
def stacks(tmp_path: Path) -> Iterator[Stacks]:
    made = Stacks(tmp_path)
    yield made
    made.stop()


def until(condition: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def started(stack: Stack) -> dict[str, int]:
    """Return process ids by name from honcho's output."""
    return {name: int(pid) for name, pid in re.findall(r"(\S+)\.1 started \(pid=(\d+)\)", stack.log.read_text())}


def session_of(leader: int) -> list[int]:
    """List the living processes of the session of ``leader``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(process.name))
    return found


def ended(stack: Stack) -> StackError:
    """Wait for the end of the stack and return the error of ``check``."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            stack.check()
        except StackError as error:
            return error
        time.sleep(0.05)
    raise AssertionError("the stack goes on")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_settings_are_private_and_replaced_whole(tmp_path: Path) -> None:
    tokens = ["tokens.json", *(f"clients/{client}/tokens.json" for client in CLIENTS)]
    secret = ["stack.env", "server.env", "operator.token", "metrics.token", "dashboard.html", "mor.toml", *tokens]
    (tmp_path / "stack.env").write_text("STATE=before\n")
    (tmp_path / "stack.env").chmod(0o644)
    with (tmp_path / "stack.env").open() as reader:
        stack = prepare(tmp_path, Path("/models/base"))
        assert reader.read() == "STATE=before\n", "a reader keeps the whole file that it opened"
    assert {name: mode(tmp_path / name) for name in secret} == dict.fromkeys(secret, 0o600)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == set(secret), "no half-written file is left"
    assert (tmp_path / "operator.token").read_text() == stack.admin_token
    assert stack.dashboard in (tmp_path / "dashboard.html").read_text()
    secrets = [stack.admin_token, stack.viewer_token, *stack.client_secrets.values()]
    assert not any(token in repr(stack) for token in secrets)


def test_each_stack_has_its_own_secrets_and_an_empty_redis(tmp_path: Path) -> None:
    first = prepare(tmp_path, Path("/models/base"))
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly.aof").touch()
    second = prepare(tmp_path, Path("/models/base"))
    assert not (tmp_path / "redis").exists()
    assert first.admin_token != second.admin_token
    tokens = [*first.client_secrets.values(), *second.client_secrets.values()]
    assert len(set(tokens)) == 2 * len(CLIENTS)
    readable = "".join(path.read_text() for path in tmp_path.rglob("*.json")) + (tmp_path / "stack.env").read_text()
    assert not any(token in readable for token in (*tokens, second.admin_token)), "only hashes are kept"


def test_the_command_finds_the_services_and_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = prepare(tmp_path, Path("/models/base"))
    monkeypatch.setenv("MOR_CONFIG", str(stack.command_settings))
    settings = read_settings()
    assert (settings.control_url, settings.router_url) == (stack.url("control"), stack.url("router"))
    assert (settings.bearer(), settings.exposed_token_file()) == (stack.admin_token, False)


def test_ports_are_free_and_differ(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", prepare(tmp_path, Path("/models/base")).ports["control"]))
        taken.listen()
        ports = prepare(tmp_path, Path("/models/base")).ports
        assert set(ports) == {"redis", *HTTP_SERVICES}
        assert len(set(ports.values())) == len(ports)
        assert taken.getsockname()[1] not in ports.values()
        for port in ports.values():
            with socket.create_server(("127.0.0.1", port)):
                pass


def test_processes_get_their_settings_for_any_folder_name(stacks: Stacks) -> None:
    show = 'echo "$STATE|$MOR_RUNS_DIR|$MOR_SERVICE_TOKEN"; exec sleep 600'
    stack = stacks.start("it's a #1 folder", client=show, server=f'set -a; . "$STATE/server.env"; {show}')
    lines: list[list[str]] = []

    def both_logged() -> bool:
        lines[:] = [line.split("|")[1:] for line in stack.log.read_text().splitlines() if line.count("|") == 3]
        return len(lines) == 2

    until(both_logged)
    client, server = sorted(lines, key=lambda values: len(values[1]))
    assert client == [f" {stack.state}", "", ""]
    assert server[:2] == [f" {stack.state}", f"{stack.state}/runs"]
    assert len(server[2]) > 30


def test_the_error_of_an_ended_process_has_its_last_output(stacks: Stacks) -> None:
    stack = stacks.start(router=QUIET, medical="echo this is the cause; sleep 0.5; exit 3", chart=QUIET)
    stack.check()
    message = str(ended(stack))
    assert message.startswith("medical ended with status 3, which ended all others\n")
    assert str(stack.log) in message
    assert "this is the cause" in message
    assert not any(session_of(pid) for pid in started(stack).values())


def test_a_process_that_is_killed_is_named(stacks: Stacks) -> None:
    stack = stacks.start(detail=QUIET, router=QUIET)
    os.kill(started(stack)["router"], signal.SIGKILL)
    assert str(ended(stack)).startswith("router ended with status -9, which ended all others\n")


def test_the_error_of_a_stack_ended_by_a_signal_names_no_process(stacks: Stacks) -> None:
    stack = stacks.start(detail=QUIET, router=QUIET)
    subprocess.run([sys.executable, "-m", "three_domains.stack", "down", "--state", str(stack.state)], check=True)
    assert str(ended(stack)) == f"the stack was ended by a signal; log: {stack.log}"


def test_waiting_for_a_process_that_ends_names_it(stacks: Stacks) -> None:
    stack = stacks.start(router="echo no secret key; exit 1")
    with pytest.raises(StackError, match=r"router ended with status 1(?s:.)*no secret key"):
        list(stack.wait_until_ready(["router"]))


@pytest.mark.parametrize("processes", [{"quiet": QUIET}, {"parent": WITH_A_CHILD, "quiet": QUIET}])
def test_stop_ends_every_process_and_may_be_repeated(stacks: Stacks, processes: dict[str, str]) -> None:
    stack = stacks.start(**processes)
    pids = started(stack).values()
    assert all(session_of(pid) for pid in pids)
    stack.stop()
    assert not any(session_of(pid) for pid in pids)
    stack.stop()
    assert not (stack.state / "stack.pid").exists()


def test_a_process_that_ignores_the_signal_is_killed(stacks: Stacks) -> None:
    stack = stacks.start(stubborn=STUBBORN)
    stack.stop(patience_s=1)
    assert not session_of(started(stack)["stubborn"])


def test_processes_whose_honcho_was_killed_are_ended_too(stacks: Stacks) -> None:
    stack, other = stacks.start("one", parent=WITH_A_CHILD, stubborn=STUBBORN), stacks.start("two", quiet=QUIET)
    os.killpg(int((stack.state / "stack.pid").read_text()), signal.SIGKILL)
    assert str(ended(stack)) == f"the stack was ended by a signal; log: {stack.log}"
    pids = started(stack).values()
    assert all(session_of(pid) for pid in pids)
    with pytest.raises(StackError, match=f"a stack is running on {stack.state}; end it with "):
        prepare(stack.state, Path("/models/base"))
    stack.stop()
    assert not any(session_of(pid) for pid in pids)
    other.check()


def test_a_running_stack_keeps_its_state(stacks: Stacks) -> None:
    stack = stacks.start(quiet=QUIET)
    settings = (stack.state / "stack.env").read_text()
    with pytest.raises(StackError, match=f"a stack is running on {stack.state}; end it with .* {stack.state}`"):
        prepare(stack.state, Path("/models/base"))
    assert (stack.state / "stack.env").read_text() == settings
    stack.stop()
    assert prepare(stack.state, Path("/models/base")).admin_token != stack.admin_token


def test_a_service_that_does_not_respond_is_named(stacks: Stacks) -> None:
    stack = stacks.start(router="echo listening nowhere; exec sleep 600")
    until(lambda: "listening nowhere" in stack.log.read_text())
    with (
        pytest.raises(StackError, match=r"router at http://127.0.0.1:\d+ gives no answer(?s:.)*listening nowhere"),
        stack.http("router") as router,
    ):
        router.get("/readyz")


def test_a_stack_whose_services_wait_for_their_models_keeps_its_ports(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    waiting = prepare(tmp_path / "first", Path("/models/base")).ports
    with socket.create_server(("127.0.0.1", waiting["redis"])):
        other = prepare(tmp_path / "second", Path("/models/base")).ports
    assert not set(waiting.values()) & set(other.values())
