"""Checks of `helm test`: every pod has started, the active clients answer, and a run of two steps finishes."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from service import Service

_GROUP = {
    "item_id": "check",
    "messages": [{"role": "user", "content": "Name a colour."}],
    "responses": ["Red.", "Tree."],
}
_PROMPTS = "/etc/mor/check/prompts.jsonl"
_OVER = ("finished", "failed", "stopped")
_POLL_S = 2.0


def processes(control: Service, kind: str, path: str, wanted: int) -> None:
    """Wait until all processes of a component have called run control; exit where some do not in time."""
    while True:
        calling = [process["name"] for process in control.call("GET", path) if process.get("state") != "gone"]
        if len(calling) >= wanted:
            print(f"{kind}: {', '.join(calling) or 'none wanted'}")
            return
        if time.monotonic() > control.deadline:
            break
        time.sleep(_POLL_S)
    sys.exit(
        f"{len(calling)} of {wanted} {kind} processes have called run control. A pod that is Pending fits on no node: "
        f"'kubectl describe pods -l app.kubernetes.io/component={kind}' names the resource, taint or volume. One that "
        "runs has the reason in its log"
    )


def clients(router: Service) -> list[str]:
    """Return the names of the active clients; exit where the last call to one of them failed."""
    status = router.call("GET", "/v1/status")
    for line in status["clients"]:
        client = line["client"]
        print(
            f"client {client['name']}: {client['state']}, circuit {line['circuit']}, {line['last_error'] or 'no error'}"
        )
    active = [line for line in status["clients"] if line["client"]["state"] == "active"]
    broken = [line["client"]["name"] for line in active if line["last_error"]]
    if broken:
        sys.exit(f"active clients that do not answer: {', '.join(broken)}")
    return [line["client"]["name"] for line in active]


def reward(router: Service) -> None:
    """Reward one group; exit where there is no reward."""
    item = router.call("POST", "/v1/reward", json={"items": [_GROUP]})["items"][0]
    if item["status"] != "ok":
        sys.exit(f"no reward for a group of two: {item['detail']}")
    print(f"reward of a group of two: {item['rewards']}")


def occupied(control: Service, own: str | None = None) -> str:
    """Return why a further run would wait for a worker; nothing where it would not."""
    others = [run for run in control.runs() if run["id"] != own]
    if queued := [run["id"] for run in others if run["state"] == "queued"]:
        return f"{', '.join(queued)} wait for a worker"
    workers = [worker for worker in control.call("GET", "/v1/workers") if worker["state"] != "gone"]
    held = [worker["run"] for worker in workers if worker["run"] not in (None, own)]
    return f"all workers train: {', '.join(held)}" if workers and len(held) == len(workers) else ""


def run(control: Service, model: str) -> None:
    """Run two steps of two groups each, with a learning rate that leaves the weights nearly as they are.

    Where all workers are busy there is no run. One that does not end in time is stopped, so that nothing stays queued.
    """
    if reason := occupied(control):
        print(f"skipped the run: {reason}")
        return
    spec: dict[str, Any] = {
        "name": "helm-test",
        "model": model,
        "prompts": _PROMPTS,
        "steps": 2,
        "groups_per_step": 2,
        "group_size": 2,
        "sampling": {"max_tokens": 8},
        "optimiser": {"lr": 1e-9, "warmup_steps": 0},
    }
    made = control.call("POST", "/v1/runs", json=spec)["id"]
    state: dict[str, Any] = {"state": "queued"}
    try:
        while state["state"] not in _OVER and time.monotonic() < control.deadline:
            time.sleep(_POLL_S)
            state = control.call("GET", f"/v1/runs/{made}")
    finally:
        if state["state"] not in _OVER:
            control.call("POST", f"/v1/runs/{made}/stop")
    if state["state"] == "queued" and (reason := occupied(control, made)):
        print(f"skipped the run, which is stopped: {reason}")
    elif state["state"] != "finished":
        sys.exit(f"run {made} is {state['state']} at step {state.get('step')}: {state.get('error')}")
    else:
        print(f"run {made}: finished")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("the pod was ended"))
    wanted = json.loads((Path(__file__).parent / "wanted.json").read_text())
    router, control = Service("router"), Service("control")
    processes(control, "worker", "/v1/workers", wanted["workers"])
    processes(control, "rollout", "/v1/engines", wanted["engines"])
    for service in (router, control, *([Service("rollout")] if wanted["engines"] else [])):
        service.call("GET", "/readyz")
        print(f"{service.name}: ready")
    if not clients(router):
        print("no client is active yet: skipped the reward and the run")
        return
    reward(router)
    if wanted["model"]:
        run(control, wanted["model"])


if __name__ == "__main__":
    main()
