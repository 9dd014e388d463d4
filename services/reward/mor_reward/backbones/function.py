"""A client's Python function as a reward model: served, not trained."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from mor_core.errors import Invalid, MorError
from mor_core.failures import quote_failure
from torch import Tensor

from mor_reward.backbones.backbone import Example
from mor_reward.given_paths import function_file

Function = Callable[[list[dict[str, Any]], list[str], list[Any]], Sequence[float]]


class FunctionScorer:
    """Scorer that calls ``function(messages, responses, images)`` once for each context of a batch.

    ``messages`` are dictionaries in the OpenAI chat format, ``images`` are RGB ``PIL.Image`` objects in the order of
    the messages. The function returns one float for each response; any other result becomes NaN, which the service
    reports as an error of the item.
    """

    uses_pictures = True

    def __init__(self, reference: str) -> None:
        """``reference`` has the form ``file.py:name``.

        Raises:
            Invalid: no such file or function, or the file cannot be imported.
        """
        self._function = _load(reference)

    def unscorable_reason(self, example: Example) -> str | None:
        for picture in example.pictures:
            try:
                picture.decode()
            except MorError as error:
                return f"picture {picture.sha256[:12]}: {error}"
        return None

    def score(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]:
        scores = torch.full((len(batch),), torch.nan, dtype=torch.float64)
        contexts: dict[Any, list[int]] = {}
        for row, example in enumerate(batch):
            contexts.setdefault(example.context, []).append(row)
        for rows in contexts.values():
            first = batch[rows[0]]
            messages = [message.model_dump(mode="json") for message in first.messages]
            images = [picture.decode() for picture in first.pictures]
            answer = self._function(messages, [batch[row].response for row in rows], images)
            values = torch.as_tensor([float(value) for value in answer], dtype=torch.float64)
            if len(values) != len(rows):
                raise Invalid(
                    f"the function returned {len(values)} scores for {len(rows)} responses; return one for each"
                )
            scores[rows] = values
        return scores


def _load(reference: str) -> Function:
    path, name = function_file(reference), reference.rpartition(":")[2]
    spec = importlib.util.spec_from_file_location(f"mor_reward_function_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise Invalid(
            f"--function {reference!r}: importing {path} ended the process; keep scripts out of it"
        ) from error
    except Exception as error:  # the client's file may raise anything on import
        raise Invalid(f"--function {reference!r}: importing {path} failed: {quote_failure(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise Invalid(f"--function {reference!r}: {path} has no function {name!r}; name one that it defines")
    loaded: Function = function
    return loaded
