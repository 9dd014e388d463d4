"""Published weights, adapters and checkpoints: written by a policy and read back."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from mor_core import atomic
from mor_core.datafiles import Prompt
from mor_core.errors import Invalid
from mor_core.optimisation import LoraTuning
from mor_core.weight_checksums import checksum, file_checksum
from mor_core.wire import Algorithm
from mor_trainer.groups.ledger import Ledger
from mor_trainer.model import loading
from mor_trainer.model.packed_sequences import PackedSequence
from mor_trainer.model.policy import Policy
from mor_trainer.ranks import Ranks
from mor_trainer.run_files import checkpoints
from mor_trainer.update import loop_checkpoint
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import Updater
from mor_trainer.weights import version_writer
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.tiny_models import build_tiny_vlm
from tests.trainer.kit import make_spec
from tests.trainer.policies import KINDS, groups_of, policy_of
from tests.trainer.records import order_of

ALONE = Ranks(torch.device("cpu"))


def test_lora_trains_adapters_and_its_reference_is_the_adapter_off(
    tiny: Path, prompts: Path, rows_of: list[Prompt], tmp_path: Path
) -> None:
    from peft import PeftModel

    policy, spec = policy_of(tiny, prompts, torch.float32, tuning=LoraTuning(rank=4).model_dump())
    assert policy._reference is None
    assert all("lora_" in name and "text_model" in name for name in policy.trainable)
    groups = groups_of(policy, rows_of[:2])
    rows = [PackedSequence(group.prepared, group.responses) for group in groups]
    before = policy.reference_logprobs(rows)
    Updater(policy, spec).step(groups, 1, StepTimer())
    assert policy.reference_logprobs(rows).equal(before)
    manifest = version_writer.write_version(
        tmp_path, "r", 1, str(tiny), model=policy.model, adapter=policy.adapter, trainable=policy.trainable, keep=2
    )
    assert manifest.kind == "lora"
    folder = tmp_path / "weights" / "1"
    assert {file.name for file in manifest.files} == {"adapter_model.safetensors", "adapter_config.json"}
    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny), folder)
    other = Policy(loaded.merge_and_unload(), policy.processor, make_spec(tiny, prompts))
    with torch.no_grad():
        assert torch.allclose(other.logprobs(rows)[0], policy.logprobs(rows)[0], atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_published_tensors_have_the_names_of_save_pretrained(
    kind: str, tied: bool, prompts: Path, tmp_path: Path
) -> None:
    model = build_tiny_vlm(tmp_path / "base", tied=tied, kind=kind)  # type: ignore[arg-type]
    policy, _ = policy_of(model, prompts, torch.float32)
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter.add_(0.5)
    manifest = version_writer.write_version(
        tmp_path, "r", 0, str(model), model=policy.model, adapter=None, trainable=policy.trainable, keep=2
    )
    published = load_file(tmp_path / "weights" / "0" / "model.safetensors")
    base = load_file(model / "model.safetensors")
    assert published.keys() == manifest.tensors.keys()
    assert published.keys() <= base.keys()
    frozen = base.keys() - published.keys()
    assert frozen
    assert all("vis" in name or "connector" in name or "projector" in name for name in frozen), frozen
    assert all(torch.allclose(tensor, base[name] + 0.5) for name, tensor in published.items())
    policy.model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(tensor.equal(saved[name]) for name, tensor in published.items())


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_published_files_match_their_hashes_and_old_versions_are_deleted(
    tiny: Path, prompts: Path, tmp_path: Path, algorithm: Algorithm
) -> None:
    policy, _ = policy_of(tiny, prompts, torch.float32)
    fifteen_million = {f"layer.{i}.weight": torch.randn(1000, 1500) for i in range(10)}
    for version in range(4):
        manifest = version_writer.write_version(
            tmp_path, "r", version, str(tiny), model=policy.model, adapter=None, trainable=fifteen_million, keep=2,
            algorithm=algorithm,
        )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["2", "3"]
    file = manifest.files[0]
    path = tmp_path / "weights" / "3" / file.name
    assert (path.stat().st_size, file.algorithm) == (file.bytes, algorithm)
    assert file_checksum(path, algorithm).hexdigest() == file.checksum
    if algorithm == "sha256":  # as earlier releases compute it
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.checksum
    for name, info in manifest.tensors.items():
        assert checksum(fifteen_million[name].numpy().tobytes(), algorithm) == info.checksum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_publication_holds_no_second_copy_of_the_model(
    tiny: Path, prompts: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    policy, _ = policy_of(tiny, prompts, torch.float32)
    tensors = {f"layer.{i}.weight": torch.randn(1000, 500).to(dtype) for i in range(20)}
    tensors |= {"scale": torch.tensor(3.0), "head.weight": torch.randn(64, 32).T}
    tracemalloc.start()
    version_writer.write_version(
        tmp_path, "r", 0, str(tiny), model=policy.model, adapter=None, trainable=tensors, keep=2
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * tensors["layer.0.weight"].nbytes
    loaded = load_file(tmp_path / "weights" / "0" / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(tensor.equal(loaded[name]) for name, tensor in tensors.items())


def test_a_checkpoint_restores_the_whole_loop(tiny: Path, prompts: Path, rows_of: list[Prompt], tmp_path: Path) -> None:
    straight, spec = policy_of(tiny, prompts, torch.float32)
    updater = Updater(straight, spec)
    batches = [groups_of(straight, rows_of[:4], seed=step) for step in range(4)]
    for step in range(4):
        updater.step(batches[step], step + 1, StepTimer())
        if step == 1:
            state = loop_checkpoint.LoopState(
                step=2, weights_version=2, gate_version=None, ledger=Ledger("r", order_of(12), 0, 3).state(),
                client_failures={}, spec=spec,
            )  # fmt: skip
            path = loop_checkpoint.save(tmp_path, state, straight.trainable, updater.optimiser, keep=1, ranks=ALONE)
    resumed, _ = policy_of(tiny, prompts, torch.float32)
    again = Updater(resumed, spec)
    assert loop_checkpoint.read_state(path) == state.model_copy(update={"checksummed": True})
    loop_checkpoint.restore(path, resumed.trainable, again.optimiser, ALONE)
    for step in (2, 3):
        again.step(batches[step], step + 1, StepTimer())
    assert all(p.equal(resumed.trainable[name]) for name, p in straight.trainable.items()), "bit-identical"
    assert not list(tmp_path.rglob("*.part"))
    (tmp_path / "checkpoints" / ".step-00000009.part").mkdir()  # a process was killed while it wrote
    assert checkpoints(tmp_path) == [path]
    atomic.sweep(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [path]


def test_a_checkpoint_of_another_tuning_is_refused(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    policy, spec = policy_of(tiny, prompts, torch.float32)
    state = loop_checkpoint.LoopState(
        step=1,
        weights_version=1,
        gate_version=None,
        ledger=Ledger("r", order_of(12), 0, 3).state(),
        client_failures={},
        spec=spec,
    )
    path = loop_checkpoint.save(tmp_path, state, policy.trainable, Updater(policy, spec).optimiser, keep=1, ranks=ALONE)
    lora, lora_spec = policy_of(tiny, prompts, torch.float32, tuning=LoraTuning().model_dump())
    with pytest.raises(Invalid, match=r"tensors do not fit the model .* it belongs to another model or tuning"):
        loop_checkpoint.restore(path, lora.trainable, Updater(lora, lora_spec).optimiser, ALONE)


def test_a_folder_without_a_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(Invalid, match="cannot be loaded"):
        loading.load(str(tmp_path))
