"""Backbones of reward models: encoders and models of any family, and computations shared by several responses."""

from __future__ import annotations

import functools
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from mor_core.processed_prompt import ProcessedPrompt
from mor_reward import model_store
from mor_reward.backbones import DualEncoderConfig, VlmConfig, build
from mor_reward.backbones.encoders import PretrainedImageEncoder
from mor_reward.backbones.vision_features import VisionFeatures
from mor_reward.preference_trainer import margins
from mor_reward.progress import NoProgress
from mor_reward.train_config import TrainConfig
from mor_reward.training_job import TrainingJob, train
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from tests.reward import reward_kit as kit


@pytest.mark.parametrize("kind", ["siglip", "timm"])
def test_a_dual_encoder_accepts_encoders_of_any_family(
    kind: str, text_encoder: Path, colours: Path, tmp_path: Path
) -> None:
    encoder = kit.build_vision_encoder(tmp_path / "encoder", kind)
    config = DualEncoderConfig(
        vision=str(encoder),
        text=str(text_encoder),
        image_size=64,
        vision_layers=(-1, -2),
        width=32,
        precision="float32",
    )
    manifest = train(
        TrainingJob(colours, tmp_path / "m", "m", "", config, TrainConfig(epochs=2, lr=3e-3, mismatch=2)), NoProgress()
    )
    again, backbone = model_store.load(tmp_path / "m")
    assert again == manifest
    chosen = [pair.chosen for pair in kit.pairs_of(colours)]
    one_text = [example for example in chosen if example.response == chosen[0].response]
    assert backbone.score(one_text).std() > 1e-4


@pytest.mark.parametrize("response", ["", "  "])
def test_a_response_without_a_token_is_named(
    response: str, dual_config: DualEncoderConfig, text_encoder: Path, colours: Path, tmp_path: Path
) -> None:
    """A tokenizer that adds no token of its own makes none of an empty text."""
    bare = shutil.copytree(text_encoder, tmp_path / "bare")
    tokenizer = json.loads((bare / "tokenizer.json").read_text())
    (bare / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    backbone = build(dual_config.model_copy(update={"text": str(bare)}), tmp_path, pretrained=True)
    asked = kit.pairs_of(colours)[0].chosen
    assert backbone.unscorable_reason(asked) is None
    reason = backbone.unscorable_reason(replace(asked, response=response))
    assert reason == "the response has no token, by the tokenizer of this model"


@pytest.mark.parametrize("kind", ["dinov2", "siglip"])
def test_an_image_encoder_computes_no_unused_layer(kind: str, tmp_path: Path) -> None:
    folder = kit.build_vision_encoder(tmp_path / "encoder", kind, layers=5)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(pixels, output_hidden_states=True).hidden_states
        encoder = PretrainedImageEncoder(str(folder), Path(), pretrained=True, size=64, layers=(1, 2))
        assert torch.equal(encoder(pixels), torch.cat([states[1], states[2]], dim=-1))
    assert len(next(iter(encoder.model.encoder.children()))) == 3, "the deepest and one more"
    encoder.export(tmp_path / "kept")
    again = PretrainedImageEncoder(str(tmp_path / "kept"), Path(), pretrained=False, size=64, layers=(1, 2))
    again.load_state_dict(encoder.state_dict())


@pytest.mark.parametrize("likelihood", [0.0, 0.5])
def test_sharing_a_prefix_changes_no_score(likelihood: float, tiny_vlm: Path, colours: Path) -> None:
    config = VlmConfig(model=str(tiny_vlm), likelihood=likelihood, precision="float32")
    backbone = build(config, Path(), pretrained=True)
    torch.nn.init.normal_(backbone.head.weight)  # type: ignore[operator, union-attr, arg-type]
    pairs = kit.pairs_of(colours)[:10]
    shared = margins(backbone, pairs)
    backbone.shares_prefix = False
    assert shared == pytest.approx(margins(backbone, pairs), abs=1e-4)
    assert abs(shared).max() > 1e-2


def test_the_likelihood_is_that_of_the_plain_model(tiny_vlm: Path, colours: Path) -> None:
    """Compare with the checkpoint's own logits, one response at a time."""
    from mor_core.wire import chat_template_messages

    backbone = build(VlmConfig(model=str(tiny_vlm), likelihood=1.0, precision="float32"), Path(), pretrained=True)
    plain = AutoModelForImageTextToText.from_pretrained(tiny_vlm).eval()
    processor = AutoProcessor.from_pretrained(tiny_vlm)
    examples = [pair.chosen for pair in kit.pairs_of(colours)[:4]]
    expected = []
    for example in examples:
        text = processor.apply_chat_template(chat_template_messages(example.messages), add_generation_prompt=True)
        inputs = dict(processor(text=[text], images=[[example.pictures[0].decode()]], return_tensors="pt"))
        ids = processor.tokenizer(example.response + "<|im_end|>", add_special_tokens=False)["input_ids"]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            logprobs = plain(**inputs).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
        expected.append(sum(float(row[token]) for row, token in zip(logprobs, ids, strict=True)))
    assert backbone.eval().score(examples).tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", ["smolvlm", "qwen2_5_vl", "llava"])
@pytest.mark.parametrize("freeze_vision", [True, False])
def test_a_vlm_of_any_family_trains_a_step(kind: str, freeze_vision: bool, tmp_path: Path) -> None:
    from tests.tiny_models import build_tiny_vlm

    checkpoint = build_tiny_vlm(tmp_path / "vlm", kind=kind)  # type: ignore[arg-type]
    data = kit.write_colour_preferences(tmp_path / "data", 10)
    config = VlmConfig(model=str(checkpoint), freeze_vision=freeze_vision, precision="float32")
    train_config = TrainConfig(epochs=1, batch_size=4, heldout_fraction=0.4)
    train(TrainingJob(data, tmp_path / "m", "m", "", config, train_config), NoProgress())
    _, backbone = model_store.load(tmp_path / "m")
    pairs = kit.pairs_of(data)
    together = margins(backbone, pairs)
    alone = [float(margins(backbone, [pair])[0]) for pair in pairs]
    assert together == pytest.approx(alone, abs=1e-4)
    assert abs(together).max() > 0


@pytest.mark.parametrize("kind", ["smolvlm", "qwen2_5_vl", "llava"])
def test_pictures_encoded_together_have_the_same_features_as_alone(kind: str, tmp_path: Path) -> None:
    from tests.tiny_models import build_tiny_vlm

    checkpoint = build_tiny_vlm(tmp_path / "vlm", kind=kind)  # type: ignore[arg-type]
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    shown = [Image.open(io.BytesIO(kit.draw("red", seed))).resize((64, 32 + 32 * (seed % 3 > 0))) for seed in range(11)]
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": kit.QUESTION}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    contexts = [
        ProcessedPrompt.of(dict(processor(text=[text], images=[[picture]], return_tensors="pt"))) for picture in shown
    ]
    vision, device = VisionFeatures(model.base_model), torch.device("cpu")
    encode, passes = model.base_model.get_image_features, []

    @functools.wraps(encode)
    def counted(**inputs: Any) -> Any:
        passes.append(inputs)
        return encode(**inputs)

    with torch.no_grad(), mock.patch.object(model.base_model, "get_image_features", counted):
        together = vision.encode(contexts, device)
        assert len(passes) < len(contexts)
        alone = [vision.encode([context], device)[0] for context in contexts]
    for one, other in zip(together, alone, strict=True):
        ours, theirs = (torch.cat([*features.fields["pooler_output"]]) for features in (one, other))
        assert ours.shape == theirs.shape
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_the_score_of_a_vlm_depends_on_the_picture(tiny_vlm: Path, colours: Path) -> None:
    backbone = build(VlmConfig(model=str(tiny_vlm), precision="float32"), Path(), pretrained=True)
    torch.nn.init.normal_(backbone.head.weight)  # type: ignore[operator, union-attr, arg-type]
    chosen = [pair.chosen for pair in kit.pairs_of(colours)[:20]]
    same_text = [example for example in chosen if example.response == chosen[0].response]
    scores = backbone.eval().score(same_text)
    assert scores.std() > 1e-4
