"""Packaged charts say where they come from and what changed, and a registry serves them as OCI artefacts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.helm import charts
from tests.helm.oci_registry import OciRegistry

SOURCE = "https://git.example.org/ml/mor"
CHECKERS = charts.TOOLS / "checkers" / "bin"


@pytest.fixture(scope="module")
def packaging() -> ModuleType:
    spec = importlib.util.spec_from_file_location("package", charts.CHARTS / "package.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def archives(packaging: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found: list[Path] = packaging.package(SOURCE, "registry.example.org/ml", tmp_path_factory.mktemp("charts"))
    return found


@pytest.fixture
def registry() -> Iterator[OciRegistry]:
    registry = OciRegistry()
    yield registry
    registry.stop()


def test_a_packaged_chart_says_where_it_comes_from_and_what_changed(archives: list[Path]) -> None:
    assert [archive.name for archive in archives] == ["mor-0.1.0.tgz", "mor-reward-0.1.0.tgz"]
    for archive in archives:
        shown = yaml.safe_load(charts.helm("show", "chart", str(archive)))
        assert (shown["version"], shown["appVersion"]) == ("0.1.0", "0.1.0")
        assert (shown["home"], shown["sources"]) == (SOURCE, [SOURCE])
        assert shown["icon"] == f"{SOURCE}/raw/v0.1.0/helm/icon.svg"
        assert shown["maintainers"]
        annotations = {name: yaml.safe_load(text) for name, text in shown["annotations"].items()}
        changes = annotations["artifacthub.io/changes"]
        assert changes and all(set(change) == {"kind", "description"} for change in changes)
        images = {each["name"]: each["image"] for each in annotations["artifacthub.io/images"]}
        wanted = {"valkey", "rollout", "router", "trainer"} if shown["name"] == "mor" else {"reward"}
        assert set(images) == wanted
        assert images[min(wanted)] == f"registry.example.org/ml/mor/{min(wanted)}:0.1.0"


def test_an_archive_renders_what_the_tree_renders(archives: list[Path]) -> None:
    values = f"--values={charts.CHARTS / 'mor' / 'ci' / 'restricted-values.yaml'}"
    assert charts.render(archives[0], values) == charts.render(charts.CHARTS / "mor", values)


def test_a_registry_serves_the_chart_that_was_pushed(
    packaging: ModuleType, archives: list[Path], registry: OciRegistry, tmp_path: Path
) -> None:
    pushed = packaging.push(archives, registry.address, "--plain-http")
    for archive, reference in zip(archives, pushed, strict=True):
        name, _, digest = reference.partition("@")
        _, content = registry.manifests[name.partition("/")[2], digest]
        manifest = json.loads(content)
        assert manifest["config"]["mediaType"] == "application/vnd.cncf.helm.config.v1+json"
        assert manifest["annotations"]["org.opencontainers.image.source"] == SOURCE
        options = ("--plain-http", "--version=0.1.0", f"--destination={tmp_path}")
        charts.helm("pull", f"oci://{name}", *options)
        assert (tmp_path / archive.name).read_bytes() == archive.read_bytes()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("# Changelog\n", "begins with no version, Chart.yaml has 0.2.0"),
        ("# Changelog\n## 0.1.0\n### Added\n- A.\n", "begins with 0.1.0, Chart.yaml has 0.2.0"),
        ("# Changelog\n## 0.2.0\n### Novelties\n- A.\n", "heading Novelties, wanted one of Added"),
    ],
)
def test_a_version_without_its_changes_is_not_packaged(packaging: ModuleType, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        packaging.changes(text, "0.2.0")


def test_changes_are_read_by_kind(packaging: ModuleType) -> None:
    text = "# C\n## 0.2.0\n### Added\n\n- One\n  thing.\n- Two.\n\n### Fixed\n- Three.\n\n"
    text += "## 0.1.0\n\n### Added\n\n- Old.\n"
    assert packaging.changes(text, "0.2.0") == [
        {"kind": "added", "description": "One thing."},
        {"kind": "added", "description": "Two."},
        {"kind": "fixed", "description": "Three."},
    ]


def test_an_address_that_is_none_is_refused_with_an_example(tmp_path: Path) -> None:
    command = ["python3", str(charts.CHARTS / "package.py"), "--source", "", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "got --source '', wanted the repository's address such as https://" in done.stderr


@pytest.mark.skipif(not (CHECKERS / "yamllint").exists(), reason="yamllint and yamale: `make test-helm` fetches them")
def test_the_charts_pass_what_ct_lint_checks() -> None:
    """`ct lint` runs these two programs with these files, and `helm lint` with each profile (test_charts.py)."""
    config: dict[str, Any] = yaml.safe_load((charts.CHARTS / "ct.yaml").read_text())
    for name in ("mor", "mor-reward"):
        chart = charts.CHARTS / name
        files = [
            str(chart / "Chart.yaml"),
            str(chart / "values.yaml"),
            *(str(file) for file in chart.glob("ci/*.yaml")),
        ]
        schema = ("--schema", str(charts.ROOT / config["chart-yaml-schema"]), files[0])
        style = ("--strict", "--config-file", str(charts.ROOT / config["lint-conf"]), *files)
        for command in (("yamale", *schema), ("yamllint", *style)):
            done = subprocess.run(
                [str(CHECKERS / command[0]), *command[1:]], capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["mor", "mor-reward"])
def test_openshift_chooses_user_and_group_itself(name: str) -> None:
    """Its admission refuses a uid or group outside of the namespace's range, and sets what is absent."""
    chart = charts.CHARTS / name
    documents = charts.render(chart, f"--values={chart / 'ci' / 'openshift-values.yaml'}")
    for workload, pod in charts.pods(documents).items():
        contexts = [pod["securityContext"], *(each["securityContext"] for each in pod["containers"])]
        for context in contexts:
            assert not {"runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"} & set(context), workload
        assert pod["securityContext"]["runAsNonRoot"]
