"""Processing of a prompt into token ids and pixel values, the same in every process.

Engine and trainer must see the same pixels to the bit, whatever else is installed, so the image processor is the PIL
one. transformers is imported on use, as only processes that hold a model need it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

from mor_core.errors import Invalid
from mor_core.failures import describe_failure, quote_failure
from mor_core.folder_links import check_model_folder
from mor_core.wire import Message, TextPart, chat_template_messages, image_hashes

_MARKS = ("image_token", "video_token", "audio_token")
"""Attributes of processors that name the text which a picture, video or sound replaces."""
_WRITTEN_PART = "{'type': 'text', "
"""Text that a template writes if it expects a string and gets a list."""
_CONTROL: WeakKeyDictionary[Any, re.Pattern[str]] = WeakKeyDictionary()
"""Pattern of special tokens by tokenizer; a tokenizer has up to thousands of them."""


def load_processor(model: str) -> Any:
    """Load the checkpoint's ``AutoProcessor`` with its PIL image processor.

    Raises:
        Invalid: there is no processor under that path or name, or a link leads out of the folder.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    check_model_folder(model)
    try:
        processor = AutoProcessor.from_pretrained(model)
        processor.image_processor = AutoImageProcessor.from_pretrained(model, backend="pil")
        tokenizer = processor.tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise Invalid(
            f"model {model!r}: its processor cannot be loaded ({quote_failure(error)}); give an image-text-to-text"
            " checkpoint that has its processor files beside the weights"
        ) from error
    processor.chat_template = processor.chat_template or tokenizer.chat_template
    if processor.chat_template is None:
        raise Invalid(
            f"model {model!r} ({type(processor).__name__}) has no chat template; add chat_template.jinja to the"
            " checkpoint, or use one that was tuned on conversations"
        )
    if tokenizer.eos_token_id is None:
        raise Invalid(f"model {model!r}: its tokenizer has no end-of-sequence token; set eos_token in its files")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def prompt_text(processor: Any, messages: tuple[Message, ...]) -> str:
    """Return the conversation in the checkpoint's chat template, with the cue for the assistant's turn.

    It begins with a beginning-of-sequence token once, if the checkpoint's tokenizer adds one, whether its template
    writes it or not.
    """
    plain = tuple(_without_control(processor, message) for message in messages)
    text = _rendered(processor, plain)
    bos = processor.tokenizer.bos_token
    added = bos is not None and processor.tokenizer("a")["input_ids"][0] == processor.tokenizer.bos_token_id
    return bos + text if added and not text.startswith(bos) else text


def _rendered(processor: Any, messages: tuple[Message, ...]) -> str:
    """Fill in the chat template. Some take a turn's text as a string, and would write or refuse a list of parts."""
    parts = chat_template_messages(messages)
    strings = [
        turn if message.image_hashes else turn | {"content": message.text}
        for turn, message in zip(parts, messages, strict=True)
    ]

    def render(turns: list[dict[str, Any]]) -> str:
        return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    try:
        text = render(parts)
    except TypeError:  # a list where the template adds a string
        return render(strings)
    written = text.count(_WRITTEN_PART) > sum(message.text.count(_WRITTEN_PART) for message in messages)
    return render(strings) if written else text


def _without_control(processor: Any, message: Message) -> Message:
    if isinstance(message.content, str):
        return message.model_copy(update={"content": escape_control(processor, message.content)})
    parts = tuple(
        part.model_copy(update={"text": escape_control(processor, part.text)}) if isinstance(part, TextPart) else part
        for part in message.content
    )
    return message.model_copy(update={"content": parts})


def escape_control(processor: Any, text: str) -> str:
    """Return the text with a space inside each special token, so that nobody's words end a turn or stand for a picture.

    Special are the tokenizer's special tokens, and those that the processor replaces by pictures.
    """
    pattern = _CONTROL.get(processor.tokenizer)
    if pattern is None:
        special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
        special |= {str(token) for name in _MARKS if (token := getattr(processor, name, None)) is not None}
        ordered = sorted((token for token in special if len(token) > 1), key=len, reverse=True)
        pattern = _CONTROL[processor.tokenizer] = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
    return pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def encode_prompt(processor: Any, messages: tuple[Message, ...], images: Mapping[str, Image.Image]) -> dict[str, Any]:
    """Return the model's inputs for a conversation as tensors: ``input_ids`` ``[1, prompt]`` and its images' inputs.

    ``images``: by hash, decoded by ``mor_core.images.decode``. The template writes every special token, so the
    tokenizer adds none.

    Raises:
        Invalid: the processor refuses a text or a picture, such as one that is a hundred times wider than high.
    """
    in_order = [images[digest] for digest in image_hashes(messages)]
    try:
        outputs = processor(
            text=[prompt_text(processor, messages)],
            images=[in_order] if in_order else None,
            add_special_tokens=False,
            return_tensors="pt",
        )
    except Exception as error:  # each family's processor and chat template refuse in their own ways
        raise Invalid(
            f"the model's processor does not take this prompt ({describe_failure(error)}); check its roles, its number"
            " of pictures, and pictures with extreme proportions"
        ) from error
    # Some processors return bfloat16 (Llama 4), whatever type the model computes in.
    return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}
