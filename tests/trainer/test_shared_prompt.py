"""Shared prompts against the plain path: the same losses and gradients for every model and tuning."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.datafiles import Prompt
from mor_core.errors import Invalid
from mor_core.optimisation import LoraTuning
from mor_core.wire import Message
from mor_trainer.model import loading, shared_prompt
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.model.packed_sequences import PackedSequence
from mor_trainer.model.policy import Policy
from mor_trainer.update.budget import OutOfMemory
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import Diverged, Updater, UpdateReport
from structlog.testing import capture_logs

from tests.float64 import all_in_float64
from tests.tiny_models import build_tiny_vlm
from tests.trainer.kit import make_spec
from tests.trainer.policies import DEVICES, KINDS, groups_of, policy_of, training_group

TUNINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"tuning": LoraTuning(rank=4).model_dump()},
    "full, tower too": {"freeze_vision": False},
}
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest relative differences of losses and gradients from the plain path."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: build_tiny_vlm(tmp_path_factory.mktemp(kind), kind=kind, scale=2.0) for kind in KINDS}  # type: ignore[arg-type]


def uneven_groups(policy: Policy, prompts: list[Prompt]) -> list[TrainingGroup]:
    """Eight responses to each prompt, of one to twelve tokens: together more than a prompt, so several tiles; one group
    without an image, where the processor takes that."""
    dice = random.Random(3)
    text = Prompt("text", (Message(role="user", content="How many stars?"),), {}, None)
    groups = []
    for prompt in [*prompts[:3], *([] if "paligemma" in type(policy.model).__name__.lower() else [text])]:
        prepared = policy.prepare(prompt.messages, prompt.images)
        responses = tuple(tuple(dice.randrange(20, 300) for _ in range(dice.choice((1, 2, 7, 12)))) for _ in range(8))
        engine = tuple(tuple(-dice.uniform(3, 5) for _ in response) for response in responses)
        groups.append(training_group(prepared, responses, engine, tuple(dice.gauss(0, 1) for _ in responses)))
    return groups


def gradient(updater: Updater, policy: Policy, groups: list[TrainingGroup]) -> tuple[torch.Tensor, UpdateReport]:
    """All gradients of one step as a vector, and the step's report."""
    found: list[torch.Tensor] = []
    hook = updater.optimiser.register_step_pre_hook(
        lambda *_: found.extend(p.grad.flatten().clone() for p in policy.trainable.values() if p.grad is not None)
    )
    report = updater.step(groups, 1, StepTimer())
    hook.remove()
    return torch.cat(found), report


def displaced(policy: Policy) -> None:
    """Move the policy away from the reference, so that adapters have an effect."""
    with torch.no_grad():
        for index, parameter in enumerate(policy.trainable.values()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
            parameter.add_(0.01 * noise.to(parameter))


def both(
    model: Path, prompts: Path, rows: list[Prompt], dtype: torch.dtype, device: str, **changes: Any
) -> Iterator[Any]:
    """Gradient and report with shared prompts, then on the plain path."""
    for shared in ("auto", "off"):
        policy, spec = policy_of(
            model,
            prompts,
            dtype,
            device=device,
            shared_prompt=shared,
            optimiser={"lr": 1e-3, "grad_clip": 1e9},
            algorithm={"kl": {"beta": 0.3}},
            micro_batch_tokens=400,
            **changes,
        )
        assert policy.shares_prompts == (shared == "auto")
        displaced(policy)
        yield gradient(Updater(policy, spec), policy, uneven_groups(policy, rows))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_equal_those_of_the_plain_path(
    models: dict[str, Path],
    kind: str,
    tuning: str,
    recompute: bool,
    device: str,
    prompts: Path,
    rows_of: list[Prompt],
) -> None:
    changes = {**TUNINGS[tuning], "gradient_checkpointing": recompute}
    compare_paths(models[kind], prompts, rows_of, device, **changes)


def compare_paths(
    model: Path, prompts: Path, rows: list[Prompt], device: str, dtypes: Any = EXACT, **changes: Any
) -> None:
    """Assert that both paths have the same losses and gradients."""
    for dtype, tolerance in dtypes.items():
        with all_in_float64() if dtype == torch.float64 else contextlib.nullcontext():
            (ours, report), (plain, wanted) = both(model, prompts, rows, dtype, device, **changes)
        assert (ours - plain).norm() <= tolerance * plain.norm()
        for got, expected in (
            (report.sums.objective, wanted.sums.objective),
            (report.kl, wanted.kl),
            (report.entropy, wanted.entropy),
        ):
            assert got == pytest.approx(expected, rel=tolerance, abs=tolerance)
        assert report.processed_tokens < 0.5 * wanted.processed_tokens


def test_a_model_that_cannot_share_prompts_takes_the_plain_path_and_logs_it_once(
    models: dict[str, Path], prompts: Path, rows_of: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For either reason: an error, or hidden states that differ."""
    right = shared_prompt.attention

    def refusing(*arguments: Any, **options: Any) -> Any:
        if isinstance(arguments[4], shared_prompt.LayerMask):
            raise Invalid("this layer cannot share prompts")
        return right(*arguments, **options)

    def blind(*arguments: Any, **options: Any) -> Any:
        return right(*arguments[:4], None, **options)  # as if the model did not pass the mask on

    for broken, reason in ((refusing, "this layer"), (blind, "hidden states differ")):
        monkeypatch.setattr(shared_prompt, "attention", broken)
        with capture_logs() as logs:
            policy, spec = policy_of(models["idefics3"], prompts)
            assert Updater(policy, spec).step(groups_of(policy, rows_of[:3]), 1, StepTimer()).skipped == 0
        (line,) = [line for line in logs if "not shared" in line["event"]]
        assert reason in line["reason"]
        assert not policy.shares_prompts


def test_calls_without_packed_groups_compute_as_before(models: dict[str, Path], prompts: Path) -> None:
    """With a key-value cache and with padding, which need transformers' own masks."""
    from transformers import AutoModelForImageTextToText, DynamicCache

    sharing = policy_of(models["llava"], prompts)[0].model
    before = AutoModelForImageTextToText.from_pretrained(models["llava"], dtype=torch.float64).eval()
    ids = torch.tensor([[30, 41, 52, 63, 74], [35, 46, 57, 68, 79]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found = []
    with torch.no_grad():
        for model in (sharing, before):
            cache = DynamicCache(config=model.config.get_text_config())
            start = model(input_ids=ids[:, :3], attention_mask=mask[:, :3], past_key_values=cache, use_cache=True)
            end = model(input_ids=ids[:, 3:], attention_mask=mask, past_key_values=cache, use_cache=True)
            found.append(torch.cat([start.logits, end.logits], 1)[mask.bool()])
    assert torch.allclose(*found, atol=1e-6)


def test_only_products_are_computed_in_bfloat16(models: dict[str, Path], prompts: Path, rows_of: list[Prompt]) -> None:
    assert loading.autocast_dtype("auto", "cpu") is None, "engine and trainer must agree"
    found = []
    for precision in ("float32", "bfloat16"):
        model, processor = loading.load(str(models["qwen2_5_vl"]))
        autocast = loading.autocast_dtype(precision, "cpu")  # type: ignore[arg-type]
        policy = Policy(model, processor, make_spec(models["qwen2_5_vl"], prompts), autocast=autocast)
        assert policy.shares_prompts
        prepared = policy.prepare(rows_of[0].messages, rows_of[0].images)
        logprobs, _ = policy.logprobs([PackedSequence(prepared, ((30, 41, 52), (63, 74)))])
        logprobs.sum().backward()
        assert logprobs.dtype == torch.float32
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in policy.trainable.values())
        found.append(logprobs.detach())
    assert not found[0].equal(found[1])
    assert torch.allclose(*found, atol=0.3)


def test_memory_that_runs_out_halves_the_micro_batch_and_loses_nothing(
    tiny: Path, prompts: Path, rows_of: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    def policy_and_updater() -> tuple[Policy, Updater]:
        policy, spec = policy_of(tiny, prompts, optimiser={"lr": 1e-3, "grad_clip": 1e9, "updates_per_step": 2})
        return policy, Updater(policy, spec)

    policy, updater = policy_and_updater()
    groups = groups_of(policy, rows_of[:4], size=6)
    wanted, report = gradient(updater, policy, groups)
    assert report.micro_batch_tokens == 256

    policy, updater = policy_and_updater()
    work = updater._accumulate
    failures = []

    def limited(batch: Any, *rest: Any) -> None:
        work(batch, *rest)  # what it added to the gradients must not count
        if policy.padded_tokens(batch) > 60:
            failures.append(len(batch))
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")

    monkeypatch.setattr(updater, "_accumulate", limited)
    with capture_logs() as logs:
        got, report = gradient(updater, policy, groups)
    assert (got - wanted).norm() <= 1e-6 * wanted.norm()
    assert report.micro_batch_tokens <= 60
    assert report.divided_groups > 0
    assert 0 < len(failures) <= 3
    assert len([line for line in logs if "memory ran out" in line["event"]]) == len(failures)

    def hopeless(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TB")

    monkeypatch.setattr(updater, "_accumulate", hopeless)
    with pytest.raises(OutOfMemory, match="set gradient_checkpointing, train adapters"):
        updater.step(groups, 2, StepTimer())


def test_a_run_fails_after_several_updates_that_are_not_finite(
    tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    policy, spec = policy_of(tiny, prompts, optimiser={"lr": 1e-3, "max_skipped_updates": 3})
    before = {name: p.detach().clone() for name, p in policy.trainable.items()}
    updater = Updater(policy, spec)
    good = groups_of(policy, rows_of[:2])
    broken = [replace(group, rewards=(float("nan"),) * len(group.responses)) for group in good]
    for groups in (broken, broken, good, broken, broken):
        report = updater.step(groups, 1, StepTimer())
        assert report.skipped == (groups is broken)
    assert any(not p.equal(before[name]) for name, p in policy.trainable.items())
    kept = {name: p.detach().clone() for name, p in policy.trainable.items()}
    with pytest.raises(Diverged, match=r"3 updates in a row .* Lower optimiser.lr"):
        updater.step(broken, 1, StepTimer())
    assert all(p.equal(kept[name]) for name, p in policy.trainable.items())
