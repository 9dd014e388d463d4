"""Shared prompts against the plain path, in families of which a layer or mask is not plain causal attention."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mor_core.datafiles import Prompt
from mor_core.picture_features import PictureFeatures
from mor_trainer.model import packed_groups, shared_prompt
from mor_trainer.model.micro_batches import micro_batches
from mor_trainer.model.packed_sequences import PackedSequence
from mor_trainer.update.updater import Updater
from structlog.testing import capture_logs
from transformers.masking_utils import causal_mask_function

from tests import latest_model_families, more_model_families
from tests.model_families import FAMILIES as BUILDERS
from tests.model_families import build_family
from tests.trainer.policies import DEVICES, policy_of, training_group
from tests.trainer.test_shared_prompt import TUNINGS, compare_paths, gradient, uneven_groups

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
SLOW = pytest.mark.slow
assert more_model_families and latest_model_families  # their imports add families
FAMILIES = (
    "aya_vision",  # sliding windows in some layers (Cohere 2)
    "mistral_window",  # one window in all layers
    "gemma3",  # windows; image tokens see each other
    "gemma4",  # in windowed layers only
    "paligemma",  # the whole prompt sees itself
    "qwen3_5",  # gated delta nets
    "lfm2_vl",  # short convolutions
    "mllama",  # cross attention to the pictures
    "qwen3_vl",  # features for several layers (deepstack)
    "qwen3_vl_moe",  # experts
    *(pytest.param(name, marks=SLOW) for name in ("exaone4_5", "gemma3n", "qwen3_5_moe")),
)
WAYS = (
    ("full", False),
    ("lora", True),
    *(pytest.param(tuning, recompute, marks=SLOW) for tuning, recompute in (
        ("full", True), ("lora", False), ("full, tower too", False), ("full, tower too", True))),
)  # fmt: skip


@pytest.fixture(scope="module")
def built() -> dict[str, Path]:
    """Checkpoints that the module has built, by family."""
    return {}


@pytest.fixture
def checkpoint(family: str, built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if family not in built:
        folder = tmp_path_factory.mktemp(family)
        if family == "mistral_window":
            built[family] = with_window(build_family("mistral3", folder), 16)
        else:
            assert family in BUILDERS
            built[family] = build_family(family, folder)
    return built[family]


def with_window(checkpoint: Path, window: int) -> Path:
    """Set the window of a checkpoint's language model, tokens."""
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["sliding_window"] = window
    file.write_text(json.dumps(config))
    return checkpoint


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("tuning", "recompute"), WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_equal_those_of_the_plain_path(
    family: str, tuning: str, recompute: bool, device: str, checkpoint: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    changes: dict[str, Any] = {**TUNINGS[tuning], "gradient_checkpointing": recompute}
    compare_paths(checkpoint, prompts, rows_of, device, **changes)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_a_step_repeats_its_bits(family: str, checkpoint: Path, prompts: Path, rows_of: list[Prompt]) -> None:
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            policy, spec = policy_of(
                checkpoint, prompts, torch.float32, deterministic=True, gradient_checkpointing=True
            )
            assert policy.shares_prompts
            found.append(gradient(Updater(policy, spec), policy, uneven_groups(policy, rows_of))[0])
    finally:
        torch.use_deterministic_algorithms(False)
    assert found[0].equal(found[1])


@pytest.mark.parametrize("family", ["gemma3"])
def test_the_trial_s_prompts_are_longer_than_the_window(
    family: str, checkpoint: Path, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of which the shared path knows nothing shows."""
    wide = with_window(Path(shutil.copytree(checkpoint, tmp_path / "wide")), 100)
    assert policy_of(wide, prompts)[0].shares_prompts
    right = shared_prompt._layer_mask

    def without_window(*, mask_function: Any, **options: Any) -> Any:
        if options.get("local_size") is None and packed_groups.current() is not None:
            mask_function = causal_mask_function
        return right(mask_function=mask_function, **options)

    monkeypatch.setattr(shared_prompt, "_layer_mask", without_window)
    with capture_logs() as logs:
        assert not policy_of(wide, prompts)[0].shares_prompts
    (line,) = [line for line in logs if "not shared" in line["event"]]
    assert "hidden states differ" in line["reason"]


@pytest.mark.parametrize("family", ["mllama"])
def test_parts_of_a_group_see_its_pictures_once(
    family: str, checkpoint: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    """The first and the last part of this group would fit one micro-batch; the keys of its pictures would be double."""
    found = []
    for shared in ("auto", "off"):
        policy, _ = policy_of(checkpoint, prompts, shared_prompt=shared)
        prepared = policy.prepare(rows_of[0].messages, rows_of[0].images)
        responses = tuple(tuple(range(30, 30 + length)) for length in (5, 60, 5))
        zeros = tuple((0.0,) * len(response) for response in responses)
        group = training_group(prepared, responses, zeros, (0.0,) * 3)
        length = len(prepared.processed.token_ids)
        assert length <= 52
        batches = micro_batches([group], policy, length + 60)
        values = {}
        for batch in batches:
            parts = policy.logprobs(batch)[0].split([len(one) for item in batch for one in item.responses])
            values |= dict(zip([member for item in batch for member in item.members], parts, strict=True))
        found.append(torch.cat([values[member] for member in range(3)]))
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["qwen3_vl"])
def test_features_for_several_layers_are_computed_once(
    family: str, checkpoint: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    """And they count: without them, other log-probabilities come out."""
    policy, _ = policy_of(checkpoint, prompts)
    assert policy.shares_prompts
    encoded: list[int] = []
    policy.model.base_model.visual.register_forward_hook(lambda *_: encoded.append(1))
    prepared = policy.prepare(rows_of[0].messages, rows_of[0].images)
    sequence = PackedSequence(policy.prepare(rows_of[0].messages, rows_of[0].images), ((30, 41, 52), (63, 74)))
    for _ in range(2):
        wanted = policy.logprobs([sequence])[0]
    assert len(encoded) == 1
    assert prepared.features is not None
    layers = prepared.features.fields["deepstack_features"]
    assert len(layers) == 2
    empty = [[torch.zeros_like(picture) for picture in layer] for layer in layers]
    without = PictureFeatures({**prepared.features.fields, "deepstack_features": empty})
    other = replace(sequence, prompt=replace(sequence.prompt, features=without))
    assert (policy.logprobs([other])[0] - wanted).abs().max() > 0.01
