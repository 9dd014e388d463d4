"""Keyed hashes of questions and answers, and the noise that follows from them.

The key is a secret of this service, so nobody else can compute a hash from a guessed text, or the noise of an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

from mor_core import atomic
from mor_core.errors import Invalid
from mor_core.plain_files import read_plain_file
from mor_core.wire import ModelRef, TextPart

from mor_reward.answers.answer_ledger import LEDGER_FILE
from mor_reward.answers.query_log import PATTERN
from mor_reward.backbones import Example

_KEY_FILE = "secret.key"
_KEY_BYTES = 32
_DIGEST_BYTES = 16
"""Bytes of a hash: two of 2**40 answers have the same one with a probability below 10**-14."""
_NORMAL = NormalDist()


class AnswerKeys:
    """Secret of one service, and what follows from it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of_folder(cls, folder: Path) -> AnswerKeys:
        """Read the secret in ``folder``, or create it.

        Raises:
            Invalid: the file is no such secret.
            OSError: it can be neither read nor written.
        """
        file = folder / _KEY_FILE
        if not file.exists():
            if (folder / LEDGER_FILE).exists() or any(folder.glob(PATTERN)):
                raise Invalid(
                    f"{file} is missing beside a ledger or log that was made with it: restore it from a backup; with "
                    "a new one, questions that were asked before would get other noise. Or move the folder away"
                )
            atomic.write(file, secrets.token_bytes(_KEY_BYTES), mode=0o600)
        key = read_plain_file(file, _KEY_BYTES)
        if len(key) != _KEY_BYTES:
            raise Invalid(
                f"{file} has {len(key)} bytes, of {_KEY_BYTES}: restore it from a backup; "
                "with a new one, questions that were asked before get other noise and cost their budget again"
            )
        return cls(key)

    def answers(
        self, model: ModelRef, examples: Sequence[Example], *, sees_pictures: bool, context: Sequence[str] = ()
    ) -> list[bytes]:
        """Hash what each answer of a group depends on: the model, the question, the response and ``context``.

        The objective is in ``context`` only where scores depend on it: otherwise the same score could be asked with
        fresh noise. A new version of the model gets fresh noise, for otherwise the difference of two answers would show
        the versions' exact difference.
        """
        asked = _question(examples[0], sees_pictures=sees_pictures)
        question = self._digest("asked", model.version, asked, *context).hex()
        return [self._digest("answer", question, example.response) for example in examples]

    def group(self, answers: Sequence[bytes]) -> bytes:
        """Hash a group by its different answers, in any order."""
        return self._digest("group", *sorted({answer.hex() for answer in answers}))

    def question(self, example: Example) -> str:
        """Hash a question with its pictures, for the query log."""
        return self._digest("question", _question(example, sees_pictures=True)).hex()

    def text(self, text: str) -> str:
        """Hash a response, for the query log."""
        return self._digest("text", text).hex()

    def picture(self, sha256: str) -> bytes:
        """Hash a picture's hash, which others who have the picture know."""
        return self._digest("picture", sha256)

    def subjects(self, example: Example, *, sees_pictures: bool) -> frozenset[bytes]:
        """Hash what a question is about: each of its pictures, or the question itself where the model sees none."""
        pictures = frozenset(self.picture(picture.sha256) for picture in example.pictures)
        return pictures or frozenset({self._digest("subject", _question(example, sees_pictures=sees_pictures))})

    def normal(self, answer: bytes) -> float:
        """Return the standard normal number of an answer, always the same one."""
        drawn = hmac.digest(self._key, b"noise" + answer, hashlib.sha256)
        uniform = (int.from_bytes(drawn[:8], "big") >> 11) + 0.5  # 53 bits, of which no value is 0 or 1
        return _NORMAL.inv_cdf(min(uniform / 2**53, 1 - 2**-53))

    def _digest(self, *parts: object) -> bytes:
        content = json.dumps(parts, ensure_ascii=True).encode()
        return hmac.digest(self._key, content, hashlib.sha256)[:_DIGEST_BYTES]


def _question(example: Example, *, sees_pictures: bool) -> list[object]:
    """Return the question in one form: a message's text may come as one string or as one part."""
    turns: list[object] = []
    for message in example.messages:
        parts = (TextPart(text=message.content),) if isinstance(message.content, str) else message.content
        shown = [("t", part.text) if isinstance(part, TextPart) else ("p", part.sha256) for part in parts]
        turns.append([message.role, shown if sees_pictures else [("t", message.text)]])
    return turns
