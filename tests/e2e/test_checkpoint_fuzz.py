"""Whatever the small files of a checkpoint hold, check and services take it or refuse it by name.

Files are changed at random, from a fixed seed, which a failure names.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mor_core.errors import MorError
from mor_core.model_family import check_family, model_length
from mor_core.wire import Message
from mor_reward.backbones.encoders import load_tokenizer
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import PromptInput
from mor_rollout.weights.base_checkpoint import BaseCheckpoint

from tests.model_families import build_family
from tests.tiny_models import build_tiny_vlm

pytestmark = pytest.mark.filterwarnings("ignore")

_VALUES: tuple[Any, ...] = (None, True, 0, -1, 1, 3.5, 1e308, "", "x", [], {}, [None], {"a": 1}, "../../etc")
_WHOLE = (b"", b"null", b"[]", b"5", b'"a"', b"{}", b"[" * 5000, b"\xff\xfe", b"\0" * 100)
_TEMPLATES = (
    "", "{%", "}}", "{% for i in range(10) %}", "{{ 1/0 }}", "{{ raise_exception('no') }}", "{{ a.b.c }}",
    "{% include 'a' %}", "{{ messages[9] }}", "\0", "{{ [].pop() }}",
)  # fmt: skip
_SHORTEST_REASON = 20
"""Characters below which a message could name neither file nor cure."""


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value inside a JSON value; of a list, those of its first entries."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*above, key)
        yield from places(one, (*above, key))


def change(rng: random.Random, file: Path) -> str:
    """Change a file, and return what was done."""
    how = rng.random()
    if how < 0.08:
        file.unlink()
        return "deleted"
    if how < 0.16:
        content = file.read_bytes()
        file.write_bytes(content[: rng.randrange(len(content))])
        return "cut"
    if how < 0.22:
        file.write_bytes(rng.choice(_WHOLE))
        return "written over"
    if file.suffix != ".json":
        text = file.read_text()
        place = rng.randrange(len(text))
        piece = rng.choice(_TEMPLATES)
        file.write_text(text[:place] + piece + text[place + rng.randrange(3) :])
        return f"{piece!r} at {place}"
    content = json.loads(file.read_text())
    *above, key = rng.choice(list(places(content)))
    inside = content
    for name in above:
        inside = inside[name]
    if rng.random() < 0.25:
        del inside[key]
        what = "deleted"
    else:
        inside[key] = rng.choice(_VALUES)
        what = repr(inside[key])
    file.write_text(json.dumps(content))
    return f"{[*above, key]}: {what}"


def use(model: Path) -> None:
    """Use a checkpoint as check, rollout service and reward service do, without its weights.

    Raises:
        MorError: it cannot be used.
    """
    check_family(str(model))
    model_length(str(model))
    codec = PromptCodec(RolloutSettings(model=str(model)), BaseCheckpoint(str(model)))
    codec.encode(PromptInput((Message(role="user", content="Why?"),), {}))
    load_tokenizer(model.name, model.parent)


def try_changes(whole: Path, seed: int, count: int, folder: Path) -> None:
    rng = random.Random(seed)
    refused = 0
    for number in range(count):
        model = folder / str(number)
        shutil.copytree(whole, model)
        file = rng.choice(sorted(one for one in model.iterdir() if one.suffix != ".safetensors"))
        changed = f"seed {seed}, {number}: {file.name} {change(rng, file)}"
        try:
            use(model)
        except MorError as error:
            refused += 1
            assert len(str(error)) > _SHORTEST_REASON, changed
        except Exception as error:
            raise AssertionError(changed) from error
        shutil.rmtree(model)
    assert 0 < refused < count


@pytest.fixture(scope="module", params=["idefics3", "llava", "qwen2_5_vl"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    if request.param == "qwen2_5_vl":
        return build_family(request.param, folder)
    return build_tiny_vlm(folder, kind=request.param)


def test_a_changed_checkpoint_is_taken_or_refused_by_name(whole: Path, tmp_path: Path) -> None:
    try_changes(whole, 1, 20, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_a_changed_checkpoint_is_taken_or_refused_by_name_at_length(whole: Path, tmp_path: Path, seed: int) -> None:
    try_changes(whole, seed, 60, tmp_path)
