"""Data is read as it is published: each layout's rows give the prompts and preferences that their authors mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mor_core.datafiles import Preference, Prompt, read_preferences, read_prompts
from mor_core.errors import DataFileError
from mor_core.wire import ImagePart

from tests.core.published_rows import ASKED, PICTURE, PROMPTS_ONLY, PUBLISHED, png, said


def write(folder: Path, *rows: Any) -> Path:
    (folder / "a.png").write_bytes(png())
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(found: list[Preference]) -> list[tuple[str, str]]:
    return [(one.chosen, one.rejected) for one in found]


def asks(prompt: Prompt, pictures: int = 1) -> None:
    [message] = prompt.messages
    assert (message.role, message.text, len(message.image_hashes)) == ("user", "Which?", pictures)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("pictures", [{}, {"image": "a.png"}, {"images": [PICTURE]}, {"image": {"path": "a.png"}}])
def test_a_published_layout_is_read(tmp_path: Path, name: str, pictures: dict[str, Any]) -> None:
    row, expected = PUBLISHED[name]
    found = read_preferences(write(tmp_path, row | pictures))
    assert pairs(found) == expected
    for one in found:
        asks(one.prompt, len(pictures))
    [prompt] = read_prompts(tmp_path / "rows.jsonl")
    asks(prompt, len(pictures))


@pytest.mark.parametrize("name", PROMPTS_ONLY)
def test_data_of_prompts_is_read(tmp_path: Path, name: str) -> None:
    [prompt] = read_prompts(write(tmp_path, PROMPTS_ONLY[name] | {"images": ["a.png"]}))
    asks(prompt)
    assert prompt.domain == ("geo" if name == "verl" else None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parquet_gives_what_json_lines_give(tmp_path: Path, name: str) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row, expected = PUBLISHED[name]
    row = {column: value for column, value in row.items() if value not in ([], {})}
    if name == "scores":
        row = row | {"scores": [0.2, 0.9, 0.2]}  # a column of Parquet has one type
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "image": {"bytes": png()}}, row]), tmp_path / "rows.parquet")
    found = read_preferences(tmp_path / "rows.parquet")
    assert pairs(found) == expected * 2
    asks(found[0].prompt, 1)
    asks(found[-1].prompt, 0)


@pytest.mark.parametrize("column", ["image", "image_path", "image_name"])
def test_the_file_of_a_picture_counts_where_there_is_no_other(tmp_path: Path, column: str) -> None:
    (tmp_path / "1.png").write_bytes(png())
    row = {"question": "Which?", "chosen": "a", "rejected": "b", column: "1.png"}
    if column == "image":
        row["image_name"] = "gone.png"
    [found] = read_preferences(write(tmp_path, row))
    assert len(found.prompt.images) == 1


def test_unpaired_responses_of_a_prompt_make_pairs(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Which?", "completion": "bad", "label": False},
        {"prompt": "Other?", "completion": "bad", "label": False},
        {"prompt": "Which?", "completion": [said("assistant", "good")], "label": True},
        {"prompt": "Which?", "completion": "worse", "label": 0},
    ]
    found = read_preferences(write(tmp_path, *rows))
    assert pairs(found) == [("good", "bad"), ("good", "worse")]
    assert [one.prompt.id for one in found] == ["line-3", "line-4"]
    assert len(read_prompts(tmp_path / "rows.jsonl")) == 4


@pytest.mark.parametrize("kind", ["ranked", "unpaired", "rated"])
def test_the_pairs_of_a_prompt_are_bounded(tmp_path: Path, kind: str) -> None:
    texts = [f"answer {number}" for number in range(300)]
    rows: list[dict[str, Any]] = {
        "ranked": [{"prompt": "Which?", "responses": texts, "ranks": [*range(300)]}],
        "unpaired": [{"prompt": "Which?", "completion": text, "label": n == 0} for n, text in enumerate(texts)],
        "rated": [{"prompt": "Which?", "response": text, "helpfulness": n} for n, text in enumerate(texts)],
    }[kind]
    with pytest.raises(DataFileError, match="over 256 responses to one prompt; leave some of them out"):
        read_preferences(write(tmp_path, *rows))


def test_pictures_at_two_places_are_no_riddle(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        (tmp_path / name).write_bytes(png(colour))
    asked = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Which?"}]}]
    for columns in ({"images": ["a.png"]}, {"image": "a.png", "images": []}):
        [found] = read_prompts(write(tmp_path, {"prompt": asked} | columns))
        assert len(found.images) == 1
    with pytest.raises(DataFileError, match="other pictures in 'images' than in the parts of its prompt"):
        read_prompts(write(tmp_path, {"prompt": asked, "images": ["b.png"]}))


def test_ids_of_the_pairs_of_one_row_are_numbered(tmp_path: Path) -> None:
    row = {"id": 0, "prompt": "Which?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
    assert [one.prompt.id for one in read_preferences(write(tmp_path, row))] == ["0/1", "0/2", "0/3"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "responses": ["b", "c"]}, "the row has none; give one"),
        ({"prompt": "a", "responses": ["b"], "scores": [1, 2]}, "lists of one length"),
        ({"prompt": "a", "responses": ["b", "c"], "scores": [1, "high"]}, "scores: got 'high'; give a finite number"),
        ({"prompt": "a", "responses": ["b", "c"], "scores": [1, 1]}, "has no rows that give preferences"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "label: got 'good'; give true"),
        ({"prompt": "a", "completions": [{"response": "b", "annotations": {}}]}, "no aspect has a Rating"),
        ({"prompt": "a", "completions": {"response": ["b"], "annotations": []}}, "its lists differ in length"),
        ({"instruction": "a", "completions": [{"overall_score": 1}]}, "an entry has no 'response'"),
        ({"conversations": [{"from": "robot", "value": "x"}], "chosen": "a", "rejected": "b"}, "is from 'robot'"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "column 'chosen' is missing"),
        ({"chosen": "x a", "rejected": "y b"}, "no common beginning; add the column 'prompt'"),
        ({"chosen": [*ASKED, said("assistant", "a")], "rejected": "b"}, "differ in their form"),
        (
            {
                "chosen": "\n\nHuman: Which?\n\nAssistant: a\n\nHuman: Sure?\n\nAssistant: a",
                "rejected": "\n\nHuman: Which?\n\nAssistant: b",
            },
            "of 4 and 2 messages, differ from message 2 on; .*cut both .*or leave the row out",
        ),
        (
            {"prompt": "Which?", "chosen": [*ASKED, said("assistant", "a"), *ASKED], "rejected": "b"},
            "chosen: 3 messages that do not begin with the prompt; give the last one alone",
        ),
        ({"caption": "a cat", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": 1.0}, "compares pictures .*'jpg_0'"),
        ({"problem": "a", "answer": "b"}, "problems with answers are no preferences"),
        ({"query": "a", "response": "b", "rejected_response": "c"}, "--map prompt=query,chosen=response,rejected=reje"),
        (
            {"prompt": "a", "response_1": "b", "response_2": "c", "preference_strength": "x"},
            "preference_strength: got 'x'",
        ),
        (
            {
                "conversation_a": [*ASKED, said("assistant", "a")],
                "conversation_b": [*ASKED, said("assistant", "b")],
                "winner": 1,
            },
            "winner: got int",
        ),
        ({"chosen": ASKED, "rejected": ASKED}, "a conversation has 1 message; give a question and an answer"),
        (
            {"prompt": [said("system", "x")], "chosen": "b", "rejected": "c", "system": "y"},
            "a system message is in 'sy",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "chosen-rating": 1, "rejected-rating": 2},
            "chosen-rating is below rejected-rating",
        ),
        ({"ds_name": "d", "text": "no JSON"}, "text: not a JSON object"),
        ({"data_source": "d", "prompt": "a"}, "verl's data has no preferences"),
        ({"messages": [*ASKED, said("assistant", "a")]}, "add the worse response"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1, "score_rejected": 2},
            "score_chosen is below score_rejected",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "image": "a.png", "images": ["a.png"]},
            "in 'image' and in 'im",
        ),
        (
            {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2], "colour": 1},
            "unknown column 'colour'; .* ignore=colo",
        ),
    ],
)
def test_a_row_that_does_not_keep_its_layout_is_named(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataFileError, match=rf"rows\.jsonl:1: .*{problem}"):
        read_preferences(write(tmp_path, row))


@pytest.mark.parametrize(
    ("prompt", "images", "kinds"),
    [
        ("<image>\nWhich?", 1, ["image", "Which?"]),
        ("Compare <image> and <image>.", 2, ["Compare ", "image", " and ", "image", "."]),
        ([said("system", "Look at <image>s."), said("user", "<image><image>")], 2, ["image", "image"]),
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "an <image> tag"}]}],
            1,
            ["image", "an <image> tag"],
        ),
    ],
)
def test_placeholders_are_the_places_of_pictures(tmp_path: Path, prompt: Any, images: int, kinds: list[str]) -> None:
    [row] = read_prompts(write(tmp_path, {"prompt": prompt, "images": ["a.png"] * images}))
    content = row.messages[-1].content
    assert [
        "image" if isinstance(part, ImagePart) else part.text for part in content if not isinstance(part, str)
    ] == kinds


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PICTURE}},
        {"type": "image", "image": "a.png"},
        {"type": "image", "image": PICTURE, "text": None},
    ],
)
def test_image_parts_may_carry_their_pictures(tmp_path: Path, part: dict[str, Any]) -> None:
    row = {"prompt": [{"role": "user", "content": [part, {"type": "text", "text": "Which?"}]}]}
    [found] = read_prompts(write(tmp_path, row))
    asks(found)
    assert list(found.images.values()) == [png()]


@pytest.mark.parametrize("images", [0, 2])
def test_placeholders_without_their_pictures_are_an_error(tmp_path: Path, images: int) -> None:
    with pytest.raises(DataFileError, match=rf":1: prompt: 1 placeholders <image> for {images} images; give as many"):
        read_prompts(write(tmp_path, {"prompt": "<image> Which?", "images": ["a.png"] * images}))


def test_columns_are_mapped_and_ignored(tmp_path: Path) -> None:
    row = {"query": "Which?", "picture": "a.png", "good": "a", "bad": "b", "source": "web", "licence": "MIT"}
    names = "prompt=query, images=picture,chosen=good,rejected=bad,ignore=source,ignore=licence"
    [found] = read_preferences(write(tmp_path, row), names)
    asks(found.prompt)
    assert pairs([found]) == [("a", "b")]
    with pytest.raises(DataFileError, match="unknown column 'licence'"):
        read_preferences(tmp_path / "rows.jsonl", names.rpartition(",")[0])
    with pytest.raises(DataFileError, match=r":1: map: the row has two columns for 'prompt'; ignore one"):
        read_prompts(write(tmp_path, {"prompt": "a", "query": "b"}), "prompt=query")


@pytest.mark.parametrize("names", ["prompt", "=a", "prompt=", "prompt=a,prompt=b", "prompt=a,id=a", "id=a,ignore=a"])
def test_a_map_is_checked(tmp_path: Path, names: str) -> None:
    with pytest.raises(ValueError, match=r"map: .*(write wanted=column|give each name once)"):
        read_prompts(write(tmp_path, {"prompt": "a"}), names)


def test_all_unknown_columns_are_named_with_the_map_that_ignores_them(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_by": "x", "licence": 5, "split": "y"}
    path = write(tmp_path, row)
    with pytest.raises(DataFileError, match="unknown columns 'chosen_by', 'licence', 'split'") as refused:
        read_preferences(path)
    advised = str(refused.value).partition("out by --map ")[2].partition(" ")[0]
    assert pairs(read_preferences(path, advised)) == [("b", "c")]


def test_unpaired_responses_match_by_the_content_of_their_pictures(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    rows = [
        {"prompt": "Which?", "completion": text, "label": good, "images": [{"bytes": png(), "path": name}]}
        for text, good, name in (("a", True, "1.png"), ("b", False, "2.png"))
    ]
    path = tmp_path / "rows.parquet"
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    assert pairs(read_preferences(path)) == [("a", "b")]
