"""A run goes on through a fail-over of its queue server: each group is applied once, and none is missing."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mor_core.streams import key

from tests.redis_servers import RedisCluster, SentinelPair, needs_redis
from tests.trainer.kit import TOKENS, Processes
from tests.trainer.stages import Stages, share_of_even_tokens, until
from tests.trainer.watching import alerts, applied_once, create, finish, points, snapshot

STEPS = 10


@needs_redis
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [SentinelPair, RedisCluster])
def test_a_run_goes_on_after_a_fail_over(
    kind: Any, tmp_path: Path, tokens_file: Path, tiny: Path, prompts: Path, checks_dir: Path
) -> None:
    """The replica may lack what had not reached it; the trainer's ledger says what to issue again."""
    servers = kind(tmp_path / "servers")
    processes = Processes(tmp_path / "runs", tokens_file, servers.url, tmp_path)
    processes.environment["MOR_CHECKS_DIR"] = str(checks_dir)
    try:
        processes.serve()
        stages = Stages(servers.url, tiny, share_of_even_tokens, TOKENS["service"], lambda: processes.address)
        with stages, ExitStack() as working:
            run = create(processes, model=tiny, prompts=prompts, steps=STEPS)
            working.enter_context(processes.working())
            with stages.halting_after(3):
                until(lambda: (snapshot(processes, run)["step"] or 0) >= 3, 200, "step 3")
                servers.fail_over(key(run, "prompts"))
            finish(processes, run)
        history = points(processes, run)
        applied_once(history)
        assert len(history) == STEPS
        assert [alert["name"] for alert in alerts(processes, run)].count("queue_lost") == 1
    finally:
        processes.end()
        servers.end()
