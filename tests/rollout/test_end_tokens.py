"""A response ends at each token that tokenizer, generation configuration or configuration name as its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.weights.base_checkpoint import BaseCheckpoint

from tests.rollout.conftest import settings_for


@pytest.fixture
def model(tiny_vlm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vlm, tmp_path / "model"))


def stops_of(model: Path, tmp_path: Path) -> set[str]:
    codec = PromptCodec(settings_for(model, tmp_path), BaseCheckpoint(str(model)))
    return set(codec.processor.tokenizer.convert_ids_to_tokens(list(codec.stops)))


def edit(file: Path, change: Any) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def ids(model: Path, *tokens: str) -> list[int]:
    from mor_core.vision import load_processor

    found: list[int] = load_processor(str(model)).tokenizer.convert_tokens_to_ids(list(tokens))
    return found


def test_a_list_in_the_generation_configuration(model: Path, tmp_path: Path) -> None:
    wanted = [*ids(model, "<end_of_utterance>", "<|im_end|>"), 10**6]
    edit(model / "generation_config.json", lambda content: content.update(eos_token_id=wanted))
    assert stops_of(model, tmp_path) == {"<end_of_utterance>", "<|im_end|>"}


def test_without_that_file_a_list_in_the_configuration_and_no_plain_words(model: Path, tmp_path: Path) -> None:
    (model / "generation_config.json").unlink()
    (ended,) = ids(model, "<end_of_utterance>")
    edit(model / "config.json", lambda content: content["text_config"].update(eos_token_id=[ended, 40]))
    assert stops_of(model, tmp_path) == {"<end_of_utterance>", "<|im_end|>"}
