"""``mor up``: its file, its secrets, and the supervision of real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from mor_client.machine.machine_file import LogFiles, read_machine_file
from mor_client.machine.machine_folder import MachineFolder
from mor_client.machine.programs import environment, programs
from mor_core.auth import Scope, TokenFile, hash_token
from mor_core.errors import Conflict, Invalid
from redis import Redis
from redis.exceptions import AuthenticationError

from tests.ports import free_port

URLS = {"control": "http://127.0.0.1:8300", "router": "http://127.0.0.1:8100", "rollout": "http://127.0.0.1:8200"}
SUPERVISED = """
import sys
from pathlib import Path
from mor_client.machine.machine_file import LogFiles
from mor_client.machine.machine_folder import MachineFolder
from mor_client.machine.programs import Program
from mor_client.machine.supervisor import ProgramFailed, Supervisor
folder = MachineFolder(Path(sys.argv[1]))
folder.logs.mkdir(exist_ok=True)
made = [Program(name, ["/bin/sh", "-c", command], {"PATH": "/usr/bin:/bin"}, folder.path, stop_s=20)
        for name, command in zip(sys.argv[2::2], sys.argv[3::2])]
try:
    supervisor = Supervisor(made, folder, LogFiles(), lambda line: print(line, flush=True))
    received = supervisor.run(lambda: print("READY", flush=True))
except ProgramFailed as error:
    sys.exit(str(error))
print("ENDED", received.name)
"""


def until(condition: Callable[[], bool], within_s: float = 240) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read(tmp_path: Path, text: str) -> object:
    file = tmp_path / "machine.toml"
    file.write_text(text)
    return read_machine_file(file)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('folder = "state"', "model: Field required"),
        ('model = "m"\nmodle = "m"', "modle: "),
        ('model = "m"\n[router]\nport = 8200', "router and rollout have the port 8200; give each its own"),
        (
            'model = "m"\n[router.settings]\ndeadlines = 3',
            "no process reads the setting 'deadlines'; did you mean 'deadline_s'?",
        ),
        (
            'model = "m"\n[settings]\nMOR_LOG_LEVEL = "info"',
            "setting 'MOR_LOG_LEVEL': write it in lower case and without MOR_",
        ),
        ('model = "m"\n[settings]\nservice_token = "x"', "'service_token' does not belong here: mor up keeps it"),
        ('model = "m"\n[settings]\nhost = "0.0.0.0"', "put a reverse proxy in front"),
        ('model = "m"\n[clients.a]\nport = 1', "give exactly one of model and function"),
        ('model = "m"\n[clients.router]\nport = 1\nmodel = "a"', "a client cannot be named 'router'"),
        ('model = "m"\n[clients."A b"]\nport = 1\nmodel = "a"', "should be 1 to 40 lower-case letters"),
        ("model = ", "write it as TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_cure(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(Invalid, match=r"machine\.toml") as refused:
        read(tmp_path, text)
    assert problem in str(refused.value)


def test_settings_reach_the_process_that_they_are_for_and_secrets_no_other(tmp_path: Path) -> None:
    (tmp_path / "machine.toml").write_text(
        'model = "owner/name"\n[settings]\nlog_level = "debug"\n[router.settings]\ndeadline_s = 90\n'
        'allowed_networks = ["10.0.0.0/8"]\n[clients.north]\nport = 8401\nfunction = "score.py:score"\n'
    )
    machine = read_machine_file(tmp_path / "machine.toml")
    folder = MachineFolder(machine.folder)
    router = environment(machine, folder, "router")
    assert (router["MOR_DEADLINE_S"], router["MOR_ALLOWED_NETWORKS"]) == ("90", '["10.0.0.0/8"]')
    assert router["MOR_SECRETS_DIR"] == str(tmp_path / "state" / "secrets")
    north = environment(machine, folder, "north")
    assert not {"MOR_SECRETS_DIR", "MOR_DEADLINE_S", "MOR_REDIS_URL"} & set(north)
    assert north["MOR_LOG_LEVEL"] == "debug"
    [client] = [program for program in programs(machine, folder, tmp_path) if program.name == "north"]
    assert client.command[-2:] == ["--function", f"{tmp_path}/score.py:score"]
    assert environment(machine, folder, "rollout")["MOR_MODEL"] == "owner/name"


def test_secrets_are_private_and_outlive_a_restart(tmp_path: Path) -> None:
    folder = MachineFolder(tmp_path / "state")
    with folder.held():
        folder.fill(URLS, None, 8379, ["north"])
        first = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        for path in first:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        folder.fill(URLS, None, 8379, ["north", "south"])
        assert all(path.read_bytes() == content for path, content in first.items())
        with pytest.raises(Conflict, match="another mor up runs"), MachineFolder(folder.path).held():
            pass
    known = TokenFile(folder.tokens)
    scopes = {"operator.token": Scope.admin, "viewer.token": Scope.viewer, "secrets/mor_service_token": Scope.service}
    for name, scope in scopes.items():
        holder = known.holder(hash_token((folder.path / name).read_text()))
        assert holder is not None and holder.scope is scope
    sent = TokenFile(folder.client("north") / "tokens.json").holder(
        hash_token(folder.router_secret("north").read_text())
    )
    assert sent is not None and sent.scope is Scope.service


def test_a_revoked_token_is_not_made_again_unasked(tmp_path: Path) -> None:
    folder = MachineFolder(tmp_path)
    folder.fill(URLS, None, 8379, [])
    folder.tokens.write_text("[]")
    with pytest.raises(Invalid, match=r"so it was revoked; delete .*operator\.token"):
        folder.fill(URLS, None, 8379, [])


def test_the_queue_server_needs_the_password_which_no_command_line_shows(tmp_path: Path) -> None:
    port, password = free_port(), tmp_path / "password"
    password.write_text("secret-of-the-queue")
    command = [sys.executable, "-m", "mor_core.bundled_valkey", "--port", str(port), "--dir", str(tmp_path / "data")]
    with subprocess.Popen([*command, "--password-file", str(password)], stdout=subprocess.DEVNULL) as server:
        try:

            def listens() -> bool:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                    return True
                return False

            until(listens)
            assert b"secret-of-the-queue" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
            with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
                stranger.set("key", 1)
            with Redis(port=port, password="secret-of-the-queue") as known:
                assert known.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        finally:
            server.terminate()


def supervise(folder: Path, *named: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(folder), *named],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_until(process: subprocess.Popen[str], end: str) -> Sequence[str]:
    """Read the output up to a line that begins with ``end``."""
    found: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        found.append(line.strip())
        if line.startswith(end):
            return found
    raise AssertionError(f"no line {end!r} in {found}; {process.stderr.read() if process.stderr else ''}")


def test_a_process_that_ends_starts_again_and_all_end_in_order(tmp_path: Path) -> None:
    once = f"[ -e {tmp_path}/died ] || {{ touch {tmp_path}/died; echo the reason; exit 7; }}; exec sleep 600"
    words = "trap 'echo {name} >> {folder}/order; exit 0' TERM; touch {folder}/{name}; while :; do sleep 0.1; done"
    commands = [part for name in ("first", "second") for part in (name, words.format(name=name, folder=tmp_path))]
    with supervise(tmp_path, *commands, "fails", once) as running:
        try:
            again = [
                line for line in lines_until(running, "fails ended with status 7") if line.startswith("fails ended")
            ]
            assert again == ["fails ended with status 7 (the reason); it starts again in 1 s"]
            lines_until(running, "fails has started")
            until(lambda: (tmp_path / "first").exists() and (tmp_path / "second").exists())
            running.send_signal(signal.SIGTERM)
            assert lines_until(running, "ENDED")[-1] == "ENDED SIGTERM"
            assert running.wait(timeout=240) == 0
        finally:
            running.kill()
    assert (tmp_path / "order").read_text().split() == ["second", "first"]


def test_a_process_that_cannot_start_ends_all_with_its_last_lines(tmp_path: Path) -> None:
    commands = ("steady", "exec sleep 600", "wrong", "echo MOR_PORT: got 'x', wanted a number >&2; exit 2")
    with supervise(tmp_path, *commands) as running:
        _, said = running.communicate(timeout=240)
    assert running.returncode == 1
    assert "wrong ended with status 2" in said and "MOR_PORT: got x, wanted a number" in said


def test_no_process_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with supervise(tmp_path, "one", f"echo $$ > {tmp_path}/pid; exec sleep 600") as running:
        try:
            lines_until(running, "READY")
            until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text().strip()))
        finally:
            running.kill()
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists() or "sleep" not in Path(f"/proc/{pid}/cmdline").read_text())


def test_a_second_signal_ends_a_stubborn_process_at_once(tmp_path: Path) -> None:
    stubborn = f"trap '' TERM; touch {tmp_path}/ready; while :; do sleep 0.1; done"
    with supervise(tmp_path, "stubborn", stubborn) as running:
        try:
            until((tmp_path / "ready").exists)
            running.send_signal(signal.SIGINT)
            lines_until(running, "ending all services")
            running.send_signal(signal.SIGINT)
            lines = lines_until(running, "ENDED")
            assert "stubborn is killed" in lines and lines[-1] == "ENDED SIGINT"
        finally:
            running.kill()


@pytest.mark.usefixtures("hangups")
def test_a_closed_terminal_ends_all_in_order(tmp_path: Path) -> None:
    """Text that can no longer be printed keeps no process alive."""
    polite = f"trap 'touch {tmp_path}/handed-back; exit 0' TERM; touch {tmp_path}/polite; while :; do sleep 0.1; done"
    stubborn = f"trap '' TERM; echo $$ > {tmp_path}/pid; touch {tmp_path}/stubborn; while :; do sleep 0.1; done"
    terminal, end = os.openpty()
    script = SUPERVISED.replace("stop_s=20", "stop_s=1")
    command = [sys.executable, "-c", script, str(tmp_path), "polite", polite, "stubborn", stubborn]
    with subprocess.Popen(command, stdout=end, stderr=end, start_new_session=True) as running:
        try:
            os.close(end)
            until(lambda: (tmp_path / "polite").exists() and (tmp_path / "stubborn").exists())
            os.close(terminal)
            running.send_signal(signal.SIGHUP)
            running.wait(timeout=240)
        finally:
            running.kill()
    assert (tmp_path / "handed-back").exists()
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()


def test_logs_are_renamed_at_their_size(tmp_path: Path) -> None:
    from mor_client.machine.rotated_log import RotatedLog

    log = RotatedLog(tmp_path / "one.log", LogFiles(bytes=1 << 16).bytes, 2)
    read_end, write_end = os.pipe()
    log.follow(os.fdopen(read_end, "rb"))
    with os.fdopen(write_end, "wb") as output:
        for number in range(4000):
            output.write(f"line {number} 100 % of it {'x' * 50}\n".encode())
    assert log.last_lines()[-1].startswith("line 3999 100 % of it")
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["one.log", "one.log.1", "one.log.2"]
    assert all(path.stat().st_size <= 1 << 16 for path in tmp_path.iterdir())
