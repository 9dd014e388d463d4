"""Conversations as text, in a checkpoint's chat template."""

from __future__ import annotations

import re
import traceback
from datetime import datetime
from typing import Any

from mor_core.errors import Invalid
from mor_core.printable import visible
from mor_core.special_tokens import escape_control
from mor_core.wire import Message, TextPart, chat_template_messages

_WRITTEN_PART = "{'type': 'text', "
"""Text that a template writes if it expects a string and gets a list."""
_SPACES = re.compile(r"\s+")
_TEMPLATE_FILE = "<template>"
"""Name of a template's source in tracebacks."""
_CLOCK = "strftime_now"
"""Function by which templates ask for the date."""
_TODAY = datetime(2024, 7, 26)
"""Date that they get, that of Llama's templates without a clock. With the true one, trainer and engine would read
different prompts after midnight, and a run could not be repeated."""
_SHOWN_CHARACTERS = 200
"""Longest part of a template that a message quotes."""


def chat_text(processor: Any, messages: tuple[Message, ...], *, cue: bool = True, parts: bool = True) -> str:
    """Return a conversation in the chat template of a processor or a tokenizer; words in it are no special tokens.

    ``cue``: end with the cue for the assistant's turn. ``parts``: give the template pictures and texts in order;
    without, texts only.

    Raises:
        Invalid: the template is broken, refuses the roles, or leaves a turn out.
    """
    plain = tuple(_without_control(processor, message) for message in messages)
    text = _filled(processor, plain, cue=cue, parts=parts)
    _check_complete(text, plain)
    return text


def _filled(processor: Any, messages: tuple[Message, ...], *, cue: bool, parts: bool) -> str:
    """Fill in the chat template. Some take a turn's text as a string, and would write or refuse a list of parts."""
    from jinja2 import TemplateError, TemplateSyntaxError

    in_parts = chat_template_messages(messages)
    strings = [
        turn if parts and message.image_hashes else turn | {"content": message.text}
        for turn, message in zip(in_parts, messages, strict=True)
    ]

    dated = {_CLOCK: _TODAY.strftime} if _CLOCK in str(processor.chat_template) else {}

    def render(turns: list[dict[str, Any]]) -> str:
        return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=cue, **dated))

    try:
        if not parts:
            return render(strings)
        try:
            text = render(in_parts)
        except (TypeError, TemplateError):  # a list where the template adds, strips or splits a string
            return render(strings)
        written = text.count(_WRITTEN_PART) > sum(message.text.count(_WRITTEN_PART) for message in messages)
        return render(strings) if written else text
    except TemplateSyntaxError as error:
        problem = visible(str(error.message))[:_SHOWN_CHARACTERS]
        raise Invalid(
            f"the model's chat template is broken in line {error.lineno}: {problem}; correct chat_template.jinja of the"
            " checkpoint, or chat_template in its tokenizer_config.json"
        ) from error
    except Exception as error:  # the code of a template may raise anything
        if type(error) is TemplateError:  # what a template raises itself
            roles = ", ".join(message.role for message in messages)
            raise Invalid(
                f"the model's chat template refuses a conversation of the turns {roles}; many templates take no system"
                " turn, which can be put before the first user turn's text, and want user and assistant to alternate"
            ) from error
        raise Invalid(
            f"the model's chat template fails{_line_of(error)} ({type(error).__name__}); correct it, or use another"
            " template"
        ) from error


def _line_of(error: Exception) -> str:
    """Return the line of a template that failed; without the message, which may quote the conversation."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _TEMPLATE_FILE]
    return f" in line {lines[-1]}" if lines else ""


def _check_complete(text: str, messages: tuple[Message, ...]) -> None:
    """Check that no words of system or user are lost; of earlier assistant turns, templates leave the reasoning out."""
    rendered = _SPACES.sub("", text)
    for message in messages:
        content = message.content
        texts = [content] if isinstance(content, str) else [part.text for part in content if isinstance(part, TextPart)]
        if message.role != "assistant" and not all(_SPACES.sub("", part) in rendered for part in texts):
            raise Invalid(
                f"the model's chat template leaves out words of the {message.role} turn; put them into a turn that it"
                " takes, or use another template"
            )


def _without_control(processor: Any, message: Message) -> Message:
    if isinstance(message.content, str):
        return message.model_copy(update={"content": escape_control(processor, message.content)})
    parts = tuple(
        part.model_copy(update={"text": escape_control(processor, part.text)}) if isinstance(part, TextPart) else part
        for part in message.content
    )
    return message.model_copy(update={"content": parts})
