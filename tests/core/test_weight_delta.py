"""Deltas of weights: exact, small where little changed, and never an error that is not told."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZIP_BZIP2, ZIP_LZMA, ZipFile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mor_core.errors import Invalid
from mor_core.weight_checksums import file_checksum
from mor_core.weight_delta import DeltaFile, apply_delta
from safetensors.torch import save_file
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def delta_of(folder: Path, base: Path, new: Path) -> Path | None:
    """Write the delta as the trainer does, in the order of the bytes."""
    content = memoryview(new.read_bytes())
    writer = DeltaFile(folder / "model.delta", base)
    assert content[: len(writer.header)] == writer.header
    for first, last, _ in writer._regions:
        writer.add(content[first:last])
    return folder / "model.delta" if writer.close() else None


def step(tensor: Tensor, share: float) -> Tensor:
    """Change a share of the values."""
    return torch.where(torch.rand(tensor.shape) < share, tensor + 0.1, tensor).to(tensor.dtype)


def weights(dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(301, 77).to(dtype),
        "b.weight": torch.randn(64, 1000).to(dtype),
        "norm": torch.randn(1000),
        "scalar": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
    }


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.02])
def test_a_delta_makes_exactly_the_new_file(tmp_path: Path, dtype: torch.dtype, share: float) -> None:
    old = weights(dtype)
    base = saved(tmp_path / "old.safetensors", old)
    new = saved(tmp_path / "new.safetensors", {name: step(tensor, share) for name, tensor in old.items()})
    delta = delta_of(tmp_path, base, new)
    assert delta is not None
    assert delta.stat().st_size < 1000 + 4 * share * new.stat().st_size
    found = apply_delta(base, delta, tmp_path / "made.safetensors", "blake3")
    assert (tmp_path / "made.safetensors").read_bytes() == new.read_bytes()
    assert found.hexdigest() == file_checksum(new, "blake3").hexdigest()


def test_a_step_of_reinforcement_learning_in_bfloat16_is_a_few_percent(tmp_path: Path) -> None:
    torch.manual_seed(0)
    master = 0.02 * torch.randn(2000, 500)
    base = saved(tmp_path / "old.safetensors", {"w": master.bfloat16()})
    new = saved(tmp_path / "new.safetensors", {"w": (master + 1e-6 * torch.randn(2000, 500).sign()).bfloat16()})
    delta = delta_of(tmp_path, base, new)
    assert delta is not None
    assert 0.001 < delta.stat().st_size / new.stat().st_size < 0.04


def test_where_most_values_change_there_is_no_delta(tmp_path: Path) -> None:
    old = weights(torch.float32)
    base = saved(tmp_path / "old.safetensors", old)
    new = saved(tmp_path / "new.safetensors", {name: tensor + 1e-3 for name, tensor in old.items()})
    assert delta_of(tmp_path, base, new) is None
    assert not (tmp_path / "model.delta").exists()


@given(positions=st.lists(st.integers(0, 199_999), min_size=1, max_size=300, unique=True))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_positions(tmp_path: Path, positions: list[int]) -> None:
    old = torch.zeros(200_000, dtype=torch.bfloat16)
    new = old.clone()
    new[positions] = 1.0
    base, wanted = saved(tmp_path / "old.safetensors", {"w": old}), saved(tmp_path / "new.safetensors", {"w": new})
    delta = delta_of(tmp_path, base, wanted)
    assert delta is not None
    apply_delta(base, delta, tmp_path / "made.safetensors", "blake3")
    assert (tmp_path / "made.safetensors").read_bytes() == wanted.read_bytes()


@given(data=st.data())
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_delta_is_seen(tmp_path: Path, data: st.DataObject) -> None:
    """It is refused, or makes a file with another checksum, or has the damage where nothing is read."""
    torch.manual_seed(0)
    old = {"w": torch.zeros(5000)}
    base = saved(tmp_path / "old.safetensors", old)
    new = saved(tmp_path / "new.safetensors", {"w": step(old["w"], 0.02)})
    delta = delta_of(tmp_path, base, new)
    assert delta is not None
    content = bytearray(delta.read_bytes())
    place, bits, end = data.draw(st.tuples(st.floats(0, 1), st.integers(1, 255), st.floats(0, 1)))
    content[int(place * (len(content) - 1))] ^= bits
    delta.write_bytes(content[: int(end * len(content))] if end > 0.5 else content)
    made = tmp_path / "made.safetensors"
    try:
        found = apply_delta(base, delta, made, "blake3")
    except Invalid:
        return
    same = made.read_bytes() == new.read_bytes()
    assert (found.hexdigest() == file_checksum(new, "blake3").hexdigest()) == same


def test_a_delta_of_another_file_is_refused(tmp_path: Path) -> None:
    base = saved(tmp_path / "old.safetensors", {"w": torch.zeros(100)})
    delta = tmp_path / "model.delta"
    for gaps, values in [(b"\xc8", b"\1\1\1\1"), (b"\1", b"\1\1"), (bytes(300), bytes(1200)), (b"\1\xff", bytes(8))]:
        with ZipFile(delta, "w") as archive:
            archive.writestr("0.gaps", gaps)
            archive.writestr("0.values", values)
        with pytest.raises(Invalid, match=r"model.delta: no delta of"):
            apply_delta(base, delta, tmp_path / "made.safetensors", "blake3")
    delta.write_bytes(b"no archive")
    with pytest.raises(Invalid, match=r"model.delta: no delta of"):
        apply_delta(base, delta, tmp_path / "made.safetensors", "blake3")


@pytest.mark.parametrize("compression", [ZIP_BZIP2, ZIP_LZMA])
def test_no_other_compression_is_read(tmp_path: Path, compression: int) -> None:
    """Their errors on damaged bytes are none of an archive's."""
    base = saved(tmp_path / "old.safetensors", {"w": torch.zeros(100)})
    delta = tmp_path / "model.delta"
    with ZipFile(delta, "w", compression) as archive:
        archive.writestr("0.gaps", bytes(50))
        archive.writestr("0.values", bytes(200))
    content = delta.read_bytes()
    start = content.index(b"0.gaps") + len("0.gaps")
    for damaged in (content, content[:start] + b"\xff" * 12 + content[start + 12 :]):
        delta.write_bytes(damaged)
        with pytest.raises(Invalid, match=r"model.delta: no delta of"):
            apply_delta(base, delta, tmp_path / "made.safetensors", "blake3")
