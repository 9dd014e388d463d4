"""An engine that does not start, or dies, names the root cause, which vLLM leaves in another process's log."""

from __future__ import annotations

import ctypes
import json
import logging
import logging.config
from pathlib import Path

import pytest
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import EngineError
from mor_rollout.engines.vllm import error_log
from mor_rollout.engines.vllm.error_log import ErrorLog, stated
from mor_rollout.engines.vllm.native_libraries import check_native_libraries, with_advice
from mor_rollout.engines.vllm.shared_memory import check_shared_memory

pytestmark = pytest.mark.vllm


def test_a_missing_libnuma_is_named_with_its_package_before_the_engine_starts(
    settings: RolloutSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ctypes.CDLL

    def without_libnuma(name: str) -> object:
        return load(name.replace("libnuma.so.1", "libnuma-that-is-not-there.so.1"))

    check_native_libraries(settings)
    monkeypatch.setattr(ctypes, "CDLL", without_libnuma)
    with pytest.raises(EngineError, match=r"cannot be loaded: libnuma-that-is-not-there\.so\.1: .*; install"):
        check_native_libraries(settings)
    check_native_libraries(settings.model_copy(update={"device": "cuda"}))


def test_too_little_shared_memory_is_named_with_its_cure_before_processes_start(
    settings: RolloutSettings, tmp_path: Path
) -> None:
    parallel = settings.model_copy(update={"tensor_parallel_size": 2})
    check_shared_memory(parallel, tmp_path)  # a disk with room
    with pytest.raises(EngineError, match=r"has 0 MiB free, and the 2 processes .* need 256 MiB .*--shm-size=1g"):
        check_shared_memory(parallel, tmp_path / "none")
    check_shared_memory(settings, tmp_path / "none")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("ImportError: libnuma.so.1: cannot open shared object file: No such file", "the Debian package libnuma1"),
        (
            "OSError: libcudart.so.13: cannot open shared object file",
            "the system package that contains libcudart.so.13",
        ),
    ],
)
def test_a_missing_library_is_named_with_its_cure(error: str, advice: str) -> None:
    assert with_advice(error) == f"{error}; install {advice}"
    assert with_advice("ValueError: no room") == "ValueError: no room"


def log_file() -> Path:
    """Return the file of the one handler that vLLM's log has for it."""
    handlers = logging.getLogger("vllm").handlers
    [file] = [handler.baseFilename for handler in handlers if isinstance(handler, logging.FileHandler)]
    return Path(file)


def test_the_exception_of_a_dead_engine_is_the_fatal_one() -> None:
    errors = ErrorLog("info", "json")
    config = json.loads(Path(errors.open().pylogging_config_file).read_text())
    logging.config.dictConfig(config)
    logger = logging.getLogger("vllm.v1.engine.core")
    try:
        logger.error("a line without an exception")
        assert errors.start_failure() is None
        for number, message in enumerate(("a request failed", "EngineCore encountered a fatal error.", "a late error")):
            try:
                raise ValueError(f"number {number}") from OSError("the disk")
            except ValueError:
                logger.exception(message)
        fatal = "ValueError in rollout/test_engine_errors.py:79; caused by OSError: the disk"  # it may quote a prompt
        assert errors.start_failure() == "ValueError: number 0; caused by OSError: the disk"
        assert errors.fatal_error() == fatal
        file = log_file()
        assert file.parent.stat().st_mode & 0o077 == 0  # only this user may read what an exception quotes
        with file.open("a") as stream:
            stream.write('{"message": "a process died while it wr')
        assert errors.fatal_error() == fatal
    finally:
        errors.close()
    logger.error("written to no removed file")
    assert not file.parent.exists()


def test_the_log_of_exceptions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_log, "_MOST_BYTES", 20_000)
    errors = ErrorLog("info", "json")
    logging.config.dictConfig(json.loads(Path(errors.open().pylogging_config_file).read_text()))
    logger = logging.getLogger("vllm.v1.engine.core")
    file = log_file()
    try:
        for message in [*["a request failed"] * 50, "EngineCore encountered a fatal error."]:
            try:
                raise ValueError("long " * 10_000 if "request" in message else "out of memory")
            except ValueError:
                logger.exception(message)
        assert file.stat().st_size < 30_000
        assert errors.fatal_error() == "ValueError in rollout/test_engine_errors.py:105"
    finally:
        errors.close()


def test_a_damaged_libnuma_is_named_with_its_package(
    settings: RolloutSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(name: str) -> None:
        raise OSError(f"/lib/{name}: file too short")

    monkeypatch.setattr(ctypes, "CDLL", damaged)
    with pytest.raises(EngineError, match=r"file too short; reinstall the Debian package libnuma1"):
        check_native_libraries(settings)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
         "{'EngineCore_DP0': -9}", "(EngineCore_DP0: killed by SIGKILL); memory ran out"),
        ("Failed core proc(s): {'EngineCore_DP0': -4}. See root cause above.", "set MOR_BACKEND=transformers"),
        ("See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}", "(EngineCore_DP0: status 1); what it"),
        ("EngineCore encountered an issue. See stack trace (above) for the root cause.", "no reason; what it printed"),
    ],
)  # fmt: skip
def test_a_cause_that_only_points_elsewhere_is_never_the_message(cause: str, words: str) -> None:
    assert words in stated(cause)
    assert "root cause" not in stated(cause)
    assert stated("ValueError: no room for the cache") == "ValueError: no room for the cache"


def test_the_reason_of_one_process_precedes_those_that_wait_for_it() -> None:
    errors = ErrorLog("info", "json")
    logging.config.dictConfig(json.loads(Path(errors.open().pylogging_config_file).read_text()))
    logger = logging.getLogger("vllm.v1.engine.core")
    try:
        for text in ("WorkerProc initialization failed. See stack trace for root cause.", "libnuma.so.1: it is absent"):
            try:
                raise RuntimeError(text)
            except RuntimeError:
                logger.exception("a process failed")
        assert errors.start_failure() == "RuntimeError: libnuma.so.1: it is absent"
    finally:
        errors.close()
