"""The trainer and the rollout service hash the same pixels of a prompt, whichever fields the processor returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mor_core.images import sha256
from mor_core.pixel_hash import PIXEL_FIELDS, pixel_sha256
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_trainer.model.prompt_processor import PromptProcessor

from tests.rollout.reference import messages, picture, prompt_input

PICTURES = (picture(1), picture(2))


class Processor:
    """The checkpoint's processor, with its output changed."""

    def __init__(self, inner: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._inner = inner
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, **arguments: Any) -> dict[str, Any]:
        return self._change(dict(self._inner(**arguments)))


def pictures_only(output: dict[str, Any]) -> dict[str, Any]:
    return output


def videos_only(output: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values_videos": output.pop("pixel_values"), **output}


def both(output: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values_videos": output["pixel_values"] * 2, **output}


def videos_changed(output: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values_videos": output["pixel_values"] * 3, **output}


@pytest.mark.parametrize("change", [pictures_only, videos_only, both])
def test_trainer_and_rollout_service_agree(
    codec: PromptCodec, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    processor = Processor(codec.processor, change)
    monkeypatch.setattr(codec, "processor", processor)
    *_, sampled = codec.encode(prompt_input(*PICTURES))
    trained = PromptProcessor(processor).process(
        messages(*PICTURES), {sha256(content): content for content in PICTURES}
    )
    assert sampled == trained.pixels is not None


def test_each_field_counts(codec: PromptCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for change in (pictures_only, both, videos_changed):
        with monkeypatch.context() as patch:
            patch.setattr(codec, "processor", Processor(codec.processor, change))
            found.add(codec.encode(prompt_input(*PICTURES))[-1])
    assert len(found) == 3


def test_shares_of_single_images_have_the_hash_of_the_whole() -> None:
    """An engine holds each image's pixels apart."""
    whole = {field: torch.randn(2, 3, 4, 4) for field in PIXEL_FIELDS}
    shares = [{field: value[i : i + 1] for field, value in whole.items()} for i in range(2)]
    assert pixel_sha256(*shares) == pixel_sha256(whole) == pixel_sha256(dict(reversed(whole.items())))


def test_a_prompt_without_images_has_no_hash(codec: PromptCodec) -> None:
    assert codec.encode(prompt_input())[-1] is None
    assert pixel_sha256() is pixel_sha256({"input_ids": torch.ones(1)}) is None


def test_padding_to_the_largest_image_does_not_count() -> None:
    """Pixtral's processor pads the images of a prompt to one size, and vLLM takes each alone."""
    wide, tall = torch.rand(3, 2, 4), torch.rand(3, 4, 2)
    padded = torch.zeros(2, 3, 4, 4)
    padded[0, :, :2], padded[1, :, :, :2] = wide, tall
    sizes = torch.tensor([[2, 4], [4, 2]])
    alone = pixel_sha256({"pixel_values": wide}, {"pixel_values": tall})
    assert pixel_sha256({"pixel_values": padded, "image_sizes": sizes}) == alone
    assert pixel_sha256({"pixel_values": padded.bfloat16()}) != alone
