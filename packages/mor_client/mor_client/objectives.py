"""Objectives of a router: make, give anchors, fit, choose the gate version in force."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mor_core.datafiles import Preference, read_preferences
from mor_core.stored_objectives import FitRequest, NewObjective, Objective
from mor_core.wire import ImagePart, ModelRef
from pydantic import BaseModel

from mor_client.config import ClientSettings
from mor_client.transport import Transport


class Share(BaseModel):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float
    of: int


class ClientFit(BaseModel):
    client: str
    accuracy: Share
    """Anchors that its own scores rank as labelled."""
    weight_by_domain: dict[str, float]


class FitFigures(BaseModel):
    """How good a fit is: what a person looks at; the router's OpenAPI page has the whole report."""

    pairs: int
    clients: tuple[ClientFit, ...]
    left_out: dict[str, str]
    """Clients that are not in the mixture, with the reason."""
    held_out_accuracy: Share
    uniform_accuracy: Share
    """Of the plain average of all clients."""


class Gate(BaseModel):
    """A gate version."""

    version: int
    objective: str
    created_at: float
    models: dict[str, ModelRef]
    extends: int | None = None
    report: FitFigures


class Objectives:
    def __init__(self, router: Transport, settings: ClientSettings) -> None:
        self._router = router
        self._settings = settings

    def create(self, objective: NewObjective) -> Objective:
        return self._objective("POST", "/v1/objectives", json=objective.model_dump(mode="json"))

    def versions(self, name: str) -> list[Gate]:
        """Oldest first."""
        found: list[Gate] = self._router.get(f"/v1/objectives/{name}/gates", list[Gate])
        return found

    def list(self) -> list[Objective]:
        """By name."""
        found: list[Objective] = self._router.get("/v1/objectives", list[Objective])
        return found

    def get(self, name: str) -> Objective:
        return self._objective("GET", f"/v1/objectives/{name}")

    def put_anchors(self, name: str, file: Path) -> Objective:
        """Replace the anchor set by a ``mor.prefs/1`` file. It is checked here first; pictures travel inside.

        Raises:
            DataFileError: the line that is wrong and what to do.
        """
        content = "\n".join(json.dumps(_row(preference)) for preference in read_preferences(file)).encode()
        return self._objective(
            "PUT",
            f"/v1/objectives/{name}/anchors",
            content=content,
            headers={"Content-Type": "application/x-ndjson"},
            timeout_s=self._settings.fit_timeout_s,
        )

    def fit(self, name: str, request: FitRequest) -> Gate:
        """Every client scores the anchors, calibration and gate are fitted, and the version is put in force."""
        found: Gate = self._router.call(
            "POST",
            f"/v1/objectives/{name}/fit",
            Gate,
            json=request.model_dump(mode="json"),
            timeout_s=self._settings.fit_timeout_s,
        )
        return found

    def rollback(self, name: str) -> Objective:
        """Put the gate version in force that was before."""
        return self._objective("POST", f"/v1/objectives/{name}/gates/rollback")

    def _objective(self, method: str, path: str, **request: Any) -> Objective:
        found: Objective = self._router.call(method, path, Objective, **request)
        return found


def _row(preference: Preference) -> dict[str, Any]:
    """A row with its pictures as data URIs, in the order in which the messages show them."""
    prompt = preference.prompt
    shown: Sequence[str] = [digest for message in prompt.messages for digest in message.image_hashes]
    return {
        "prompt": [
            {
                "role": message.role,
                "content": message.content
                if isinstance(message.content, str)
                else [
                    {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
                    for part in message.content
                ],
            }
            for message in prompt.messages
        ],
        "images": [
            f"data:application/octet-stream;base64,{base64.b64encode(prompt.images[digest]).decode()}"
            for digest in shown
        ],
        "chosen": preference.chosen,
        "rejected": preference.rejected,
        "id": prompt.id,
        **({} if prompt.domain is None else {"domain": prompt.domain}),
    }
