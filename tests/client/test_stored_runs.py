"""``mor run`` for what runs keep: storage, export, push, archive, prune, delete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mor_client.exit_codes import ExitCode

from tests.client.installation import REGISTRY_PORT, Installation
from tests.client.test_commands import create, step, work
from tests.trainer.oci_registry import oci_registry

_MODEL = {"model.safetensors": os.urandom(3 << 20), "config.json": b"{}", "templates/one.jinja": b"{{ messages }}"}


def finished(mor: Installation, spec_file: Path) -> str:
    """Make a finished run with a final model, a checkpoint and a weights version."""
    run = create(mor, spec_file)
    work(mor, run, step(1, 0.25), end="finished")
    folder = mor.folder / "runs" / run
    for name, content in _MODEL.items():
        (folder / "final" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "final" / name).write_bytes(content)
    for part in ("checkpoints/step-00000001", "weights/1"):
        (folder / part).mkdir(parents=True)
        (folder / part / "shard").write_bytes(bytes(1000))
    return run


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a model, apart from the card that run control adds."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert b"library_name: transformers" in found.pop("README.md")
    return found


def test_a_model_arrives_whole_also_after_a_download_that_was_cut_off(
    mor: Installation, spec_file: Path, tmp_path: Path
) -> None:
    run = finished(mor, spec_file)
    assert mor.ok("run", "export", run, str(tmp_path / "whole")).strip() == str(tmp_path / "whole")
    assert content(tmp_path / "whole") == _MODEL
    again = mor.mor("run", "export", run, str(tmp_path / "whole"))
    assert again.exit_code == ExitCode.usage and "exists" in again.stderr
    for name, begun in {
        "half": _MODEL["model.safetensors"][: 1 << 20],
        "damaged": b"x" * (1 << 20),
        "longer": b"x" * (4 << 20),
    }.items():
        part = tmp_path / f"{name}.part"
        part.mkdir()
        (part / "model.safetensors").write_bytes(begun)
        (part / "of-another-export").write_bytes(b"x")
        made = mor.json("run", "export", run, str(tmp_path / name))
        assert (made["state"], made["step"]) == ("ready", None)
        assert content(tmp_path / name) == _MODEL, name
        assert not part.exists()
    missing = mor.mor("run", "export", run, str(tmp_path / "later"), "--checkpoint", "7")
    assert missing.exit_code == ExitCode.not_found and "step 1" in missing.stderr
    assert not (tmp_path / "later").exists() and not (tmp_path / "later.part").exists()
    assert mor.mor("run", "export", run, str(tmp_path / "later"), "--checkpoint", "newest").exit_code == ExitCode.usage


def test_a_model_is_pushed_by_run_control(
    mor: Installation, spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(mor, spec_file)
    with oci_registry(REGISTRY_PORT) as registry:
        registry.log_in(tmp_path)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        address = mor.ok("run", "push", run, registry.reference).strip()
        assert address.startswith(f"{registry.address}/team/aligned@sha256:")
        pushed = registry.pulled()
        assert b"library_name" in pushed.pop("README.md") and pushed == _MODEL
        registry.log_in(tmp_path, password="another-password")
        failed = mor.mor("run", "push", run, registry.reference)
        assert failed.exit_code == ExitCode.no_answer and "log in again" in failed.stderr, failed.stderr
        assert "another-password" not in failed.output
    elsewhere = mor.mor("run", "push", run, "hf://team/aligned")
    assert elsewhere.exit_code == ExitCode.not_allowed and "MOR_PUSH_DESTINATIONS" in elsewhere.stderr
    assert "should be hf://OWNER/NAME or" in mor.mor("run", "push", run, "team/aligned").stderr


def test_a_run_is_archived_pruned_and_deleted(mor: Installation, spec_file: Path) -> None:
    run = finished(mor, spec_file)
    folder = mor.folder / "runs" / run
    assert run in mor.ok("run", "storage") and "MOR_ENDED_RUN_DAYS" in mor.ok("run", "storage")
    mor.ok("run", "archive", run)
    assert run not in mor.ok("run", "list") and run in mor.ok("run", "list", "--archived")
    assert mor.json("run", "unarchive", run)[0]["archived"] is False
    assert run in mor.ok("run", "list")
    [asked] = mor.json("run", "prune", run, "--dry-run")
    assert (asked["bytes"], asked["files"], asked["dry_run"]) == (2000, 2, True)
    assert (folder / "weights").is_dir()
    declined = mor.mor("run", "prune", run)
    assert declined.exit_code == 1 and "would free" in declined.stderr and (folder / "weights").is_dir()
    mor.ok("run", "prune", run, "--yes")
    assert {path.name for path in folder.iterdir()} == {"final", "files-deleted"}
    [asked] = mor.json("run", "delete", run, "--dry-run")
    [freed] = mor.json("run", "delete", run, "--yes")
    assert (asked["bytes"], asked["dry_run"], freed["dry_run"]) == (freed["bytes"], True, False)
    assert mor.mor("run", "show", run).exit_code == ExitCode.not_found
    queued = create(mor, spec_file)
    refused = mor.mor("run", "delete", queued, "--yes")
    assert refused.exit_code == ExitCode.conflict and f"mor run stop {queued}" in refused.stderr
    mor.use("viewer")
    assert mor.mor("run", "delete", queued, "--yes").exit_code == ExitCode.not_allowed
    mor.use("admin")
    mor.ok("run", "stop", queued)
