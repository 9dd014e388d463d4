"""Messages, ids and responses of data files: what they say is read, or refused with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mor_core.datafiles import read_preferences, read_prompts
from mor_core.errors import DataFileError

from tests.core.published_rows import ASKED, said
from tests.core.test_data_layouts import asks, pairs, write


@pytest.mark.parametrize(
    ("message", "key"),
    [
        ({"role": "user", "content": "a", "tool_calls": [{"id": "1"}]}, "tool_calls"),
        ({"role": "user", "content": "a", "name": "Ann"}, "name"),
        ({"role": "user", "content": "a", "images": ["a.png"]}, "images"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "image": "a.png"}]}, "image"),
        ({"role": "user", "content": [{"type": "image", "image": "a.png", "max_pixels": 9}]}, "max_pixels"),
    ],
)
def test_what_a_message_says_beside_its_content_is_refused(tmp_path: Path, message: dict[str, Any], key: str) -> None:
    with pytest.raises(DataFileError, match=f"a message has '{key}', which is not read .* take it out"):
        read_prompts(write(tmp_path, {"prompt": [message]}))
    answer = {"role": "assistant", "content": "b", "tool_calls": [{"id": "1"}], "refusal": None}
    with pytest.raises(DataFileError, match="chosen: a message has 'tool_calls'"):
        read_preferences(write(tmp_path, {"prompt": "a", "chosen": [answer], "rejected": "c"}))
    turn = {"from": "human", "value": "a", "tools": "x"}
    with pytest.raises(DataFileError, match="conversations: a message has 'tools'"):
        read_prompts(write(tmp_path, {"conversations": [turn]}))


def test_empty_values_beside_the_content_say_nothing(tmp_path: Path) -> None:
    part = {"type": "text", "text": "Which?", "image": None, "index": None}
    row = {"prompt": [{"role": "user", "content": [part], "tool_calls": [], "name": None}]}
    asks(read_prompts(write(tmp_path, row))[0], 0)


@pytest.mark.parametrize("prompt", ["", " \n", [said("user", "")], [said("system", "x"), said("user", " ")]])
def test_an_empty_prompt_needs_a_picture(tmp_path: Path, prompt: Any) -> None:
    with pytest.raises(DataFileError, match=":1: prompt: the user says and shows nothing"):
        read_prompts(write(tmp_path, {"prompt": prompt}))
    [shown] = read_prompts(write(tmp_path, {"prompt": prompt, "images": ["a.png"]}))
    assert len(shown.images) == 1


def test_a_prompt_that_ends_with_the_assistants_turn_asks_nothing(tmp_path: Path) -> None:
    turns = [said("user", "Which?"), said("assistant", "This.")]
    with pytest.raises(DataFileError, match=":1: prompt: ends with the assistant's turn"):
        read_prompts(write(tmp_path, {"prompt": turns}))
    [asked] = read_prompts(write(tmp_path, {"prompt": [*turns, said("user", "Why?")]}))
    assert [message.role for message in asked.messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize("last", [said("user", ""), said("user", " \n"), said("system", "")])
def test_a_prompt_whose_last_turn_is_empty_asks_nothing(tmp_path: Path, last: Any) -> None:
    turns = [said("user", "Which?"), said("assistant", "This."), last]
    with pytest.raises(DataFileError, match=":1: prompt: its last turn is empty, so nothing is asked"):
        read_prompts(write(tmp_path, {"prompt": turns, "images": ["a.png"]}))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": '[{"role": "user", "content": "a", "content": "b"}]'},
        {"ds_name": "x", "text": '{"question": "a", "question": "b", "chosen": "c", "rejected": "d"}'},
    ],
    ids=["messages", "RLHF-V"],
)
def test_json_in_a_text_says_nothing_twice(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataFileError, match=r":1: .*'(content|question)'.* twice; keep one of the two"):
        read_prompts(write(tmp_path, row))


def test_json_that_is_no_conversation_is_a_text(tmp_path: Path) -> None:
    text = '[{"a": 1, "a": 2}]'
    [asked] = read_prompts(write(tmp_path, {"prompt": text}))
    assert asked.messages[0].text == text


def test_pictures_of_a_question_are_in_one_place(tmp_path: Path) -> None:
    row = {"question": "Which?", "image": "", "image_path": "a.png"}
    asks(read_prompts(write(tmp_path, row))[0], 1)
    with pytest.raises(DataFileError, match="pictures in 'image_path' and in 'image_name'"):
        read_prompts(write(tmp_path, row | {"image_name": "b.png"}))


def test_an_index_of_an_image_part_is_its_place(tmp_path: Path) -> None:
    def row(*places: int) -> dict[str, Any]:
        content = [{"type": "image", "index": place, "text": None} for place in places]
        return {"prompt": [{"role": "user", "content": content}], "images": ["a.png"] * len(places)}

    assert len(read_prompts(write(tmp_path, row(0, 1)))) == 1
    with pytest.raises(DataFileError, match="'index' of image parts is not their order"):
        read_prompts(write(tmp_path, row(1, 0)))


def test_ids_have_a_bounded_length_and_repeated_ones_can_be_left_out(tmp_path: Path) -> None:
    """LLaVA's rows about one picture share its id."""
    with pytest.raises(DataFileError, match="id: 201 characters; give at most 200"):
        read_prompts(write(tmp_path, {"id": "x" * 201, "prompt": "a"}))
    path = write(tmp_path, *[{"id": "000000033471", "conversations": [{"from": "human", "value": "Which?"}]}] * 2)
    with pytest.raises(DataFileError, match=r"also used in line 1; .* --map ignore=id"):
        read_prompts(path)
    assert [prompt.id for prompt in read_prompts(path, "ignore=id")] == ["line-1", "line-2"]


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Be brief.", "question": "Which?", "chosen": "a", "rejected": "b"},
        {"system": "Be brief.", "prompt": "Which?", "chosen": [*ASKED, said("assistant", "a")], "rejected": "b"},
        {"system": "Be brief.", "messages": [*ASKED, said("assistant", "a")], "rejected_response": "b"},
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "Which?"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
    ],
)
def test_a_system_message_may_have_a_column(tmp_path: Path, row: dict[str, Any]) -> None:
    """Orca's pairs, LLaMA-Factory and ms-swift have it."""
    [found] = read_preferences(write(tmp_path, row))
    assert [(message.role, message.text) for message in found.prompt.messages] == [
        ("system", "Be brief."),
        ("user", "Which?"),
    ]
    assert pairs([found]) == [("a", "b")]


def test_rated_responses_in_rows_of_their_own_make_pairs(tmp_path: Path) -> None:
    """HelpSteer has a row for each response."""
    rated = [("a", 4), ("b", 2), ("c", 4), ("d", 3)]
    rows = [
        {"prompt": "Which?", "response": text, "helpfulness": score, "verbosity": 1, "coherence": 4}
        for text, score in rated
    ]
    other = {"prompt": "Other?", "response": "x", "helpfulness": 0}
    found = read_preferences(write(tmp_path, *rows, other))
    assert pairs(found) == [("a", "b"), ("c", "b"), ("a", "d"), ("d", "b"), ("c", "d")]
