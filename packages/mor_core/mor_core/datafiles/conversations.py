"""Conversations and responses of data files, in the shapes that the ecosystem writes, as messages of the wire."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from mor_core.datafiles.layouts.message_keys import check_keys
from mor_core.datafiles.sources import strict_json
from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.wire import ImagePart, Message, TextPart

_PLACEHOLDER = "<image>"
"""Place of a picture in a text, in data for verl, ms-swift and LLaVA and in ShareGPT files."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SHOWN_CHARACTERS = 60
_MESSAGE_KEYS = frozenset({"role", "content"})
_IMAGE_KEYS = frozenset({"type", "image", "image_url", "index"})
_TEXT_KEYS = frozenset({"type", "text", "index"})


def conversation(prompt: Any, hashes: Sequence[str]) -> tuple[Message, ...]:
    """Return the messages of a prompt cell, with the images named by ``hashes`` in their places.

    The places are the image parts of the messages; without any, the placeholders in the texts of users; without any,
    before the first user text.

    Raises:
        Invalid: the cell is no conversation, or has other places than images.
    """
    turns = _turns(prompt)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise Invalid("prompt: not a conversation; give a string or a non-empty list of messages")
    for turn in turns:
        check_keys(turn, _MESSAGE_KEYS, "prompt")
    contents = [_parts(turn) for turn in turns]
    if not any(_is_image(part) for parts in contents for part in parts):
        contents = _placed(turns, contents, len(hashes))
    unplaced = list(hashes)
    messages: list[Message] = []
    for turn, content in zip(turns, contents, strict=True):
        parts = tuple(_read_part(part, unplaced, len(hashes)) for part in content)
        try:
            messages.append(Message(role=turn.get("role", ""), content=parts))
        except ValidationError as error:
            raise Invalid(f"prompt: {describe(error)}") from error
    if not any(message.role == "user" and (message.image_hashes or message.text.strip()) for message in messages):
        raise Invalid("prompt: the user says and shows nothing; give a text or a picture, or leave the row out")
    if not messages[-1].image_hashes and not messages[-1].text.strip():
        raise Invalid("prompt: its last turn is empty, so nothing is asked; give it a text, or leave the row out")
    if messages[-1].role == "assistant":
        raise Invalid("prompt: ends with the assistant's turn, so nothing is asked; end it with the user's")
    if unplaced:
        raise Invalid(f"images: {len(unplaced)} more than the prompt's image parts; add a part for each or drop them")
    return tuple(messages)


def _read_part(part: Any, unplaced: list[str], images: int) -> TextPart | ImagePart:
    """Return a part of a message; an image part takes the first hash of ``unplaced`` away.

    Raises:
        Invalid: it is no part, or there is no picture left for it.
    """
    if _is_image(part):
        check_keys(part, _IMAGE_KEYS, "prompt")
        if not unplaced:
            raise Invalid("prompt: more image parts than 'images'; list one file for each")
        if part.get("index") not in (None, images - len(unplaced)):
            raise Invalid("prompt: the 'index' of image parts is not their order; list the images in it")
        return ImagePart.of(unplaced.pop(0))
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        check_keys(part, _TEXT_KEYS, "prompt")
        check_decoded(part["text"], "prompt")
        return TextPart(text=part["text"])
    shown = str(part)[:_SHOWN_CHARACTERS]
    raise Invalid(f"prompt: unknown message part {shown}; use {{type: text}} or {{type: image}}")


def own_pictures(prompt: Any) -> list[Any]:
    """Return the picture cells that image parts carry themselves, as OpenAI's and Qwen's messages do."""
    found = []
    turns = _turns(prompt)
    for turn in turns if isinstance(turns, list) else []:
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in filter(_is_image, content if isinstance(content, list) else []):
            image, url = part.get("image"), part.get("image_url")
            named = url.get("url") if isinstance(url, dict) else url
            found.append(named if image is None or (isinstance(image, str) and not image) else image)
    return [cell for cell in found if cell is not None]


def response(cell: Any, column: str, prompt: Any = None) -> str:
    """Return the text of a response: a string, an assistant message, or a conversation that begins with ``prompt``.

    Raises:
        Invalid: the cell is none of these, or empty.
    """
    if isinstance(cell, list) and len(cell) > 1 and all(isinstance(turn, dict) and "role" in turn for turn in cell):
        turns = _turns(prompt)
        if not isinstance(turns, list) or _texts(_without_system(cell[:-1])) != _texts(_without_system(turns)):
            raise Invalid(f"{column}: {len(cell)} messages that do not begin with the prompt; give the last one alone")
        cell = cell[-1:]
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, dict) and "content" in cell:
        check_keys(cell, _MESSAGE_KEYS, column)
        if cell.get("role", "assistant") != "assistant":
            raise Invalid(f"{column}: the last message is not the assistant's; give the response alone")
        cell = cell["content"]
    if isinstance(cell, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in cell):
        cell = "\n".join(str(part.get("text", "")) for part in cell)
    if not isinstance(cell, str) or not cell.strip():
        raise Invalid(f"{column}: not a response; give a non-empty string or one assistant message")
    if column == "chosen":  # a model's own answer, which is mostly rejected, may end within a character
        check_decoded(cell, column)
    return cell


def check_decoded(text: str, column: str) -> None:
    """Refuse a text with the sign that stands for bytes which were not UTF-8: its characters are lost.

    Raises:
        Invalid: it has that sign.
    """
    if _REPLACEMENT in text:
        raise Invalid(
            f"{column}: character {text.index(_REPLACEMENT) + 1} is U+FFFD, the sign for one that was lost when a text "
            "was read as UTF-8 and was not; convert the original, as by: iconv -f LATIN1 -t UTF-8 OLD > NEW"
        )


def _turns(prompt: Any) -> Any:
    """Return the messages of a prompt cell, which may be one user's text, or messages as JSON text.

    Raises:
        Invalid: a message in JSON has a key twice.
    """
    if not isinstance(prompt, str):
        return prompt
    turns = None
    if prompt.startswith('[{"'):
        with suppress(ValueError, RecursionError):
            turns = json.loads(prompt)
    if not isinstance(turns, list) or not all(map(_is_message, turns)):
        return [{"role": "user", "content": prompt}]
    try:
        return strict_json.load(prompt)
    except strict_json.DuplicateName as error:
        name = str(error)[:_SHOWN_CHARACTERS]
        raise Invalid(f"prompt: a message has {name!r} twice; keep one of the two") from error


def _is_message(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.keys() >= {"role", "content"}


def _without_system(turns: list[Any]) -> list[Any]:
    return [turn for turn in turns if not (isinstance(turn, dict) and turn.get("role") == "system")]


def _placed(turns: Sequence[dict[str, Any]], contents: list[list[Any]], images: int) -> list[list[Any]]:
    """Return the parts with image parts where the placeholders are, or before the first user text."""
    asked = [place for place, turn in enumerate(turns) if turn.get("role") == "user"]
    found = sum(_text(part).count(_PLACEHOLDER) for place in asked for part in contents[place])
    if found:
        if found != images:
            raise Invalid(
                f"prompt: {found} placeholders {_PLACEHOLDER} for {images} images; give as many images as placeholders"
            )
        return [
            [piece for part in parts for piece in _split(part)] if place in asked else parts
            for place, parts in enumerate(contents)
        ]
    if images and asked:
        contents[asked[0]] = [{"type": "image"}] * images + contents[asked[0]]
    return contents


def _split(part: Any) -> list[Any]:
    """Split a text part at its placeholders; line breaks around these belong to them."""
    if _PLACEHOLDER not in _text(part):
        return [part]
    pieces: list[Any] = []
    for place, text in enumerate(re.split(rf"\n*{_PLACEHOLDER}\n*", part["text"])):
        if place:
            pieces.append({"type": "image"})
        if text.strip():
            pieces.append({"type": "text", "text": text})
    return pieces


def _parts(turn: dict[str, Any]) -> list[Any]:
    content = turn.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise Invalid(f"prompt: got message content of type {type(content).__name__}; give a string or a list of parts")
    return list(content)


def _text(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    return text if isinstance(text, str) else ""


def _texts(turns: Sequence[Any]) -> list[tuple[Any, str]] | None:
    """Return roles and texts, to compare conversations whose contents have different shapes."""
    if not all(isinstance(turn, dict) and isinstance(turn.get("content"), str | list) for turn in turns):
        return None
    return [(turn.get("role"), "".join(map(_text, _parts(turn)))) for turn in turns]


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")
