"""Variables of the values join those of the chart by name, and replace only what nothing else relies on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helm import charts

MOR, REWARD = charts.CHARTS / "mor", charts.CHARTS / "mor-reward"
PROXY = 'router.clientProxy={"existingSecret":"x","cidrs":["10.0.0.0/8"]}'
NEEDED = {MOR: "--set=model.name=a/b", REWARD: "--set=function.existingConfigMap=x"}


def test_variables_are_merged_by_name() -> None:
    mine = [
        f"--set-string=control.pod.extraEnv[{place}].{part}"
        for place, (name, value) in enumerate({"OMP_NUM_THREADS": "3", "MOR_LOG_FORMAT": "console", "A": "b"}.items())
        for part in (f"name={name}", f"value={value}")
    ]
    pod = charts.pods(charts.render(MOR, NEEDED[MOR], *mine))["m-mor-control"]
    names = [found["name"] for found in pod["containers"][0]["env"]]
    assert len(names) == len(set(names))
    set_to = charts.variables(pod)
    assert (set_to["OMP_NUM_THREADS"], set_to["MOR_LOG_FORMAT"], set_to["A"]) == ("3", "console", "b")
    assert set_to["MOR_PORT"] == "8300"


@pytest.mark.parametrize(
    ("chart", "path", "names", "settings", "message"),
    [
        (MOR, "worker.pod.extraEnv", ["A", "A"], "", "worker.pod.extraEnv names A twice: keep one"),
        (MOR, "worker.pod.extraEnv", ["MOR_RUNS_DIR"], "", 'names MOR_RUNS_DIR, which the chart sets to "/runs"'),
        (MOR, "router.pod.extraEnv", ["MOR_REDIS_URL"], "", "MOR_REDIS_URL, which the chart takes from a Secret"),
        (MOR, "router.pod.extraEnv", ["MOR_CLIENT_PROXY"], PROXY, "MOR_CLIENT_PROXY, which the chart takes from a"),
        (MOR, "rollout.pod.extraEnv", ["MOR_DTYPE"], "rollout.settings.dtype=float16", "rollout.settings.dtype sets"),
        (MOR, "valkey.pod.extraEnv", ["A", "A"], "", "valkey.pod.extraEnv names A twice"),
        (MOR, "apply.pod.extraEnv", ["MOR_TIMEOUT_S"], "", "apply.pod.extraEnv names MOR_TIMEOUT_S"),
        (REWARD, "pod.extraEnv", ["MOR_PORT"], "", 'pod.extraEnv names MOR_PORT, which the chart sets to "8400"'),
        (REWARD, "pod.extraEnv", ["MOR_THREADS"], "settings.threads=2", "which settings.threads sets already"),
        (REWARD, "jobs.extraEnv", ["A", "A"], "", "jobs.extraEnv names A twice"),
    ],
)
def test_a_name_that_is_taken_is_refused(chart: Path, path: str, names: list[str], settings: str, message: str) -> None:
    options = [f"--set-string={path}[{place}].name={name}" for place, name in enumerate(names)]
    options += [f"--set-json={settings}" if settings is PROXY else f"--set={settings}"] if settings else []
    with pytest.raises(RuntimeError, match=re.escape(message)):
        charts.render(chart, NEEDED[chart], *options)
