"""Text from outside, made safe for a terminal: no control character of it reaches the terminal as such.

A client's name, an error of a service or a path may hold escape sequences, which clear a screen, rewrite earlier lines
or type for the user, and characters that reorder a line. Python's ``str.isprintable`` refuses all of them: C0, DEL, C1,
bidirectional overrides, separators of lines, unassigned and private characters, lone surrogates.
"""

from __future__ import annotations

import json
import re

_NOT_ASCII = re.compile(r"[^\x20-\x7e]+")


def visible(text: str) -> str:
    """Replace each character that is not printable by its escape, as in ``\\x1b``. Line breaks count as such."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escape(one) for one in text)


def visible_lines(text: str) -> str:
    """Replace each character that is not printable, apart from line feeds and tabs."""
    return "\n".join("\t".join(visible(cell) for cell in line.split("\t")) for line in text.split("\n"))


def visible_json(document: str) -> str:
    """Replace the characters of a JSON document that are not printable by JSON's escapes; its value stays the same."""
    return _NOT_ASCII.sub(lambda found: found[0] if found[0].isprintable() else _json_escape(found[0]), document)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(text: str) -> str:
    escaped = "".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)
    return escaped.replace("\x7f", "\\u007f")  # json.dumps escapes what is not ASCII, and DEL is
