"""Charts rendered for tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
CHARTS = ROOT / "helm"
TOOLS = ROOT / ".mor" / "tools"
HELM = TOOLS / "helm4"
TINY = CHARTS / "mor" / "ci" / "tiny-cpu-values.yaml"
OPERATOR_GROUPS = (
    "monitoring.coreos.com",
    "gateway.networking.k8s.io",
    "jobset.x-k8s.io",
    "trainer.kubeflow.org",
    "keda.sh",
)
"""API groups that operators add, of which Kubernetes has no schema."""
PROFILES = sorted(CHARTS.glob("*/ci/*-values.yaml"))

Document = dict[str, Any]


def helm(
    *arguments: str, binary: Path = HELM, home: Path | None = None, timeout_s: float = 240, **environment: str
) -> str:
    """Run helm and return its standard output.

    Raises:
        RuntimeError: it failed; the message is its standard error.
    """
    own = {"HOME": str(home or TOOLS), "KUBECONFIG": "/nowhere", **environment}
    command = [str(binary), *arguments]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr or done.stdout)
    return done.stdout


def chart_of(profile: Path) -> Path:
    return profile.parent.parent


def named(profile: Path) -> str:
    """Return the name of a profile in test ids."""
    return f"{chart_of(profile).name}-{profile.stem.removesuffix('-values')}"


def render(chart: Path, *options: str, namespace: str = "mor", kubernetes: str = "1.34.0") -> list[Document]:
    """Return every object of the chart, hooks included, for the release ``m``."""
    text = helm("template", "m", str(chart), "--namespace", namespace, "--kube-version", kubernetes, *options)
    return documents(text)


def documents(text: str) -> list[Document]:
    """Return the objects of a rendered text."""
    return [document for document in yaml.safe_load_all(text) if document]


def of(documents: list[Document], kind: str) -> dict[str, Document]:
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def pods(documents: list[Document]) -> dict[str, Document]:
    """Return pod specifications by the names of their workloads."""
    found = {
        document["metadata"]["name"]: document.get("spec", {}) for document in documents if document["kind"] == "Pod"
    }
    for kind in ("Deployment", "StatefulSet", "Job"):
        found |= {name: document["spec"]["template"]["spec"] for name, document in of(documents, kind).items()}
    job_sets = {name: document["spec"] for name, document in of(documents, "JobSet").items()}
    runtimes = of(documents, "TrainingRuntime")
    job_sets |= {name: document["spec"]["template"]["spec"] for name, document in runtimes.items()}
    for name, spec in job_sets.items():
        (replicated,) = spec["replicatedJobs"]
        found[name] = replicated["template"]["spec"]["template"]["spec"]
    cronjobs = of(documents, "CronJob")
    return found | {name: job["spec"]["jobTemplate"]["spec"]["template"]["spec"] for name, job in cronjobs.items()}


def variables(pod: Document) -> dict[str, str]:
    """Return the variables with a value of the first container; others name a field of the pod."""
    return {found["name"]: found["value"] for found in pod["containers"][0]["env"] if "value" in found}


def requests(documents: list[Document]) -> tuple[float, float]:
    """Return the cores and GiB of memory that all replicas request together."""
    cores = memory = 0.0
    for kind in ("Deployment", "StatefulSet"):
        for document in of(documents, kind).values():
            for container in document["spec"]["template"]["spec"]["containers"]:
                requested = container["resources"]["requests"]
                cores += document["spec"]["replicas"] * _cores(requested["cpu"])
                memory += document["spec"]["replicas"] * _gibibytes(requested["memory"])
    return cores, memory


def _cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def _gibibytes(quantity: str) -> float:
    return float(quantity[:-2]) / {"Gi": 1, "Mi": 1024}[quantity[-2:]]
