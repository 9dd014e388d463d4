"""The chart's objects for operators fit the types that the operators publish."""

from __future__ import annotations

import pytest
import yaml

from tests.cluster import resource_types
from tests.cluster.cluster import Cluster
from tests.helm import charts

NAMESPACE = "operators"
PROFILE = charts.CHARTS / "mor" / "ci" / "operators-values.yaml"
EXAMPLE = charts.ROOT / "examples" / "kubeflow" / "trainjob.yaml"

pytestmark = pytest.mark.timeout(900)  # the session's first test starts the control plane, too


def test_objects_for_operators_have_no_field_that_the_published_types_lack(simulated: Cluster) -> None:
    documents = charts.render(charts.CHARTS / "mor", f"--values={PROFILE}", namespace=NAMESPACE)
    example = yaml.safe_load(EXAMPLE.read_text())
    made = [
        document
        for document in [*documents, example]
        if resource_types.published(document["apiVersion"].partition("/")[0], document["kind"])
    ]
    if not made:
        pytest.skip(f"no published types: set {resource_types.FOLDER} (docs/contributing.md)")
    assert {document["kind"] for document in made} >= {
        *("JobSet", "TrainingRuntime", "TrainJob", "ScaledObject"),
        *("HTTPRoute", "BackendTLSPolicy", "ServiceMonitor", "PrometheusRule"),
    }
    simulated.prepare(NAMESPACE, made)

    def create(document: charts.Document) -> None:
        options = ("--dry-run=server", "--validate=strict", "-n", NAMESPACE)
        simulated.kubectl("create", *options, "-f", "-", given=yaml.safe_dump(document))

    for document in made:
        create(document)
    with pytest.raises(RuntimeError, match=r'unknown field "spec\.trainer\.nodes"'):
        create(example | {"spec": example["spec"] | {"trainer": {"nodes": 2}}})
