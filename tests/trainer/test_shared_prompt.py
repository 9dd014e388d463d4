"""Shared prompts against the plain path: the same losses and gradients for every model and tuning."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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

from tests.tiny_models import build_tiny_vlm
from tests.trainer.kit import make_spec
from tests.trainer.policies import DEVICES, KINDS, groups_of, policy_of, training_group

TUNINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"tuning": LoraTuning(rank=4).model_dump()},
    "full, tower too": {"freeze_vision": False},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: build_tiny_vlm(tmp_path_factory.mktemp(kind), kind=kind, scale=2.0) for kind in KINDS}  # type: ignore[arg-type]


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms in the type of their input; transformers computes them in float32, which would hide float64's precision."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

    def forward(self: Any, states: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(states.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * states * scale

    for norm in (LlamaRMSNorm, Qwen2_5_VLRMSNorm):
        monkeypatch.setattr(norm, "forward", forward)


def uneven_groups(policy: Policy, prompts: list[Prompt]) -> list[TrainingGroup]:
    """Eight responses to each prompt, of one to twelve tokens: together more than a prompt, so several tiles; one group
    without an image."""
    dice = random.Random(3)
    processed = [*prompts[:3], Prompt("text", (Message(role="user", content="How many stars?"),), {}, None)]
    groups = []
    for prompt in processed:
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
    exact_norms: None,
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        changes = {**TUNINGS[tuning], "gradient_checkpointing": recompute}
        (ours, report), (plain, wanted) = both(models[kind], prompts, rows_of, dtype, device, **changes)
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

    def refusing(*_: Any, **options: Any) -> Any:
        raise Invalid("a layer with sliding-window attention cannot share prompts")

    def blind(*arguments: Any, packed_groups: Any = None, **options: Any) -> Any:
        return right(*arguments, packed_groups=None, **options)  # as if the model did not pass the argument on

    for broken, reason in ((refusing, "sliding-window"), (blind, "hidden states differ")):
        monkeypatch.setattr(shared_prompt, "attention", broken)
        with capture_logs() as logs:
            policy, spec = policy_of(models["idefics3"], prompts)
            assert Updater(policy, spec).step(groups_of(policy, rows_of[:3]), 1, StepTimer()).skipped == 0
        (line,) = [line for line in logs if "not shared" in line["event"]]
        assert reason in line["reason"]
        assert not policy.shares_prompts


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(0, 9), max_size=6)), min_size=1, max_size=8))
def test_groups_are_attended_as_under_one_mask(lengths: list[tuple[int, list[int]]]) -> None:
    """One mask over the whole sequence: a token sees its prompt and the earlier tokens of its own response."""
    groups = [shared_prompt.PromptGroup(prompt, responses) for prompt, responses in lengths]
    owner = [
        (i, j) for i, (prompt, rest) in enumerate(lengths) for j, n in enumerate((prompt, *rest)) for _ in range(n)
    ]
    mask = torch.tensor([[a >= b and ours[0] == theirs[0] and theirs[1] in (0, ours[1])
                          for b, theirs in enumerate(owner)] for a, ours in enumerate(owner)])  # fmt: skip
    states = torch.randn(3, 1, 2, len(owner), 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = torch.nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    packed = shared_prompt.plan(groups, torch.device("cpu"))
    found, _ = shared_prompt.attention(module, *states, None, packed_groups=packed)
    wanted = torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=mask).transpose(1, 2)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_groups_of_one_size_take_two_calls() -> None:
    packed = shared_prompt.plan([shared_prompt.PromptGroup(20, [3] * 6)] * 5, torch.device("cpu"))
    assert [call.mask is None for call in packed.calls] == [True, False]


def test_a_layer_with_sliding_window_attention_is_refused() -> None:
    """The trial prompt may be shorter than the window and show no difference, so the window itself is the reason."""
    states = torch.zeros(1, 1, 4, 8)
    groups = shared_prompt.plan([shared_prompt.PromptGroup(2, [1, 1])], torch.device("cpu"))
    with pytest.raises(Invalid, match="sliding-window"):
        shared_prompt.attention(
            torch.nn.Module(), states, states, states, None, packed_groups=groups, sliding_window=4096
        )


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
