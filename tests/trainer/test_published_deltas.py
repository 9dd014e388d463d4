"""Published deltas: what changed since the version before, beside the whole version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from mor_core.sealed_json import seal
from mor_core.weight_delta import apply_delta
from mor_core.wire import WeightsManifest
from mor_trainer.model.policy import Policy
from mor_trainer.run_files import WEIGHTS
from mor_trainer.weights import version_writer

from tests.trainer.policies import policy_of

FILE = "model.safetensors"


class Writer:
    """Writer of versions of a policy after small steps."""

    def __init__(self, policy: Policy, model: Path, folder: Path) -> None:
        self._policy = policy
        self._model = model
        self._folder = folder / "r"
        self._folder.mkdir()
        torch.manual_seed(0)

    def write(self, version: int, dtype: torch.dtype = torch.bfloat16, **options: object) -> WeightsManifest:
        with torch.no_grad():
            for parameter in self._policy.trainable.values():
                parameter.add_(1e-6 * torch.randn_like(parameter).sign())
        return version_writer.write_version(
            self._folder, "r", version, str(self._model), model=self._policy.model, adapter=self._policy.adapter,
            trainable=self._policy.trainable, keep=2, dtype=dtype, **options,  # type: ignore[arg-type]
        )  # fmt: skip

    def folder_of(self, version: int) -> Path:
        return self._folder / WEIGHTS / str(version)


@pytest.fixture
def writer(tiny: Path, prompts: Path, tmp_path: Path) -> Writer:
    policy, _ = policy_of(tiny, prompts, torch.float32)
    return Writer(policy, tiny, tmp_path)


def test_a_delta_against_the_version_before_makes_the_same_file(writer: Writer, tmp_path: Path) -> None:
    assert writer.write(1).delta is None
    for version, base in ((2, 1), (7, 2)):  # numbers have gaps where a run resumed
        delta = writer.write(version).delta
        assert delta is not None
        assert delta.base == base
        made, written = tmp_path / FILE, writer.folder_of(version) / FILE
        apply_delta(writer.folder_of(base) / FILE, writer.folder_of(version) / delta.name, made, "blake3")
        assert made.read_bytes() == written.read_bytes()
        assert delta.bytes == (writer.folder_of(version) / delta.name).stat().st_size < written.stat().st_size / 8


def test_equal_weights_have_an_equal_delta(writer: Writer) -> None:
    """As the same version is written again by the next attempt."""
    writer.write(1)
    first = writer.write(2).delta
    trainable = writer._policy.trainable
    again = version_writer.write_version(
        writer._folder, "r", 2, str(writer._model), model=writer._policy.model, adapter=None, trainable=trainable,
        keep=2, dtype=torch.bfloat16,
    )  # fmt: skip
    assert again.delta == first


def test_a_first_version_that_is_written_again_has_no_delta(writer: Writer) -> None:
    assert [writer.write(0).delta for _ in range(2)] == [None, None]
    delta = writer.write(1).delta
    assert delta is not None
    assert delta.base == 0


def test_there_is_no_delta_where_it_would_be_large_or_nobody_could_apply_it(writer: Writer) -> None:
    writer.write(1)
    assert writer.write(2, torch.float32).delta is None, "another number format"
    assert writer.write(3, torch.float32).delta is None, "every value changed"
    writer.write(4)
    assert writer.write(5, algorithm="sha256").delta is None, "an engine of the former release is there"
    assert [path.name for path in writer.folder_of(5).iterdir() if path.suffix == ".delta"] == []
    assert writer.write(6).delta is not None


@pytest.mark.parametrize("damage", ["truncated", "flipped header", "missing", "no manifest", "no files"])
def test_a_damaged_version_before_is_no_base(writer: Writer, damage: str) -> None:
    manifest = writer.write(1)
    file = writer.folder_of(1) / FILE
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        (writer.folder_of(1) / "manifest.json").write_bytes(b"{}")
    elif damage == "no files":
        forged = seal(manifest.model_copy(update={"files": ()}).model_dump_json().encode())
        (writer.folder_of(1) / "manifest.json").write_bytes(forged)
    else:
        file.write_bytes(content[:-10] if damage == "truncated" else bytes([content[0] ^ 1]) + content[1:])
    assert writer.write(2).delta is None
    assert (writer.folder_of(2) / FILE).stat().st_size == len(content)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.parametrize("name", [FILE, "manifest.json"])
def test_a_version_of_another_user_is_no_base(writer: Writer, name: str) -> None:
    writer.write(1)
    (writer.folder_of(1) / name).chmod(0)
    assert writer.write(2).delta is None


def test_adapters_are_small_and_have_none(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    policy, _ = policy_of(tiny, prompts, torch.float32, tuning={"kind": "lora", "rank": 4})
    writer = Writer(policy, tiny, tmp_path)
    assert [writer.write(version).delta for version in (1, 2)] == [None, None]
