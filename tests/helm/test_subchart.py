"""Charts as parts of a parent chart: a condition, several aliases, and values that the parent sets for all charts."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm import charts
from tests.helm.charts import Document

MOR, REWARD = charts.CHARTS / "mor", charts.CHARTS / "mor-reward"
DEPENDENCIES = [
    {"name": "mor", "version": "0.1.0", "condition": "mor.enabled"},
    {"name": "mor", "version": "0.1.0", "alias": "second", "condition": "second.enabled"},
    {"name": "mor-reward", "version": "0.1.0", "condition": "mor-reward.enabled"},
    {"name": "mor-reward", "version": "0.1.0", "alias": "clinic", "condition": "clinic.enabled"},
]
MODEL = {"model": {"name": "a/b"}}
SCORER = {"function": {"existingConfigMap": "scorer"}}
VALUES: dict[str, Any] = {
    "global": {
        "imageRegistry": "mirror.internal/x",
        "imagePullSecrets": ["one", {"name": "two"}],
        "storageClass": "fast",
        "elsewhere": {"not": "ours"},
    },
    "mor": {**MODEL, "control": {"runs": {"storageClass": "own"}}, "image": {"pullSecrets": ["two", "three"]}},
    "second": MODEL,
    "mor-reward": SCORER,
    "clinic": SCORER,
}


def rendered(folder: Path, values: dict[str, Any], release: str = "platform") -> list[Document]:
    """Return the objects of a parent chart with two of each chart of ours."""
    parent = folder / "parent"
    for chart in (MOR, REWARD):
        shutil.copytree(chart, parent / "charts" / chart.name, dirs_exist_ok=True)
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": DEPENDENCIES}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(about))
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    text = charts.helm("template", release, str(parent), "--namespace=n", f"--values={folder / 'values.yaml'}")
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.mark.parametrize("release", ["platform", "mor-reward", "a-release-whose-name-is-as-long-as-helm-takes-it"])
def test_charts_of_one_parent_have_names_and_pods_of_their_own(tmp_path: Path, release: str) -> None:
    documents = rendered(tmp_path, VALUES, release)
    named = Counter(
        (found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"]) for found in documents
    )
    assert set(named.values()) == {1}
    labels = [
        found["spec"]["template"]["metadata"]["labels"]
        for kind in ("Deployment", "StatefulSet")
        for found in charts.of(documents, kind).values()
    ]
    for name, service in charts.of(documents, "Service").items():
        selected = [found for found in labels if service["spec"]["selector"].items() <= found.items()]
        assert len({found["app.kubernetes.io/name"] for found in selected}) == 1, name
        assert len(name) <= 63


def test_what_the_parent_sets_holds_for_every_image_pull_and_volume(tmp_path: Path) -> None:
    documents = rendered(tmp_path, VALUES)
    pods = charts.pods(documents)
    for name, pod in pods.items():
        assert all(found["image"].startswith("mirror.internal/x/") for found in pod["containers"]), name
        wanted = (
            ["one", "two", "three"] if name.startswith("platform-mor-") and "reward" not in name else ["one", "two"]
        )
        assert [found["name"] for found in pod["imagePullSecrets"]] == wanted, name
    assert pods["platform-mor-valkey"]["containers"][0]["image"] == "mirror.internal/x/valkey/valkey:8.1.4-alpine"
    claims = charts.of(documents, "PersistentVolumeClaim")
    classes = {name: claim["spec"]["storageClassName"] for name, claim in claims.items()}
    [template] = charts.of(documents, "StatefulSet")["platform-mor-valkey"]["spec"]["volumeClaimTemplates"]
    assert template["spec"]["storageClassName"] == "fast"
    assert classes.pop("platform-mor-runs") == "own"
    assert {"platform-mor-router-state", "platform-second-runs", "platform-second-router-state"} <= set(classes)
    assert set(classes.values()) == {"fast"}


def test_a_condition_leaves_a_chart_out(tmp_path: Path) -> None:
    values = {**VALUES, "mor": {"enabled": False}, "mor-reward": {"enabled": False}}
    names = {found["metadata"]["name"] for found in rendered(tmp_path, values)}
    assert {name.split("-")[1] for name in names} == {"second", "clinic"}


@pytest.mark.parametrize("chart", [MOR, REWARD], ids=lambda chart: chart.name)
def test_a_release_of_its_own_refuses_to_be_disabled(chart: Path) -> None:
    with pytest.raises(RuntimeError, match="uninstall a release of this chart itself"):
        charts.render(chart, "--set=enabled=false", "--set=model.name=a/b" if chart == MOR else "--set=model.image=x")


def test_without_a_parent_nothing_changes() -> None:
    documents = charts.render(MOR, "--set=model.name=a/b")
    assert charts.pods(documents)["m-mor-valkey"]["containers"][0]["image"] == "docker.io/valkey/valkey:8.1.4-alpine"
    for claim in charts.of(documents, "PersistentVolumeClaim").values():
        assert "storageClassName" not in claim["spec"]
    assert not any("imagePullSecrets" in pod for pod in charts.pods(documents).values())
    with pytest.raises(RuntimeError, match=r"write that as valkey\.image\.registry"):
        charts.render(MOR, "--set=model.name=a/b", "--set=valkey.image.repository=docker.io/valkey/valkey")
