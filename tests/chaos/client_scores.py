"""Scoring function of a client that can be told to be slow, to fail, or to lie: ``mor-reward serve --function``.

The file ``CHAOS_BEHAVIOUR`` names the behaviour; without it the scores depend on the responses alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SLOW_S = 2.0
"""Seconds of a slow answer."""
_BEHAVIOUR = Path(os.environ.get("CHAOS_BEHAVIOUR", "behaviour"))


def score(messages: Any, responses: Sequence[str], images: Any) -> list[float]:
    """Score by length and letters, or as the file of behaviour says."""
    del messages, images
    behaviour = _BEHAVIOUR.read_text() if _BEHAVIOUR.exists() else ""
    scores = [len(text) / 10 + sum(map(ord, text)) % 97 / 97 for text in responses]
    match behaviour:
        case "slow":
            time.sleep(_SLOW_S)
        case "failing":
            raise RuntimeError("the client's model is broken for a while")
        case "not a number":
            return [float("nan")] * len(scores)
        case "too few":
            return scores[1:]
        case "extreme":
            return [1e300 * (-1) ** index for index in range(len(scores))]
        case _:
            pass
    return scores
