"""Arguments of the SDK: what a notebook has in memory is taken, and what is wrong is named with the remedy."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mor_client import Mor
from mor_client.anchor_rows import anchor_rows
from mor_client.config import ClientSettings, read_settings
from mor_client.given_arguments import WrongArgument
from mor_client.rewards import RewardGroup
from mor_client.training.prompt_groups import MixtureRewards
from mor_core.datafiles import preferences_of, read_preferences
from mor_core.errors import DataFileError, Invalid
from PIL import Image

from tests.client.installation import Installation

PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
PART = {"type": "text", "text": "Which?"}
of: Callable[..., Any] = RewardGroup.of
Mixture: Callable[..., Any] = MixtureRewards
SINGLE = RewardGroup.of("Which?", ["a", "b"])


def encoded() -> bytes:
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: of("Q", ["a", "b"], images="chart.png"), "images: got str, wanted a list of pictures"),
        (lambda _: of("Q", ["a", "b"], images=PIXELS), "images: got ndarray, wanted a list of pictures"),
        (lambda _: of("Q", ["a", "b"], images=[3]), "images: got int, wanted a picture; give bytes"),
        (lambda _: of("Q", "Four."), "responses: got str, wanted a list of texts; write responses="),
        (lambda _: of("Q", ["a", 4]), "responses: got int, wanted a text or one message"),
        (
            lambda _: of({"role": "user", "content": "Q"}, ["a", "b"]),
            "prompt: got dict, wanted a list of",
        ),
        (lambda mor: mor.rewards.score(SINGLE), "groups: got RewardGroup, wanted a list of RewardGroup"),
        (lambda mor: mor.rewards.score([{"prompt": "Q"}]), "groups[0]: got dict, wanted RewardGroup; write RewardG"),
        (lambda mor: mor.clients.enrol("clinic"), "enrolment: got str, wanted Enrolment; write Enrolment(…), or a"),
        (
            lambda mor: mor.runs.create(None),
            "spec: got None, wanted RunSpec; write RunSpec(…), or a dict of its fields",
        ),
        (
            lambda mor: mor.objectives.put_anchors("x", [("q", "a")]),
            "anchors[0]: got tuple of 2, wanted (prompt, cho",
        ),
        (lambda mor: mor.objectives.put_anchors("x", {"prompt": "q"}), "anchors: got dict, wanted a list of dicts"),
        (lambda mor: mor.objectives.put_anchors("x", 5), "anchors: got int, wanted a list of dicts with prompt"),
    ],
)
def test_a_wrong_type_is_named_with_what_is_wanted(call: Callable[[Mor], Any], message: str) -> None:
    with Mor(ClientSettings(router_url="http://127.0.0.1:9")) as mor, pytest.raises(WrongArgument) as refused:
        call(mor)
    assert message in str(refused.value)
    assert isinstance(refused.value, TypeError) and isinstance(refused.value, Invalid)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda _: of("Q", ["a", "b"], images=[{"byte": b"x"}]),
            "unknown key 'byte', wanted bytes, path, im",
        ),
        (
            lambda _: of("Q", ["a", "b"], images=[PIXELS / 255]),
            "array of float64 of shape (8, 8, 3), wanted u",
        ),
        (
            lambda _: of("Q", ["a", "b"], images=[PIXELS.T]),
            "of shape (3, 8, 8), wanted uint8 of shape (heig",
        ),
        (lambda mor: mor.rewards.score([SINGLE], fusion="median"), "fusion: Input should be a valid dictionary"),
        (lambda mor: mor.rewards.score([SINGLE], deadline_s=0), "deadline_s: Input should be greater than 0"),
        (lambda mor: mor.rewards.score([SINGLE], deadline_s="soon"), "deadline_s: Input should be a valid number"),
        (lambda mor: mor.rewards.score([SINGLE], objective=5), "objective"),
        (lambda mor: mor.rewards.route(SINGLE, objective=5), "objective"),
        (lambda mor: mor.rewards.score([of("Q", ["\ud800", "b"])]), "half a character"),
        (lambda _: of("Q", ["a", "b"], name=4), "group '4': item_id: Input should be a valid string"),
        (lambda mor: mor.objectives.propose("x", 65), "count: Input should be less than or equal to 64"),
        (lambda mor: mor.audits.label("x", "1", "left"), "preferred: "),
        (lambda mor: mor.runs.change("x", add_tags="mine"), "add_tags: got str, wanted a list of texts"),
        (lambda mor: mor.runs.change("x", note=5), "note: Input should be a valid string"),
        (lambda mor: Mixture(group_size=0, mor=mor), "group_size: got 0, wanted the number of responses"),
        (lambda mor: Mixture(group_size="8", mor=mor), "group_size: got '8', wanted the number of responses"),
        (lambda mor: mor.objectives.create({"name": "x", "txt": "y"}), "the fields of NewObjective are name, text,"),
        (lambda mor: mor.objectives.put_anchors("x", [("q", "a", "a")]), "anchors:1: chosen and rejected are the same"),
        (
            lambda mor: mor.objectives.put_anchors("x", [("q", "a", "b", ["/etc/hostname"])]),
            "anchors:1: images: got the name '/etc/hostname' of a file, wanted a picture",
        ),
        (
            lambda mor: mor.objectives.put_anchors(
                "x", [{"prompt": "q", "chosen": "a", "rejected": "b", "image": b"x"}]
            ),
            "anchors:1: images: ",
        ),
    ],
)
def test_a_wrong_value_is_named_with_the_cure(call: Callable[[Mor], Any], message: str) -> None:
    with Mor(ClientSettings(router_url="http://127.0.0.1:9")) as mor, pytest.raises(Invalid) as refused:
        call(mor)
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["helpful#2", "helpful?dry_run=true", "", "..", "../clients", "a%2fb", "a\nb", "a b"])
def test_what_cannot_be_a_name_reaches_no_other_address(name: str) -> None:
    """A part after '#' or '?' would be no part of the path: ``delete`` would delete the objective 'helpful'."""
    calls: list[Callable[[Mor], Any]] = [
        lambda mor: mor.objectives.delete(name),
        lambda mor: mor.clients.remove(name),
        lambda mor: mor.runs.pause(name),
        lambda mor: list(mor.runs.metrics_csv(name)),
        lambda mor: next(mor.runs.events(name)),
    ]
    with Mor(ClientSettings(router_url="http://127.0.0.1:9", control_url="http://127.0.0.1:9")) as mor:
        for call in calls:
            with pytest.raises(Invalid, match="what cannot be a name; give a name as its list shows it"):
                call(mor)


def test_anchors_in_memory_are_those_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(encoded())
    row = {"prompt": "Which?", "chosen": "a", "rejected": "b", "images": ["picture.png"]}
    (tmp_path / "anchors.jsonl").write_text(json.dumps(row) + "\n")
    [wanted] = read_preferences(tmp_path / "anchors.jsonl")
    shown = [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(PIXELS)}, PART]}]
    forms: list[Any] = [
        ("Which?", "a", "b", [encoded()]),
        ("Which?", "a", "b", [Image.fromarray(PIXELS)]),
        ("Which?", "a", "b", [PIXELS]),
        ["Which?", "a", "b", [tmp_path / "picture.png"]],
        {**row, "images": [{"bytes": encoded(), "path": None}]},
        {"prompt": "Which?", "chosen": "a", "rejected": "b", "image": PIXELS},
        {"prompt": shown, "chosen": "a", "rejected": "b"},
        {
            "prompt": [{"role": "user", "content": [{"type": "image", "image": PIXELS}, PART]}],
            "chosen": "a",
            "rejected": "b",
        },
        {"question": "Which?", "chosen": "a", "rejected": "b", "photo": [PIXELS]},
        wanted,
    ]
    for form in forms:
        columns = "prompt=question,images=photo" if isinstance(form, dict) and "photo" in form else ""
        [found] = preferences_of(anchor_rows(iter([form]), columns), "anchors")
        assert (found.chosen, found.rejected, found.prompt.messages, found.prompt.images) == (
            wanted.chosen,
            wanted.rejected,
            wanted.prompt.messages,
            wanted.prompt.images,
        ), form


def test_the_router_takes_anchors_from_memory(mor: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOR_CONFIG", str(mor.config))
    with Mor(read_settings()) as sdk:
        sdk.objectives.create({"name": "from-memory", "text": "Be right."})
        pairs = [(f"Which is {n}?", f"answer {n}", f"answer {n + 1}", [PIXELS]) for n in range(24)]
        found = sdk.objectives.put_anchors("from-memory", pairs)
        assert found.anchors == 24 and "from-memory" in found._repr_html_()
        with pytest.raises(DataFileError, match=r"anchors:2: .*id 'same' is also used in line 1"):
            rows = [{"id": "same", "prompt": "q", "chosen": "a", "rejected": "b"}] * 2
            sdk.objectives.put_anchors("from-memory", rows)
        sdk.objectives.delete("from-memory")
