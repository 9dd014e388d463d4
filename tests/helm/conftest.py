"""The charts' tests need helm, which `make test-helm` fetches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helm import charts
from tests.helm.api_server import ApiServer
from tests.helm.charts import Document


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not charts.HELM.exists():
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="helm is not here: `make test-helm` fetches it"))


@pytest.fixture
def api_server() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.stop()


@pytest.fixture(scope="module", params=charts.PROFILES, ids=charts.named)
def profile(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def rendered(profile: Path) -> list[Document]:
    return charts.render(charts.chart_of(profile), f"--values={profile}")
