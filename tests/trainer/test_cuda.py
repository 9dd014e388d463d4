"""Behaviour that needs a GPU: memory that really runs out, tensors over NCCL, kernels that may not repeat."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mor_core.datafiles import Prompt
from mor_core.prompt_index import open_prompts
from mor_trainer.config import WorkerSettings
from mor_trainer.model import loading, sharding
from mor_trainer.model.policy import Policy
from mor_trainer.prompts.source_prompts import SourcePrompts
from mor_trainer.ranks import Ranks
from mor_trainer.update.budget import OutOfMemory
from mor_trainer.update.learner import Learner
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import Updater
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from tests.trainer.kit import make_spec
from tests.trainer.policies import groups_of, policy_of, training_group
from tests.trainer.rank_work import state_at, training_group_of
from tests.trainer.test_ranks import steps_of
from tests.trainer.test_shared_prompt import gradient

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

CUDA = torch.device("cuda")
OPTIMISER = {"lr": 1e-3, "warmup_steps": 0, "grad_clip": 1e9}


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Ranks]:
    """One rank set up as ``Ranks.join`` sets up several: over NCCL, which allows only one rank for each GPU."""
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    ranks = Ranks(torch.device("cuda", 0))
    ranks.mesh = init_device_mesh("cuda", (1,), mesh_dim_names=("shard",))
    ranks.group = dist.new_group(backend="gloo")
    yield ranks
    ranks.leave()


@pytest.fixture
def deterministic() -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def little_memory(extra_bytes: float) -> Iterator[None]:
    """Limit the allocator to ``extra_bytes`` beyond what it has reserved."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + extra_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_memory_that_really_runs_out_halves_the_micro_batch_and_loses_nothing(
    tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    """The whole step at once does not fit, parts of it do."""
    found = []
    for limited in (False, True):
        policy, spec = policy_of(
            tiny, prompts, torch.float32, device="cuda", optimiser=OPTIMISER, micro_batch_tokens=1 << 20
        )
        updater = Updater(policy, spec)
        groups = groups_of(policy, rows_of, size=64)
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with little_memory(0.6 * found[0][2]) if limited else contextlib.nullcontext():
            vector, report = gradient(updater, policy, groups)
        found.append((vector, report, torch.cuda.max_memory_allocated() - held))
    (wanted, whole, _), (got, halved, _) = found
    assert halved.micro_batch_tokens < whole.micro_batch_tokens
    assert (got - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_response_that_does_not_fit_alone_names_the_cure(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    policy, spec = policy_of(
        tiny, prompts, torch.float32, device="cuda", optimiser=OPTIMISER, micro_batch_tokens=1 << 20
    )
    long = tuple(random.Random(0).choices(range(20, 300), k=1 << 15))
    prompt = policy.prepare(rows_of[0].messages, rows_of[0].images)
    group = training_group(prompt, (long, long), ((-5.0,) * len(long),) * 2, (0.0, 1.0))
    with little_memory(1 << 26), pytest.raises(OutOfMemory, match="set gradient_checkpointing"):
        Updater(policy, spec).step([group], 1, StepTimer())


def test_only_products_are_computed_in_bfloat16(tiny: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    assert loading.autocast_dtype("auto", "cuda") == torch.bfloat16
    found = []
    for autocast in (None, torch.bfloat16):
        model, processor = loading.load(str(tiny))
        spec = make_spec(tiny, prompts, optimiser=OPTIMISER)
        policy = Policy(model, processor, spec, ranks=Ranks(CUDA), autocast=autocast)
        assert policy.shares_prompts
        groups = groups_of(policy, rows_of[:4])
        found.append(gradient(Updater(policy, spec), policy, groups)[0])
        assert {p.dtype for p in policy.trainable.values()} == {torch.float32}
    assert not found[0].equal(found[1])
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.95


def test_a_deterministic_run_repeats_its_bits(
    tiny: Path, prompts: Path, rows_of: list[Prompt], deterministic: None
) -> None:
    torch.use_deterministic_algorithms(True)
    found = []
    for _ in range(2):
        policy, spec = policy_of(tiny, prompts, torch.float32, device="cuda", optimiser=OPTIMISER, deterministic=True)
        updater = Updater(policy, spec)
        for step in range(1, 4):
            updater.step(groups_of(policy, rows_of[:4], seed=step), step, StepTimer())
        found.append(torch.cat([p.detach().flatten() for p in policy.trainable.values()]))
    assert found[0].equal(found[1])


@pytest.mark.skipif(
    not hasattr(FSDPModule, "set_reduce_scatter_unused_params"), reason="shards need torch 2.13 or later"
)
def test_shards_over_nccl_train_save_and_restore_as_one_process(
    tiny: Path, prompts: Path, rows_of: list[Prompt], tmp_path: Path, joined: Ranks
) -> None:
    spec = make_spec(tiny, prompts, optimiser=OPTIMISER, micro_batch_tokens=80)
    settings = WorkerSettings(device="cuda", precision="float32")
    steps = [[training_group_of(fields) for fields in step] for step in steps_of(tiny, prompts, rows_of, 3)]

    def trained(ranks: Ranks, folder: Path, first: int = 0, restored: Path | None = None) -> tuple[Any, Path | None]:
        folder.mkdir(exist_ok=True)
        learner = Learner.lead(
            settings, spec, folder, ranks, SourcePrompts.of_file(open_prompts(prompts, index_dir=folder / "index"))
        )
        assert isinstance(learner.policy._policy, FSDPModule) == (ranks.mesh is not None)
        saved = None
        if restored:
            learner.restore(restored)
        for step in range(first, 3):
            learner.update(steps[step], step + 1)
            if step == 1:
                saved = learner.save(state_at(2, spec))
        return {name: sharding.full_tensor(p.detach()).cpu() for name, p in learner.policy.trainable.items()}, saved

    alone, _ = trained(Ranks(CUDA), tmp_path / "alone")
    shards, saved = trained(joined, tmp_path / "shards")
    restored, _ = trained(joined, tmp_path / "restored", first=2, restored=saved)
    for found in (shards, restored):
        for name, wanted in alone.items():
            assert (found[name] - wanted).norm() <= 1e-5 * wanted.norm(), name
