"""Processes of services, forked from a process that has loaded their libraries once.

A service loads libraries for seconds, which is most of a short test's time. A forked process is its program from
``main`` on, with its own environment, log and exit status. Tests of a program's start use ``subprocess`` instead.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_START_S = 120.0
"""Longest time in which the libraries are loaded, on a busy machine."""
_MOST_BYTES = 200_000
"""Longest request: a command and its environment."""
_ROOT = Path(__file__).parents[1]


class ForkedProcess(subprocess.Popen[bytes]):
    """Process that is a child of the fork server, which sends its exit status."""

    def __init__(self, command: list[str], server: socket.socket) -> None:
        self.args, self.returncode, self.stdin, self.stdout, self.stderr = command, None, None, None, None
        self._server = server
        server.settimeout(_START_S)
        self.pid = self._receive()

    def _receive(self) -> int:
        message = self._server.recv(32)
        assert message, f"the fork server ended: {self.args!r}"
        return int(message)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._server], [], [], timeout)[0]:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._receive()
            self._server.close()
        return self.returncode


class ForkServer:
    """Process that has loaded ``modules`` and forks on request. It ends with the process that started it."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.environment = _import_environment(os.environ)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(theirs.fileno()), *modules],
                env=self.environment,
                cwd=_ROOT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self.end)

    def end(self) -> None:
        """End the server; the processes that it started are ended by their tests."""
        self._control.close()
        self._process.wait(timeout=10)

    def start(
        self, command: Sequence[str], main: str, environment: Mapping[str, str], log: IO[bytes], cwd: Path, group: bool
    ) -> ForkedProcess:
        """Start ``command``, the function ``main`` of the module of that name, in a process group of its own if
        ``group``; its output goes to ``log``."""
        request = {"command": command, "main": main, "environment": {**environment}, "cwd": str(cwd), "group": group}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._control, [json.dumps(request).encode()], [log.fileno(), theirs.fileno()])
        return ForkedProcess([*command], ours)


def start(
    command: Sequence[str],
    modules: Sequence[str],
    environment: Mapping[str, str],
    log: IO[bytes],
    cwd: Path,
    *,
    group: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a command: forked where libraries read nothing else from its environment than from the server's.

    ``modules``: the package's ``__main__`` and what the command loads; without them the command is started as usual.
    """
    if modules and (server := _server(tuple(modules))).environment == _import_environment(environment):
        return server.start(command, modules[0], environment, log, cwd, group)
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=cwd, start_new_session=group)


@functools.cache
def _server(modules: tuple[str, ...]) -> ForkServer:
    return ForkServer(modules)


def _import_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what libraries may read as they are loaded: all but MoR's settings and what pytest sets."""
    theirs = {name: value for name, value in environment.items() if not name.startswith(("MOR_", "PYTEST_"))}
    return {**theirs, "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1")}


def _next_request(control: socket.socket) -> dict[str, Any]:
    """Fork at each request, and send the exit status of each process. Return in a forked process: its request."""
    children: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([control.fileno(), *children], [], [])[0]:
            if ready in children:
                pid, status = children.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with status, contextlib.suppress(BrokenPipeError):  # the test does not want to know
                    status.send(str(code).encode())
                continue
            message, descriptors, *_ = socket.recv_fds(control, _MOST_BYTES, 2)
            if not message:
                sys.exit()
            log, answers = descriptors
            pid = os.fork()
            if not pid:
                os.dup2(log, 1)
                os.dup2(log, 2)
                for descriptor in (log, answers, control.detach(), *children):
                    os.close(descriptor)
                for _, status in children.values():
                    status.close()
                return dict(json.loads(message))
            os.close(log)
            status = socket.socket(fileno=answers)
            status.send(str(pid).encode())
            children[os.pidfd_open(pid)] = pid, status


def _begin(request: dict[str, Any]) -> None:
    if request["group"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["command"]


if __name__ == "__main__":
    _control = socket.socket(fileno=int(sys.argv[1]))
    _modules = [importlib.import_module(module) for module in sys.argv[2:]]
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "a library started a thread: no forked process has it"
    gc.freeze()  # collections in forked processes need not copy its pages
    _begin(_next_request(_control))
    _modules[0].main()
