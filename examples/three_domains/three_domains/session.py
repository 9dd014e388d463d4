"""Calls of the demonstration to the running services over HTTP, as an operator makes them."""

from __future__ import annotations

import base64
import json
import mimetypes
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from three_domains.stack import CLIENTS, Stack, StackError

OBJECTIVE = "domain-experts"
_OBJECTIVE_TEXT = (
    "Answer as the domain's own experts want it: complete, exact, and no claim that the picture does not support."
)
_DOMAINS = {
    "detail": "everyday things in photographs: what they are, how many, where",
    "medical": "brain slices: plane, species, marked region and its side",
    "chart": "charts: kind, values with their unit, counts, extremes",
}
_CHATS_AT_ONCE = 8
"""Concurrent chat completions: the default limit of the rollout service."""
_STEP_TIMEOUT_S = 900.0
"""Longest step before the run counts as failed, seconds."""

Answers = dict[str, list[str]]
"""Responses by the id of their question."""


def enrol(stack: Stack, *names: str) -> None:
    """Enrol the named clients, or all, at the router with the secrets of their endpoints."""
    with stack.http("router") as router:
        for name in names or CLIENTS:
            body = {
                "name": name,
                "url": stack.url(name),
                "domains": _DOMAINS[name],
                "token": stack.client_secrets[name],
            }
            _checked(router.post("/v1/clients", json=body))


def fit_gate(stack: Stack, anchors: Path) -> dict[str, Any]:
    """Create the objective, upload its anchors, fit calibration and gate; return the router's fit report."""
    with stack.http("router", timeout_s=300) as router:
        objective = {"name": OBJECTIVE, "text": _OBJECTIVE_TEXT, "audit_share": 0}  # nobody is here to label
        _checked(router.post("/v1/objectives", json=objective))
        upload = f"/v1/objectives/{OBJECTIVE}/anchors"
        _checked(router.put(upload, content=_inlined(anchors), headers={"Content-Type": "application/x-ndjson"}))
        return dict(_checked(router.post(f"/v1/objectives/{OBJECTIVE}/fit")).json())


def stop_earlier_runs(stack: Stack) -> None:
    """Stop runs of an interrupted demonstration, which the training process would resume before a new run."""
    with stack.http("control") as control:
        for run in _checked(control.get("/v1/runs")).json():
            if run["state"] in ("queued", "running", "paused"):
                _checked(control.post(f"/v1/runs/{run['id']}/stop"))


def expect_base(stack: Stack) -> None:
    """Check that the engine holds the base model.

    Raises:
        StackError: the engine holds the policy of a run.
    """
    with stack.http("rollout") as rollout:
        held = _checked(rollout.get("/v1/status")).json()["run"]
    if held is not None:
        raise StackError(f"the engine holds the weights of {held}, an interrupted run that is being stopped; try again")


def create_run(stack: Stack, spec: dict[str, Any]) -> str:
    """Queue a run; return its id."""
    with stack.http("control") as control:
        return str(_checked(control.post("/v1/runs", json=spec)).json()["id"])


def snapshot(control: httpx.Client, run: str) -> dict[str, Any]:
    return dict(_checked(control.get(f"/v1/runs/{run}")).json())


def follow(stack: Stack, run: str) -> Iterator[dict[str, Any]]:
    """Yield snapshots of a run, twice a second, until it is finished.

    Raises:
        StackError: the run did not finish, a step took too long, or a process ended.
    """
    step, deadline = 0, time.monotonic() + _STEP_TIMEOUT_S
    with stack.http("control") as control:
        while time.monotonic() < deadline:
            stack.check()
            now = snapshot(control, run)
            if (now["step"] or 0) > step:
                step, deadline = now["step"], time.monotonic() + _STEP_TIMEOUT_S
            if now["state"] in ("failed", "stopped"):
                raise StackError(f"run {run} is {now['state']}: {now['error']}; log: {stack.log}")
            yield now
            if now["state"] == "finished":
                return
            time.sleep(0.5)
    raise StackError(f"run {run} completed no step within {_STEP_TIMEOUT_S:.0f} s; log: {stack.log}")


def metrics(stack: Stack, run: str) -> list[dict[str, Any]]:
    """Return the metrics of every step, oldest first."""
    with stack.http("control") as control:
        return list(_checked(control.get(f"/v1/runs/{run}/metrics")).json()["points"])


def weight_swaps(stack: Stack) -> dict[str, float | None]:
    """Measure the in-place weight swaps of the rollout service, with emptied caches and tensors read back."""
    with stack.http("rollout") as rollout:
        families = text_string_to_metric_families(_checked(rollout.get("/metrics")).text)
        samples = {
            (sample.name.removeprefix("mor_rollout_swap_seconds"), sample.labels.get("le", "")): sample.value
            for family in families
            if family.name == "mor_rollout_swap_seconds"
            for sample in family.samples
        }
    count = samples[("_count", "")]
    within = samples[("_bucket", "1.0")]
    return {
        "count": count,
        "mean_seconds": samples[("_sum", "")] / count if count else None,
        "share_within_1_s": within / count if count else None,
    }


def answer(stack: Stack, questions: Path, max_tokens: int) -> Iterator[tuple[str, str]]:
    """Yield greedy answers of the rollout service's policy as ``(id, response)``, in the order of the file.

    But all questions about a picture follow the first one, so that the engine encodes it once.
    """
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    places = {picture: place for place, picture in reversed(list(enumerate(str(row["images"]) for row in rows)))}
    rows.sort(key=lambda row: places[str(row["images"])])

    with stack.http("rollout", timeout_s=120) as rollout, ThreadPoolExecutor(_CHATS_AT_ONCE) as pool:

        def request(row: dict[str, Any]) -> tuple[str, str]:
            body = {"messages": _chat(row, questions.parent), "temperature": 0, "max_tokens": max_tokens}
            reply = _checked(rollout.post("/v1/chat/completions", json=body)).json()
            return str(row["id"]), str(reply["choices"][0]["message"]["content"])

        yield from pool.map(request, rows)


def _chat(row: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return the row's prompt with its images as data URIs."""
    images = iter(row["images"])
    return [
        {
            "role": turn["role"],
            "content": [
                {"type": "image_url", "image_url": {"url": _data_uri(folder / next(images))}}
                if part["type"] == "image"
                else part
                for part in turn["content"]
            ],
        }
        for turn in row["prompt"]
    ]


def _inlined(rows: Path) -> bytes:
    """Read a data file with its images as data URIs, for one request body."""
    lines = []
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        row["images"] = [_data_uri(rows.parent / image) for image in row["images"]]
        lines.append(json.dumps(row))
    return "\n".join(lines).encode()


def _data_uri(image: Path) -> str:
    kind = mimetypes.guess_type(image.name)[0]
    return f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"


def _checked(answer: httpx.Response) -> httpx.Response:
    """Return the response, or raise the detail of its problem as StackError."""
    if answer.is_error:
        raise StackError(f"{answer.request.method} {answer.request.url} -> {answer.status_code}: {answer.text[:1000]}")
    return answer
