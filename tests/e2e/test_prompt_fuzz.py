"""Every stage encodes the prompts that the check passes. The check names the others, and nothing hangs.

Rows are mutated at random, from a fixed seed, which a failure names.
"""

from __future__ import annotations

import base64
import io
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from mor_core import images
from mor_core.datafiles import Prompt, scan_prompts
from mor_core.encoding_processes import problem_of
from mor_core.errors import MorError
from mor_core.image_budget import ImageBudget
from mor_core.prompt_check import PromptCheck
from mor_core.prompt_limits import PromptLimits
from mor_core.vision import load_processor
from mor_core.wire import image_hashes
from mor_reward.backbones import Example, Picture
from mor_reward.backbones.vlm import Vlm, VlmConfig
from mor_reward.scoring_engine import ScoringEngine
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import PromptInput
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_trainer.model.prompt_processor import PromptProcessor
from PIL import Image

from tests.tiny_models import build_tiny_vlm

LIMITS = PromptLimits(model_len=512, images=4, response=8)
_LONGEST_S = 20.0
"""Seconds for one row in all stages; it takes a hundredth of that on a machine without other work."""
_TEXTS = (
    "", " ", "How many?", "<image>", "<image>\nWhat?", "<image><image>", "<|im_end|>", "<end_of_utterance>", "</s>",
    "{{ 7 * 7 }}", "{% for a in b %}", "\x00\x1b[31m", "\u202e\ufeff", "ﷺ" * 40, "🏳️‍🌈" * 9, "word " * 300, "a" * 60_000,
    "<row_1_col_1>", "<global-img>", "<fake_token_around_image>",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (None, True, 0, -1.5, 1e308, [], {}, [[]], {"type": "image"}, {"type": "text"}, *_TEXTS)
_ROLES = ("user", "assistant", "system", "tool", "", "User", "user")
_SIZES = ((40, 30), (1, 1), (1, 400), (400, 1), (3, 2), (320, 200), (1000, 4))
_MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16", "F")
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


def picture(rng: random.Random) -> str:
    """Draw a picture of an odd size, mode or format, perhaps with other bytes in it, as a data URI."""
    content = io.BytesIO()
    image = Image.new(rng.choice(_MODES), rng.choice(_SIZES))
    kind = rng.choice(_FORMATS)
    try:
        image.save(content, kind)
    except (OSError, ValueError, KeyError):  # no such mode in that format
        image.convert("RGB").save(content, kind)
    changed = bytearray(content.getvalue())
    if rng.random() < 0.4:
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    if rng.random() < 0.2:
        del changed[rng.randrange(len(changed)) :]
    return "data:image/png;base64," + base64.b64encode(bytes(changed)).decode()


def content_of(rng: random.Random, shown: int) -> Any:
    """Draw the content of a turn: a text or parts, with places for about ``shown`` pictures."""
    if rng.random() < 0.5:
        return "<image>" * rng.choice((0, shown, shown)) + rng.choice(_TEXTS)
    parts: list[Any] = [{"type": "image"} for _ in range(rng.choice((shown, shown, shown + 1)))]
    parts += [{"type": "text", "text": rng.choice(_TEXTS)} for _ in range(rng.randint(0, 2))]
    rng.shuffle(parts)
    return parts


def row(rng: random.Random, number: int) -> dict[str, Any]:
    """Draw a row that may be right."""
    shown = rng.choice((0, 0, 1, 1, 2, 5))
    drawn: dict[str, Any] = {"id": f"r{number}", "images": [picture(rng) for _ in range(shown)]}
    turns = [{"role": "user", "content": content_of(rng, shown)}]
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        turns.insert(rng.choice((0, len(turns))), {"role": rng.choice(_ROLES), "content": content_of(rng, 0)})
    drawn["prompt"] = turns if rng.random() < 0.7 else rng.choice(_TEXTS)
    if rng.random() < 0.2:  # a column, or a value in a turn, is something else
        place = rng.choice([drawn, *turns])
        place[rng.choice([*place, "domain", "extra"])] = rng.choice(_VALUES)
    return drawn


class Stages:
    """Encoding of rollout, trainer and reward service on one checkpoint."""

    def __init__(self, model: Path) -> None:
        settings = RolloutSettings(model=str(model), max_model_len=512, max_images=4)
        self.codec = PromptCodec(settings, BaseCheckpoint(settings.model))
        self.processor = load_processor(str(model))
        self.trainer = PromptProcessor(self.processor)
        reward = Vlm(VlmConfig(model=str(model), precision="float32"), Path(), pretrained=True).eval()
        self.reward = ScoringEngine(reward, 1.0, 8)

    def check(self, prompt: Prompt) -> str | None:
        return problem_of(self.processor, LIMITS, prompt)

    def sample(self, prompt: Prompt) -> tuple[int, ...]:
        """Encode as the group sampler does.

        Raises:
            MorError: the group becomes a dead letter.
        """
        self.codec.check_messages(prompt.messages)
        budget = ImageBudget(LIMITS.image_bytes)
        for content in prompt.images.values():
            budget.spend(content)
        decoded = {digest: images.decode(content) for digest, content in prompt.images.items()}
        _, token_ids, placeholders, pixels = self.codec.encode(PromptInput(prompt.messages, decoded))
        assert bool(placeholders) == (pixels is not None)
        return token_ids

    def score(self, prompt: Prompt) -> tuple[str, str]:
        shown = tuple(Picture(digest, prompt.images[digest]) for digest in image_hashes(prompt.messages))
        (outcome,) = self.reward.run([[Example(prompt.messages, shown, text) for text in ("yes", "no")]])
        return outcome.status, outcome.detail or ""


@pytest.fixture(scope="module", params=["idefics3", "llava"])
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(build_tiny_vlm(tmp_path_factory.mktemp(request.param), kind=request.param))


def compare(stages: Stages, seed: int, count: int, folder: Path) -> int:
    """Compare check and stages on ``count`` rows; return how many the check passed."""
    rng = random.Random(seed)
    data = folder / f"{seed}.jsonl"
    data.write_text("".join(json.dumps(row(rng, number)) + "\n" for number in range(count)))
    passed = scanned = 0
    for parsed in scan_prompts(data):
        scanned += 1
        place = f"seed {seed}, line {parsed.place.line}"
        if parsed.value is None:
            assert parsed.problem and len(parsed.problem) > 10, place
            continue
        began = time.monotonic()
        prompt = parsed.value
        problem = stages.check(prompt)
        if problem is None:
            passed += 1
            token_ids = stages.sample(prompt)
            assert len(token_ids) + LIMITS.response <= 512, place
            assert stages.trainer.process(prompt.messages, prompt.images).token_ids == token_ids, place
            assert stages.score(prompt)[0] in ("ok", "unscorable"), (place, stages.score(prompt))
        else:
            assert len(problem) > 10, (place, problem)
            try:
                tokens = len(stages.sample(prompt))
            except MorError as error:
                assert len(str(error)) > 10, place
            else:
                assert tokens + LIMITS.response > 512, (place, problem)
            status, detail = stages.score(prompt)
            assert status == "ok" or detail, place
        assert time.monotonic() - began < _LONGEST_S, place
    assert scanned == count
    return passed


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_what_the_check_passes_every_stage_encodes(stages: Stages, tmp_path: Path) -> None:
    assert compare(stages, 1, 60, tmp_path) > 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("seed", range(100, 120))
def test_what_the_check_passes_every_stage_encodes_at_length(stages: Stages, tmp_path: Path, seed: int) -> None:
    assert compare(stages, seed, 300, tmp_path) > 40


def test_processes_find_what_the_check_of_single_rows_finds(tmp_path: Path) -> None:
    model = build_tiny_vlm(tmp_path / "model")
    rng = random.Random(7)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row(rng, number)) + "\n" for number in range(60)))
    processor = load_processor(str(model))
    wanted = {}
    for parsed in scan_prompts(data):
        problem = parsed.problem if parsed.value is None else problem_of(processor, LIMITS, parsed.value)
        if problem is not None:
            wanted[parsed.place.line] = problem
    found = [bad for part in PromptCheck(data, model=str(model), limits=LIMITS, processes=2).run() for bad in part.bad]
    assert {bad.line: bad.problem for bad in found} == wanted
