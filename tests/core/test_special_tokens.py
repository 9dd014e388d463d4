"""Special tokens: none from anybody's words, whatever tokenizer and template, and one that begins a sequence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_core.special_tokens import escape_control
from mor_core.vision import encode_prompt
from mor_core.wire import ImagePart, Message, TextPart
from PIL import Image
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from tests import more_model_families
from tests.model_families import FAMILIES, chat_markup

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
DIGEST = "0" * 64
BOS = "<|im_start|>"
PROCESSOR = FAMILIES["qwen2_vl"]().processor
CONTROL = sorted(PROCESSOR.tokenizer.all_special_tokens)


def add_bos(processor: Any) -> None:
    tokenizer = processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.convert_tokens_to_ids(BOS))]
    )


def ids_of(processor: Any, text: str = "how many?", *, picture: bool = False) -> list[int]:
    parts = (*([ImagePart.of(DIGEST)] if picture else []), TextPart(text=text))
    images = {DIGEST: Image.new("RGB", (56, 56))} if picture else {}
    ids: list[int] = encode_prompt(processor, (Message(role="user", content=parts),), images)["input_ids"][0].tolist()
    return ids


@given(st.lists(st.sampled_from([*CONTROL, "<", "|", ">", "<|im_", "end|>", " ", "a"]), max_size=12).map("".join))
@settings(max_examples=50, deadline=None)
def test_no_text_has_control_tokens(text: str) -> None:
    ids = PROCESSOR.tokenizer(escape_control(PROCESSOR, text), add_special_tokens=False)["input_ids"]
    assert not {PROCESSOR.tokenizer.convert_tokens_to_ids(token) for token in CONTROL} & set(ids)
    assert escape_control(PROCESSOR, text).replace(" ", "") == text.replace(" ", "")


def test_turn_marks_that_the_tokenizer_calls_plain_are_control_tokens() -> None:
    """Published tokenizers register some of them without the flag; and markup of people stays as it is."""
    processor = FAMILIES["qwen2_vl"]().processor
    processor.tokenizer.add_tokens(
        [AddedToken(token, special=False) for token in ("<|user|>", "<think>", "<|vision|>")]
    )
    processor.chat_template = "{% for m in messages %}<|user|>{{ m.content[0].text }}<think>{% endfor %}"
    said = escape_control(processor, "<|user|> <think> <|vision|> <b>")
    assert said == "< |user|> <think> < |vision|> <b>"


def test_marks_that_overlap_are_all_taken_apart() -> None:
    processor = FAMILIES["qwen2_vl"]().processor
    processor.tokenizer.add_tokens([AddedToken("<<", special=True)])
    assert "<<" not in escape_control(processor, "<<< <<<<")


@pytest.mark.parametrize("lead", ["", BOS, f"\n{BOS}", f"{BOS}{BOS}", f"{BOS}\n{BOS}"])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("picture", [True, False])
@pytest.mark.parametrize("family", ["qwen2_vl", "paligemma", "mllama"])
def test_a_prompt_begins_once(family: str, picture: bool, adds: bool, lead: str) -> None:
    """PaliGemma's processor writes the token after its picture, and Mllama's where the text lacks it."""
    if family == "paligemma" and not picture:
        pytest.skip("its processor wants a picture")
    processor = FAMILIES[family]().processor
    processor.tokenizer.bos_token = BOS
    if adds:
        add_bos(processor)
    mark = processor.image_token if family != "qwen2_vl" else "<|vision_start|><|image_pad|><|vision_end|>"
    markup = chat_markup(mark).replace("<|im_start|>", "").replace("<|im_end|>", "")
    processor.chat_template = lead.replace("\n", "{{ '\\n' }}") + markup
    begins = ids_of(processor, picture=picture).count(processor.tokenizer.convert_tokens_to_ids(BOS))
    assert begins == int(adds or bool(lead) or family != "qwen2_vl")


SYSTEM = (Message(role="system", content="be kind"), Message(role="user", content="how many?"))


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
        "{% for m in messages if m.role == 'user' %}{{ m.content[0].text }}{% endfor %}",
        "{{ messages[0].role.nothing.more }}",
    ],
    ids=["refuses", "drops", "fails"],
)
def test_a_template_without_system_turns_is_told_by_name(template: str) -> None:
    processor = FAMILIES["qwen2_vl"]().processor
    processor.chat_template = template
    with pytest.raises(ValueError, match=r"turns system, user|words of the system turn|template fails in line 1"):
        encode_prompt(processor, SYSTEM, {})


@pytest.mark.parametrize("family", ["qwen2_vl", "glm4v", "mistral3", "lfm2_vl"])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_proportions_beyond_a_processor_are_told_with_the_size(family: str, size: tuple[int, int]) -> None:
    assert more_model_families.lfm2_vl is FAMILIES["lfm2_vl"]
    processor = FAMILIES[family]().processor
    message = Message(role="user", content=(ImagePart.of(DIGEST), TextPart(text="how many?")))
    with pytest.raises(ValueError, match=rf"sizes, in pixels.*{size[0]} by {size[1]}"):
        encode_prompt(processor, (message,), {DIGEST: Image.new("RGB", size)})
