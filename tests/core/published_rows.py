"""Rows as published data sets have them, with the pairs or prompts that they mean."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image


def png(colour: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(content, "PNG")
    return content.getvalue()


PICTURE = "data:image/png;base64," + base64.b64encode(png()).decode()


def ratings(*values: str) -> dict[str, Any]:
    return {f"aspect {place}": {"Rating": value, "Rationale": "because"} for place, value in enumerate(values)}


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


ASKED = [said("user", "Which?")]
PUBLISHED: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "explicit prompt": ({"prompt": "Which?", "chosen": "a", "rejected": "b"}, [("a", "b")]),
    "conversational": (
        {"prompt": ASKED, "chosen": [said("assistant", "a")], "rejected": [said("assistant", "b")]},
        [("a", "b")],
    ),
    "binarised UltraFeedback": (
        {
            "prompt": "Which?",
            "prompt_id": "x",
            "chosen": [*ASKED, said("assistant", "a")],
            "rejected": [*ASKED, said("assistant", "b")],
            "messages": [],
            "score_chosen": 8.5,
            "score_rejected": 7,
        },
        [("a", "b")],
    ),
    "implicit prompt": (
        {"chosen": [*ASKED, said("assistant", "a")], "rejected": [*ASKED, said("assistant", "b")]},
        [("a", "b")],
    ),
    "implicit prompt, strings": ({"chosen": "Which? a", "rejected": "Which? b"}, [("a", "b")]),
    "Anthropic HH": (
        {"chosen": "\n\nHuman: Which?\n\nAssistant: a", "rejected": "\n\nHuman: Which?\n\nAssistant: b"},
        [("a", "b")],
    ),
    "RLAIF-V": (
        {"ds_name": "d", "question": "Which?", "chosen": "a", "rejected": "b", "origin_dataset": "o", "idx": 0},
        [("a", "b")],
    ),
    "RLHF-V": (
        {"ds_name": "d", "text": json.dumps({"question": "Which?", "chosen": "a", "rejected": "b"}), "idx": 0},
        [("a", "b")],
    ),
    "UltraFeedback": (
        {
            "source": "s",
            "instruction": "Which?",
            "models": ["m", "n", "o"],
            "completions": [
                {"model": "m", "response": "b", "overall_score": 5.0},
                {"model": "n", "response": "a", "overall_score": 7.5},
                {"model": "o", "response": "c", "overall_score": 5},
            ],
            "correct_answers": ["None"],
        },
        [("a", "b"), ("a", "c")],
    ),
    "UltraFeedback, rated by aspect": (
        {
            "instruction": "Which?",
            "completions": [
                {"response": "b", "annotations": ratings("1", "2", "N/A")},
                {"response": "a", "annotations": ratings("5", "4")},
            ],
        },
        [("a", "b")],
    ),
    "VLFeedback": (
        {
            "prompt": "Which?",
            "models": ["m", "n", "o"],
            "completions": {  # as the library datasets stores a list of objects
                "response": ["c", "a", "b"],
                "annotations": [ratings("1", "1"), ratings("5", "5"), ratings("2", "5")],
                "model": ["m", "n", "o"],
            },
        },
        [("a", "b"), ("a", "c"), ("b", "c")],
    ),
    "ranks": ({"prompt": "Which?", "responses": ["b", "a"], "ranks": [2, 1]}, [("a", "b")]),
    "scores": (
        {"prompt": "Which?", "responses": ["b", "a", "c"], "scores": [0.2, "0.9", 0.2]},
        [("a", "b"), ("a", "c")],
    ),
    "Nectar": (
        {
            "prompt": "\n\nHuman: Which?\n\nAssistant: ",
            "answers": [{"answer": "b", "rank": 2.0, "model": "m"}, {"answer": "a", "rank": 1.0, "model": "n"}],
            "turns": 1,
        },
        [("a", "b")],
    ),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Which?"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        [("a", "b")],
    ),
    "Skywork": (
        {
            "chosen": [*ASKED, said("assistant", "a")],
            "rejected": [*ASKED, said("assistant", "b")],
            "source": "magpie_ultra",
        },
        [("a", "b")],
    ),
    "Tulu 3": (
        {
            "source": "s",
            "prompt": "Which?",
            "chosen": [*ASKED, said("assistant", "a")],
            "chosen_model": "m",
            "chosen_rating": 5,
            "rejected": [*ASKED, said("assistant", "b")],
            "rejected_model": "n",
            "rejected_rating": 3,
        },
        [("a", "b")],
    ),
    "UltraFeedback, cleaned by Argilla": (
        {
            "source": "s",
            "prompt": "Which?",
            "chosen": [*ASKED, said("assistant", "a")],
            "chosen-rating": 5.0,
            "chosen-model": "m",
            "rejected": [*ASKED, said("assistant", "b")],
            "rejected-rating": 1.0,
            "rejected-model": "n",
        },
        [("a", "b")],
    ),
    "MMPR": ({"question": "Which?", "chosen": "a", "rejected": "b"}, [("a", "b")]),
    "SPA-VL": (
        {
            "question": "Which?",
            "chosen": "a",
            "rejected": "b",
            "class1": "Toxicity",
            "class2": "Hate",
            "class3": "Slur",
        },
        [("a", "b")],
    ),
    "HelpSteer 2, preferences": (
        {
            "split": "train",
            "prompt": "Which?",
            "response_1": "b",
            "response_2": "a",
            "preference_strength": 2,
            "preference_statement": "Response 2 is better.",
            "preference_elaboration": "",
            "three_most_similar_preferences": [],
            "all_preferences_unprocessed": [],
        },
        [("a", "b")],
    ),
    "HelpSteer 3": (
        {
            "domain": "general",
            "language": "english",
            "context": ASKED,
            "response1": "a",
            "response2": "b",
            "overall_preference": -3,
            "individual_preference": [],
        },
        [("a", "b")],
    ),
    "WildVision arena": (
        {
            "question_id": "q",
            "model_a": "m",
            "model_b": "n",
            "conversation_a": [*ASKED, said("assistant", "b")],
            "conversation_b": [*ASKED, said("assistant", "a")],
            "language": "English",
            "turn": 1,
            "anony": True,
            "winner": "model_b",
            "judge": "user",
            "tstamp": 1.0,
        },
        [("a", "b")],
    ),
    "ms-swift": ({"messages": [*ASKED, said("assistant", "a")], "rejected_response": "b"}, [("a", "b")]),
    "ms-swift, several": (
        {"messages": [*ASKED, said("assistant", "a")], "rejected_response": ["b", "c"]},
        [("a", "b"), ("a", "c")],
    ),
    "ms-swift, several messages": (
        {
            "messages": [*ASKED, said("assistant", "a")],
            "rejected_messages": [[*ASKED, said("assistant", "b")], [*ASKED, said("assistant", "c")]],
        },
        [("a", "b"), ("a", "c")],
    ),
    "ms-swift, messages": (
        {
            "messages": [*ASKED, said("assistant", "a")],
            "rejected_messages": [*ASKED, said("assistant", "b")],
        },
        [("a", "b")],
    ),
}
PROMPTS_ONLY: dict[str, dict[str, Any]] = {
    "TRL": {"prompt": ASKED},
    "verl": {"data_source": "geo", "prompt": ASKED, "ability": "maths", "reward_model": {}, "extra_info": {"index": 0}},
    "LLaVA": {"conversations": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "a"}]},
    "ms-swift": {"messages": [*ASKED, said("assistant", "a")]},
    "geometry3k": {"problem": "Which?", "answer": "a"},
    "MMK12": {"question": "Which?", "answer": "a"},
    "MM-Eureka": {"prompt": json.dumps(ASKED)},
}
