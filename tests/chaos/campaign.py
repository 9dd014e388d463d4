"""Faults of one seed: a fresh cluster, runs under way, faults one after the other, and the invariants at the end."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.chaos import invariants
from tests.chaos.cluster import RUN_LEASE_S, Cluster, running
from tests.chaos.faults import Fault, Killed, plan
from tests.chaos.observers import EventReader, Pace, UsageSampler
from tests.shapes import copy_questions, write_rows
from tests.tiny_models import build_tiny_vlm

_PROMPTS = 40
_GROUPS = 2
_SETTLED_S = 180.0
"""Longest wait for the next step after a fault; then the run counts as stalled, and the seed ends."""
_SETTLED_STEPS = 2
_BETWEEN_S = 1.0
_FINISH_S = 600.0
"""Seconds for all runs to end after the last fault, on top of one for each step."""
SOAK_STEPS = 500
"""Steps of each run of a soak: some minutes, so that retention begins in the first quarter on a slow machine too."""
_SOAK_SETTINGS = {"MOR_ENDED_RUNS_KEPT": "2"}
"""Limits that a soak of hours reaches."""
_LATE_S = 30.0
"""Longest time from the end of a run until the history has all of it, seconds; run control reads for a minute."""
ALLOWED_PAUSE_S = 15.0
"""Largest time without a step after a fault, on top of a process's start, seconds."""
ALLOWED_TAKEOVER_S = 5.0
"""Largest time of a takeover on top of the lease, seconds."""


@dataclass
class Told:
    """One fault as it happened."""

    kind: str
    what: str
    at_s: float
    seconds: float
    pause_s: float | None = None
    """Longest time without a step, in the two steps after it; null where no run was under way."""
    takeover_s: float | None = None
    """Seconds from a worker's death until another holds its run."""


@dataclass
class SeedResult:
    """Outcome of one seed."""

    seed: int
    faults: list[Told] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)
    """Run -> kind."""
    steps: int = 0
    groups: int = 0
    alerts: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    start_s: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    usage: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Size:
    """Size of a campaign for each seed."""

    faults: int
    steps: int = 40
    """Steps of each run."""
    workers: int = 3
    """One more than runs at a time, so that one stands by."""
    settle: bool = True
    """Wait for the next step of every run after each fault, which measures it; otherwise faults overlap."""
    soak_s: float = 0.0
    """Keep long runs going for this long, without faults, and watch memory, descriptors and disk. They have no twins,
    which would take as long again."""
    older: str | None = None
    """Git revision whose code one worker, one engine and one router run: version skew."""
    only: str = ""
    """Keep the kinds of faults in which this regular expression occurs."""


class Campaign:
    """Faults of one seed against one cluster."""

    def __init__(self, cluster: Cluster, seed: int, size: Size, say: Callable[[str], None]) -> None:
        self._cluster, self._size, self._say = cluster, size, say
        self._began = time.monotonic()
        self.result = SeedResult(seed)
        self._specs: dict[str, dict[str, Any]] = {}
        self._readers: dict[str, EventReader] = {}
        self._pace = Pace(cluster)
        self._steps = SOAK_STEPS if size.soak_s else size.steps
        self._prompts = write_rows(cluster.folder / "prompts.jsonl", copy_questions(cluster.folder, _PROMPTS))
        self._created = 0
        self._unhealed: list[tuple[float, Fault]] = []
        """Faults that overlap with later ones, and when they end."""

    def run(self) -> None:
        """Inject all faults, wait for the runs, and check what must hold."""
        self.result.start_s = {name: round(seconds, 1) for name, seconds in self._cluster.start_s.items()}
        try:
            self._keep_runs_going()
            if self._size.soak_s:
                self._soak()
            self._settle(self._under_way(), self._began)  # before it there is little to break
            if self._inject_all():
                self._finish()
            self._check()
        finally:
            self._pace.stop()
            for reader in self._readers.values():
                reader.stop()
            self.result.seconds = round(time.monotonic() - self._began, 1)

    # --- runs -----------------------------------------------------------------------------------------------------

    def _create(self, *, deterministic: bool) -> str:
        self._created += 1
        spec = {
            "name": f"{'exact' if deterministic else 'plain'}-{self._created}",
            "model": str(self._cluster.model),
            "prompts": str(self._prompts),
            "steps": self._steps,
            "groups_per_step": _GROUPS,
            "group_size": 2,
            "sampling": {"max_tokens": 4},
            "optimiser": {"lr": 1e-3, "warmup_steps": 0},
            "guards": {"kl": "alert", "entropy": "alert", "identical": "alert"},  # nobody is there to resume a run
            "checkpoint_every": 3,
            "deterministic": deterministic,
            "max_bad_prompts": 0,
        }
        key = {"Idempotency-Key": f"{self.result.seed}-{self._created}"}
        deadline = time.monotonic() + _SETTLED_S
        while True:
            try:
                reply = self._cluster.http.post(f"{self._cluster.url('control')}/v1/runs", json=spec, headers=key)
                if reply.status_code == 202:
                    break
                problem = reply.text
            except httpx.TransportError as error:
                problem = str(error)
            assert time.monotonic() < deadline, f"run control takes no run: {problem}"
            time.sleep(0.3)
        run = str(reply.json()["id"])
        self._specs[run] = spec
        self.result.runs[run] = "deterministic" if deterministic else "normal"
        return run

    def _states(self) -> dict[str, str]:
        return {run: self._cluster.get("control", f"/v1/runs/{run}")["state"] for run in self._specs}

    def _under_way(self) -> list[str]:
        return [run for run, state in self._states().items() if state in ("queued", "running", "paused")]

    def _keep_runs_going(self) -> None:
        """Create runs, by turns normal and deterministic, so that each worker but one has one."""
        while len(self._under_way()) < self._size.workers - 1:
            run = self._create(deterministic=self._created % 2 == 0)
            self._readers[run] = EventReader(self._cluster, run)

    def _soak(self) -> None:
        sampler = UsageSampler(self._cluster)
        until = time.monotonic() + self._size.soak_s
        while time.monotonic() < until:
            self._keep_runs_going()
            self._close_ended_readers()
            sampler.check()
            time.sleep(1)
        problems, self.result.usage = invariants.check_flat(sampler.stop())
        self.result.problems += problems

    def _close_ended_readers(self) -> None:
        """Close the readers of runs that are over and read to their end: each is a connection to run control."""
        for run, state in self._states().items():
            reader = self._readers.get(run)
            if reader is not None and state == "finished" and not invariants.check_stream(self._cluster, reader):
                reader.stop()
                del self._readers[run]

    # --- faults ---------------------------------------------------------------------------------------------------

    def _inject_all(self) -> bool:
        """Inject the faults of the plan. Return whether the runs still go on."""
        going = True
        for number, fault in enumerate(plan(self.result.seed, self._size.faults, only=self._size.only), 1):
            self._keep_runs_going()
            going = self._fault(number, fault)
            if not going:
                break
        while self._unhealed:
            self._heal(until=time.monotonic())
            time.sleep(0.1)
        return going

    def _fault(self, number: int, fault: Fault) -> bool:
        """Inject one fault, heal it and wait for the next steps. Return whether the runs go on."""
        running = self._under_way()
        held, holders = self._cluster.held_runs(), self._cluster.holders()
        at = time.monotonic()
        told = Told(fault.kind, fault.inject(self._cluster), round(at - self._began, 1), round(fault.seconds, 1))
        self.result.faults.append(told)
        if not self._size.settle:
            self._say(f"seed {self.result.seed}, fault {number}/{self._size.faults}: {told.kind}: {told.what}")
            self._unhealed.append((at + fault.seconds, fault))
            time.sleep(_BETWEEN_S)
            self._heal(until=time.monotonic())
            return True
        if isinstance(fault, Killed) and told.what in held:
            told.takeover_s = self._takeover(held[told.what], holders, at)
        time.sleep(max(0.0, at + fault.seconds - time.monotonic()))
        fault.heal(self._cluster)
        ended = at if isinstance(fault, Killed) else time.monotonic()
        told.pause_s, going = self._settle(running, ended)
        took = "" if told.pause_s is None else f", next step after {told.pause_s:.1f} s"
        if told.takeover_s is not None:
            took += f", taken over after {told.takeover_s:.1f} s"
        self._say(f"seed {self.result.seed}, fault {number}/{self._size.faults}: {told.kind}: {told.what}{took}")
        time.sleep(_BETWEEN_S)
        return going

    def _heal(self, until: float) -> None:
        """End the faults that are due by then."""
        for due, fault in [one for one in self._unhealed if one[0] <= until]:
            fault.heal(self._cluster)
            self._unhealed.remove((due, fault))

    def _takeover(self, run: str, before: Mapping[str, str], at: float) -> float | None:
        """Wait until another worker holds the run than ``before``; run control shows the dead one for a while."""
        while time.monotonic() - at < _SETTLED_S:
            if self._cluster.holders().get(run, before.get(run)) != before.get(run):
                return round(time.monotonic() - at, 1)
            time.sleep(0.2)
        return None

    def _settle(self, runs: list[str], healed: float) -> tuple[float | None, bool]:
        """Wait for two more steps of each run, or its end. Return the longest time without, and whether all went on.

        Two, because the first may be made of groups that were there before the fault.
        """
        longest = None
        for run in runs:
            while len(steps := self._pace.after(run, healed)) < _SETTLED_STEPS:
                state = self._cluster.get("control", f"/v1/runs/{run}")["state"]
                if state in ("finished", "failed"):
                    break
                since = steps[-1] if steps else healed
                if time.monotonic() - since > _SETTLED_S:
                    self.result.problems.append(f"{run} made no step for {_SETTLED_S:g} s and is {state}")
                    return _SETTLED_S, False
                time.sleep(0.1)
            for before, after in itertools.pairwise([healed, *steps[:_SETTLED_STEPS]]):
                longest = max(longest or 0.0, after - before)
        return None if longest is None else round(longest, 1), True

    # --- end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        allowed_s = _FINISH_S + self._steps
        deadline = time.monotonic() + allowed_s
        while (left := self._under_way()) and time.monotonic() < deadline:
            time.sleep(0.3)
        if left:
            self.result.problems.append(f"{left} did not end within {allowed_s:g} s after the last fault")

    def _check(self) -> None:
        found = self.result.problems
        exact = [run for run, kind in self.result.runs.items() if kind == "deterministic"]
        for run, spec in self._specs.items():
            problems = self._whole_history(run)
            found += problems
            if not problems:
                self.result.steps += spec["steps"]
                self.result.groups += spec["steps"] * spec["groups_per_step"]
        time.sleep(1)  # the readers take the last events
        for reader in self._readers.values():
            found += invariants.check_stream(self._cluster, reader)
        finished = self._states()
        for run in exact:
            if finished[run] == "finished" and not self._size.soak_s:
                found += self._check_twin(run)
        problems, self.result.alerts = invariants.check_alerts(self._cluster)
        found += problems
        before = time.monotonic() - invariants.KEPT_S
        ended = [run for run, state in finished.items() if state == "finished" and not self._pace.after(run, before)]
        found += invariants.check_keys(self._cluster, ended)
        found += invariants.check_ready(self._cluster)
        problems, self.result.errors = invariants.check_logs(self._cluster)
        found += problems
        found += self._check_times()
        found += invariants.check_end(self._cluster.stop(), self._cluster.orphans())

    def _check_twin(self, run: str) -> list[str]:
        """Compute a deterministic run again from its replay log, undisturbed, and compare."""
        twin = self._create(deterministic=True)
        shutil.copytree(self._cluster.runs / run / "record", self._cluster.runs / twin / "record")
        self._finish()
        return self._whole_history(twin) or invariants.check_twins(self._cluster, run, twin)

    def _whole_history(self, run: str) -> list[str]:
        """Check the history of a run, and wait for its last events: they may follow the end on a busy machine."""
        deadline = time.monotonic() + _LATE_S
        while True:
            problems = invariants.check_history(self._cluster, run, self._specs[run])
            if not problems or time.monotonic() > deadline:
                return problems
            time.sleep(1)

    def _check_times(self) -> list[str]:
        allowed = ALLOWED_PAUSE_S + max(self.result.start_s.values())
        late = [
            f"fault {number} ({told.kind}: {told.what}): {told.pause_s:g} s without a step, {allowed:.0f} s allowed"
            for number, told in enumerate(self.result.faults, 1)
            if told.pause_s is not None and told.pause_s > allowed
        ]
        slow = [
            f"fault {number} ({told.what}): taken over after {told.takeover_s:g} s, "
            f"{RUN_LEASE_S + ALLOWED_TAKEOVER_S:g} s allowed"
            for number, told in enumerate(self.result.faults, 1)
            if told.takeover_s is not None and told.takeover_s > RUN_LEASE_S + ALLOWED_TAKEOVER_S
        ]
        return late + slow


def _running(folder: Path, size: Size) -> AbstractContextManager[Cluster]:
    settings = _SOAK_SETTINGS if size.soak_s else {}
    model = build_tiny_vlm(folder / "model")
    return running(folder, model, workers=size.workers, older=size.older, settings=settings)


def run_seed(seed: int, size: Size, say: Callable[[str], None], keep: Path | None = None) -> SeedResult:
    """Run one seed in a folder of its own; with problems its logs are copied to ``keep``."""
    with tempfile.TemporaryDirectory(prefix="mor-chaos-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with _running(folder, size) as cluster:
            slowest = max(cluster.start_s.values())
            say(f"seed {seed}: {len(cluster.services)} processes and {len(cluster.links)} links after {slowest:.0f} s")
            campaign = Campaign(cluster, seed, size, say)
            try:
                campaign.run()
            except Exception as error:
                campaign.result.problems.append(f"the harness gave up: {type(error).__name__}: {error}"[:3000])
            if campaign.result.problems and keep is not None:
                shutil.rmtree(keep, ignore_errors=True)
                keep.mkdir(parents=True)
                for log in folder.glob("*.log"):
                    shutil.copy(log, keep)
                (keep / "result.json").write_text(json.dumps(campaign.result.as_json(), indent=1))
    return campaign.result
