"""Objects that an uninstallation leaves are documented by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helm import charts
from tests.helm.charts import Document

MOR, REWARD = charts.CHARTS / "mor", charts.CHARTS / "mor-reward"
PAGE = (charts.ROOT / "docs" / "installation.md").read_text().partition("## Uninstalling")[2].partition("\n## ")[0]


def left(documents: list[Document]) -> set[str]:
    """Return the names of objects that outlive a release: kept ones, those of hooks, and claims of StatefulSets."""
    names = set()
    for document in documents:
        about = document["metadata"]
        annotations = about.get("annotations", {})
        hooks = "helm.sh/hook" in annotations
        if hooks or annotations.get("helm.sh/resource-policy") == "keep":
            names.add(about["name"])
        for claim in document.get("spec", {}).get("volumeClaimTemplates", []):
            names.add(f"{claim['metadata']['name']}-{about['name']}-0")
    return names


@pytest.mark.parametrize(
    ("chart", "profile", "ours", "documented"),
    [(MOR, "tiny-cpu", "m-mor", "mor"), (REWARD, "enrolled", "m-mor-reward", "scores-mor-reward")],
)
def test_every_object_that_stays_is_named(chart: Path, profile: str, ours: str, documented: str) -> None:
    names = left(charts.render(chart, f"--values={chart / 'ci' / f'{profile}-values.yaml'}"))
    assert names
    for name in names:
        assert f"`{name.replace(ours, documented, 1)}`" in PAGE, name


def test_the_guide_waits_for_the_pod_that_it_copies_through() -> None:
    text = (charts.ROOT / "docs" / "installation.md").read_text()
    assert text.index("wait --for=condition=Ready pod/fill") < text.index("kubectl -n mor cp")
