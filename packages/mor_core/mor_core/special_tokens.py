"""Special tokens in texts: none comes from anybody's words, and the one that begins a sequence is there once.

Trainer, engines and reward models share this module, so that a text has the same tokens in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

VISION_TOKEN = re.compile(r"image|img|video|vision|<row_\d+_col_\d+>", re.IGNORECASE)
"""Text of added tokens that stand for pictures or videos, or stand around them."""
_MARKS = ("image_token", "video_token", "audio_token")
"""Attributes of processors that name the text which a picture, video or sound replaces."""
_CONTENT = re.compile(r"\w+|</?\w+>")
"""Words, and markup such as ``<think>``, which people write as content, although templates name them."""
_PATTERNS: WeakKeyDictionary[Any, re.Pattern[str]] = WeakKeyDictionary()
"""Pattern of special tokens by tokenizer; a tokenizer has up to thousands of them."""


def escape_control(processor: Any, text: str) -> str:
    """Return the text with a space inside each special token, so that nobody's words end a turn or stand for a picture.

    ``processor``: a processor with its tokenizer, or a tokenizer. Special are the tokenizer's special tokens, those
    that stand for pictures, and those that the chat template writes, whether the tokenizer calls them special or not.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    pattern = _PATTERNS.get(tokenizer)
    if pattern is None:
        pattern = _PATTERNS[tokenizer] = _starts_of(_control_tokens(processor, tokenizer))
    return pattern.sub(r"\g<0> ", text)


def _control_tokens(processor: Any, tokenizer: Any) -> set[str]:
    added = tokenizer.added_tokens_decoder.values()
    template = str(getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None) or "")
    tokens = {
        token.content
        for token in added
        if token.special
        or VISION_TOKEN.search(token.content)
        or (token.content.strip() and token.content in template and not _CONTENT.fullmatch(token.content))
    }
    tokens |= set(tokenizer.all_special_tokens)
    tokens |= {str(token) for name in _MARKS if (token := getattr(processor, name, None)) is not None}
    return {token for token in tokens if len(token.strip()) > 1}


def _starts_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of the first characters of tokens, also of those that begin inside another one."""
    rests: dict[str, list[str]] = {}
    for token in sorted(tokens):
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile("|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()) or r"(?!)")


def adds_bos(tokenizer: Any) -> bool:
    """Return whether the tokenizer begins a text with the beginning-of-sequence token by default."""
    return tokenizer.bos_token is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def begin_once(tokenizer: Any, text: str) -> str:
    """Return a text in which the beginning-of-sequence token comes first, once, if its tokenizer or the text begins so.

    The text is to be encoded without special tokens.
    """
    rest = without_bos(tokenizer, text)
    return text if rest == text and not adds_bos(tokenizer) else tokenizer.bos_token + rest


def without_bos(tokenizer: Any, text: str) -> str:
    """Return the text without the beginning-of-sequence tokens that it begins with."""
    bos = tokenizer.bos_token
    while bos and (begun := text.lstrip()).startswith(bos):
        text = begun.removeprefix(bos)
    return text
