"""Verifier of NeMo Gym: one call for each response, in the shape of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from mor_core.wire import Finite, Wire

from mor_reward.upstream.upstream_answers import parse
from mor_reward.upstream.upstream_protocol import CallPath, Calls, Group, Upstream


class _Verified(Wire):
    reward: Finite | None


class Verify(Upstream):
    """``POST /verify`` of a resources server, whose reward is the score; null is no score."""

    health: ClassVar[str] = "/"
    shows_pictures: ClassVar[bool] = True

    protocol: Literal["verify"] = "verify"
    path: CallPath = "/verify"

    async def score(self, group: Group, calls: Calls) -> Sequence[float | None]:
        turns = [_responses_turn(turn) for turn in group.chat]
        bodies = [
            {"responses_create_params": {"input": turns}, "response": self._response(response)}
            for response in group.responses
        ]
        return [parse(_Verified, answer).reward for answer in await calls.post(self.path, bodies)]

    def _response(self, text: str) -> dict[str, Any]:
        output = {
            "id": "msg_0",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        }
        return {
            "id": "resp_0",
            "object": "response",
            "created_at": 0,
            "model": self.model or "policy",
            "output": [output],
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
        }


def _responses_turn(turn: dict[str, Any]) -> dict[str, Any]:
    """Convert a turn from the shape of chat completions to that of the Responses API."""
    if isinstance(turn["content"], str):
        return turn
    parts = [
        {"type": "input_image", "image_url": part["image_url"]["url"], "detail": "auto"}
        if part["type"] == "image_url"
        else {"type": "input_text", "text": part["text"]}
        for part in turn["content"]
    ]
    return turn | {"content": parts}
