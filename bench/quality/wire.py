"""Bytes on the wire between the server and one client: scores, compared with parameters.

The bodies are those of ``mor.reward/1``, for the experiment's own prompts and responses, without HTTP headers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mor_core.wire import ItemScores, ModelRef, ScoreItem, ScoreRequest, ScoreResponse

from quality.averaging import round_bytes
from quality.scoring import groups

_GROUP = 8
"""Responses of a group."""
_OBJECTIVE = "Answer what was asked, truthfully and in the form that the domain wants."


def traffic(folder: Path, model: Path) -> Mapping[str, float]:
    """Measure the mean bytes per group of 8 responses in ``folder``, and those of averaging ``model`` once."""
    out, back = [], []
    pictures: dict[str, int] = {}
    random = np.random.default_rng(0)
    for number, group in enumerate(groups(folder)):
        item = ScoreItem(
            item_id=f"group-{number}",
            messages=group.prompt.messages,
            responses=tuple(example.response for example in group.examples[:_GROUP]),
            objective=_OBJECTIVE,
        )
        scores = ItemScores(item_id=item.item_id, status="ok", scores=tuple(random.normal(size=_GROUP).tolist()))
        answer = ScoreResponse(model=ModelRef(name="client", version="0" * 16), items=(scores,))
        out.append(len(ScoreRequest(items=(item,)).model_dump_json()))
        back.append(len(answer.model_dump_json()))
        pictures |= {digest: 4 * -(-len(content) // 3) for digest, content in group.prompt.images.items()}
    return {
        "to the client, a group": float(np.mean(out)),
        "to the client, a picture it has not seen": float(np.mean(list(pictures.values()))),
        "from the client, a group": float(np.mean(back)),
        "each way, a round of parameter averaging": float(round_bytes(model)),
    }
