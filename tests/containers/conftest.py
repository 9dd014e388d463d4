"""These tests need podman, helm and the images: `make images`, `make test-images`."""

from __future__ import annotations

import pytest

from tests.containers.podman import Podman, missing
from tests.helm import charts


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    reason = missing() or (None if charts.HELM.exists() else "helm is not here: `make test-helm` fetches it")
    if reason:
        pytest.skip(reason)
    return Podman(tmp_path_factory.mktemp("podman"))
