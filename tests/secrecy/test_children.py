"""Child processes: whatever way they end, their output is as that of the process that started them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.secrecy.marks import found

CHILD = ["-m", "tests.secrecy.failing_children"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "--no-python", sys.executable]


@pytest.mark.parametrize(
    "arguments",
    [
        [*CHILD, "pool"],
        pytest.param([*CHILD, "engine"], marks=pytest.mark.vllm),
        [*TORCHRUN, *CHILD, "rank"],
    ],
    ids=["pool", "engine", "torchrun"],
)
def test_a_failing_child_shows_nothing(arguments: list[str]) -> None:
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)
    output = ended.stdout + ended.stderr
    assert "work failed" in output
    assert "Quoting" in output, "what failed is still to be seen"
    assert found(output) == []
