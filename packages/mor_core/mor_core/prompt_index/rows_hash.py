"""Hash of the prompts of a data set, by which a resumed run knows that they are still those with which it began."""

from __future__ import annotations

import hashlib
import json

from mor_core.datafiles import Prompt
from mor_core.wire import Message, TextPart


class RowsHash:
    """Hash of what prompts say and show, in their order, whatever file, form or names their rows have."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, prompt: Prompt) -> None:
        turns = [(message.role, _content(message)) for message in prompt.messages]
        self._hash.update(json.dumps([prompt.domain, turns]).encode() + b"\n")

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _content(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return ["text", message.content]
    parts = ((part.type, part.text if isinstance(part, TextPart) else part.sha256) for part in message.content)
    return [word for part in parts for word in part]
