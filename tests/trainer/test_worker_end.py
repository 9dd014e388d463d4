"""A worker ends with status 0 on SIGTERM in every phase, in time, and a standby worker takes its run over."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.trainer.kit import Processes
from tests.trainer.stages import Stages, until
from tests.trainer.watching import create, snapshot

LEASE_S = 3
"""Lease of a run in ``Processes``."""


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        held: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    held.append(listener.accept()[0])
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Send SIGTERM and return the exit status, and the seconds to the end."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60), time.monotonic() - began


def test_a_worker_that_waits_for_an_answer_to_its_claim_ends(processes: Processes) -> None:
    processes.forked = False
    with silent_server() as address:
        processes.environment["MOR_CONTROL_URL"] = f"http://{address}"
        process = processes.work()
        until(lambda: _catches_sigterm(process.pid), 120, "the command has begun")
        assert ended(process)[0] == 0, "while it loads its libraries"
        process = processes.work()
        until(lambda: _connections(process.pid) > 0, 120, "a claim was sent")
        status, seconds = ended(process)
    assert status == 0
    assert seconds < 30


def _catches_sigterm(pid: int) -> bool:
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))


def _connections(pid: int) -> int:
    """Count the sockets of a process."""
    found = -2  # the event loop's own pair
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it closes files meanwhile
            found += str(link.readlink()).startswith("socket:")
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_worker_ends_while_run_control_and_queue_server_hang(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    control = processes.serve()
    with proxy(processes.environment["MOR_REDIS_URL"].partition("//")[2].partition("/")[0]) as (address, hang):
        processes.environment["MOR_REDIS_URL"] = f"redis://{address}"
        run = create(processes, model=tiny, prompts=prompts, steps=10_000, checkpoint_every=10_000)
        process = processes.work()
        until(lambda: (snapshot(processes, run)["step"] or 0) >= 1, 240, "step 1")
        hang()
        control.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        checkpoints = processes.runs_dir / run / "checkpoints"
        until(lambda: any(checkpoints.glob("step-*")), 120, "the checkpoint is written")
        written = time.monotonic()
        status = process.wait(timeout=60)
        control.send_signal(signal.SIGCONT)
    assert status == 0
    assert time.monotonic() - written < 25


@contextmanager
def proxy(target: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Forward connections to ``target``; after ``hang()`` nothing passes any more."""
    hung = threading.Event()
    host, _, port = target.partition(":")

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while content := source.recv(65536):
                if hung.is_set():
                    hung.wait()
                    continue
                sink.sendall(content)
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener, ExitStack() as opened:

        def accept() -> None:
            try:
                while True:
                    inside = opened.enter_context(listener.accept()[0])
                    outside = opened.enter_context(socket.create_connection((host, int(port))))
                    for pair in ((inside, outside), (outside, inside)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", hung.set
        finally:
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_standby_worker_continues_the_run_of_a_dead_one(
    processes: Processes, stages: Stages, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=40, checkpoint_every=1)
    holder = processes.work()
    until(lambda: (snapshot(processes, run)["step"] or 0) >= 2, 240, "step 2")
    processes.environment["MOR_STANDBY"] = "true"
    waiting = processes.work()
    until(lambda: "is held ready" in processes.log("work"), 90, "the model is held ready")
    holder.kill()
    holder.wait()
    killed = time.monotonic()
    before = snapshot(processes, run)["step"]
    until(lambda: (snapshot(processes, run)["step"] or 0) > before, 200, "the run continues")
    assert time.monotonic() - killed < LEASE_S + 5
    with processes.client("viewer") as http:
        states = [worker["state"] for worker in http.get("/v1/workers").json()]
    assert sorted(states) == ["gone", "training"]
    assert ended(waiting)[0] == 0
    assert snapshot(processes, run)["state"] == "queued"
