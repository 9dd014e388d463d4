from __future__ import annotations

import json
import subprocess
import sys

import pytest

SECRET = "key-5e0f17"
# The secret comes in by an argument, so that no line of source that a traceback quotes contains it.
SCRIPT = """
import asyncio
import gc
import logging
import sys
import threading
import warnings

import structlog
from mor_core import logs


def fail(token, kind):
    prompt = {"private": [token]}
    if kind == "cause":
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("last") from error
    if kind == "context":
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("last")
    if kind == "group":
        try:
            fail(token, "context")
        except ValueError as error:
            raise ExceptionGroup("last", [error, KeyError("first")])
    raise ValueError(f"last, first: {len(prompt)}")


own = logging.getLogger("with.its.own.handler")
own.propagate = False
own.addHandler(logging.StreamHandler())
logs.configure("info", sys.argv[1], service="test")
for kind in ("plain", "cause", "context", "group"):
    for logger in (structlog.get_logger("mor"), logging.getLogger("library")):
        try:
            fail(sys.argv[2], kind)
        except Exception:
            logger.exception("request failed")
"""
# Log lines that are not ours: asyncio's, a thread's, a warning's, and the one of an exception that ends the process.
UNHANDLED = (
    SCRIPT
    + """

def callback(token, result):
    fail(token, "plain")


async def main(token):
    async def lost(token):
        fail(token, "cause")

    loop = asyncio.get_running_loop()
    loop.call_soon(callback, token, {"prompt": [token, "(a) b)"]})
    done = loop.create_future()
    done.add_done_callback(lambda future: fail(token, "plain"))
    done.set_result(token)
    task = asyncio.create_task(lost(token))
    await asyncio.sleep(0.01)
    del task
    gc.collect()
    loop.set_debug(True)
    loop.slow_callback_duration = 0
    loop.call_soon(len, token)
    await asyncio.sleep(0.01)
    loop.call_later(0, callback, token, {"prompt": token})
    await asyncio.sleep(0.01)
    warnings.warn("careful", RuntimeWarning)
    warnings.warn(f"odd value {token}")
    logging.getLogger("library").warning("%d items", token)
    structlog.get_logger("mor").warning("no repr", value=Finalised(token), note=token)
    own.warning("own handler: Bearer %s-and-more", "a-token-of-a-library")


class Finalised:
    def __init__(self, token):
        self.token = token

    def __del__(self):
        fail(self.token, "plain")

    def __repr__(self):
        raise ValueError(self.token)


unraisable = Finalised(sys.argv[2])
del unraisable
thread = threading.Thread(target=fail, args=(sys.argv[2], "context"))
thread.start()
thread.join()
asyncio.run(main(sys.argv[2]))
fail(sys.argv[2], "group")
"""
)


@pytest.fixture(params=["json", "console"])
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def logged(style: str) -> str:
    """Standard error of a process that logs failures whose frames hold a secret in local variables."""
    command = [sys.executable, "-c", SCRIPT, style, SECRET]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr


def test_a_logged_exception_carries_no_local_variables(logged: str, style: str) -> None:
    assert logged.count("request failed") == 8
    assert logged.count("ValueError") >= 8
    assert logged.count("KeyError") >= 8
    assert "last, first" not in logged, "the message of a library's exception may quote data"
    assert "in fail" in logged if style == "console" else '"name": "fail"' in logged
    assert SECRET not in logged


def test_an_unhandled_exception_carries_no_local_variables_and_no_arguments(style: str) -> None:
    command = [sys.executable, "-c", UNHANDLED, style, SECRET]
    logged = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stderr
    for message in (
        "Exception in callback",
        "was never retrieved",
        "Executing <Handle",
        "careful",
        "ExceptionGroup",
        "was ignored",
        "UserWarning",
        "cannot be shown: TypeError",
        "cannot be shown: ValueError",
        "own handler: Bearer [hidden]",
    ):
        assert message in logged
    assert "callback(...)" in logged
    assert SECRET not in logged


def test_an_interruption_quotes_no_exception_that_was_handled(style: str) -> None:
    script = (
        SCRIPT
        + "\ntry:\n    fail(sys.argv[2], 'plain')\nexcept ValueError:\n    raise KeyboardInterrupt(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", script, style, SECRET]
    logged = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stderr
    assert "interrupted" in logged
    assert "last, first" not in logged
    assert SECRET not in logged


@pytest.mark.parametrize("style", ["json"])
def test_a_logged_exception_is_one_json_line(logged: str) -> None:
    for line in logged.splitlines():
        exception = json.loads(line)["exception"]
        assert exception[0]["exc_type"] in ("ValueError", "ExceptionGroup")
        assert not any(frame.get("locals") for failure in exception for frame in failure["frames"])


LEVEL_OF_ITS_OWN = """
import logging
from mor_core import logs
logs.configure(style="json")
library = logging.getLogger("c10d-NullHandler-library")
library.setLevel(logging.DEBUG)  # at its import, after configure, as torch does
library.propagate = False
library.debug("every part of a checkpoint")
library.info("started")
library.warning("a warning")
logging.getLogger("mor_core.x").info("a line of our own")
"""


def test_a_library_that_chooses_its_level_logs_warnings_only() -> None:
    command = [sys.executable, "-c", LEVEL_OF_ITS_OWN]
    logged = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr
    assert [json.loads(line)["event"] for line in logged.splitlines()] == ["a warning", "a line of our own"]


def test_libraries_colour_no_line_and_a_retry_is_told_in_words(style: str) -> None:
    script = (
        "import logging, sys\nimport httpx, stamina\nfrom mor_core import logs\n"
        "logs.configure('info', sys.argv[1], service='test')\n"
        "logging.getLogger('uvicorn.error').info('Started %d', 7, extra={'color_message': 'Started \\x1b[36m%d'})\n"
        "logging.getLogger('vllm').warning('\\x1b[0;36m(EngineCore)\\x1b[0;0m no room')\n"
        "@stamina.retry(on=httpx.ConnectError, attempts=2, wait_initial=0.01, wait_max=0.01)\n"
        "def call(secret):\n    raise httpx.ConnectError('Connection refused')\n"
        "try:\n    call(sys.argv[2])\nexcept httpx.ConnectError:\n    pass\n"
    )
    command = [sys.executable, "-c", script, style, SECRET]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr.splitlines()
    assert len(lines) == 3
    assert not any("\x1b" in line or "\\u001b" in line or "\\x1b" in line or SECRET in line for line in lines)
    assert "(EngineCore) no room" in lines[1]
    if style == "json":
        retry = json.loads(lines[2])
        assert (retry["event"], retry["attempt"]) == ("trying again", 2)
        assert retry["cause"] == "ConnectError: Connection refused"
        assert "args" not in retry and "callable" not in retry
