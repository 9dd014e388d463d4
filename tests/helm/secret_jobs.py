"""API server on which the charts' jobs for Secrets run, with what their Roles permit; Secrets of a rendered chart."""

from __future__ import annotations

import base64
import json
import re
import threading
from typing import Any

import httpx
from mor_core.cluster_secrets import ClusterSecrets
from mor_core.generated_secrets import GeneratedSecret, WantedSecret
from mor_core.secrets_job import run
from pydantic import TypeAdapter

from tests.helm import charts
from tests.helm.api_server import ApiServer
from tests.helm.charts import Document
from tests.helm.controllers import Key

Secrets = dict[str, dict[str, str]]

_WANTED = TypeAdapter(list[WantedSecret])
_PATH = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/secrets(/(?P<name>[^/]+))?")


def wanted_secrets(pod: Document) -> list[WantedSecret]:
    return _WANTED.validate_json(charts.variables(pod)["MOR_WANTED_SECRETS"])


def generated(documents: list[Document]) -> Secrets:
    """Return what the jobs of rendered charts generate, by the names of the Secrets."""
    pods = [job["spec"]["template"]["spec"] for name, job in charts.of(documents, "Job").items() if "-secrets-" in name]
    return {wanted.secret: GeneratedSecret(wanted, {}).data for pod in pods for wanted in wanted_secrets(pod)}


class JobServer(ApiServer):
    """API server on which these jobs run in a thread; helm waits until those of hooks end, as on a cluster."""

    def __init__(self, version: str = "1.34") -> None:
        self.logs: list[str] = []
        self._started: list[threading.Thread] = []
        super().__init__(version)

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        data = self.of("Secret", namespace)[name]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def wait(self) -> None:
        """Wait until the jobs have ended."""
        for thread in self._started:
            thread.join(timeout=60)

    def start(self, namespace: str, cronjob: str, names: str = "all") -> None:
        """Run a Job of a CronJob to its end, like ``kubectl create job --from``."""
        template = self.of("CronJob", namespace)[cronjob]["spec"]["jobTemplate"]["spec"]["template"]
        self._run_pod(namespace, template["spec"], names)

    def _store(self, key: Key, document: dict[str, Any]) -> dict[str, Any]:
        begins = key.resource == "jobs" and key not in self.objects
        stored = super()._store(key, document)
        if begins and "MOR_WANTED_SECRETS" in json.dumps(document):
            stored["status"] = {}
            self._started.append(threading.Thread(target=self._complete, args=(key, stored), daemon=True))
            self._started[-1].start()
        return stored

    def _complete(self, key: Key, job: dict[str, Any]) -> None:
        self._run_pod(key.namespace, job["spec"]["template"]["spec"])
        self.put(key.group_version, key.resource, {"metadata": job["metadata"], "spec": job["spec"]})

    def _run_pod(self, namespace: str, pod: Document, names: str = "") -> None:
        assert pod["automountServiceAccountToken"]
        rules = self.of("Role", namespace)[pod["serviceAccountName"]]["rules"]
        assert pod["serviceAccountName"] in self.of("ServiceAccount", namespace)
        with httpx.Client(base_url=self.url, event_hooks={"request": [lambda call: _authorise(call, rules)]}) as http:
            action = pod["containers"][0]["command"][-1]
            cluster = ClusterSecrets(http, namespace)
            names = names or charts.variables(pod)["MOR_SECRETS"]
            self.logs += run(cluster, action, wanted_secrets(pod), names.split(","))


def _authorise(call: httpx.Request, rules: list[Document]) -> None:
    """Refuse what the Role does not permit, as an API server with RBAC does."""
    found = _PATH.fullmatch(call.url.path)
    assert found is not None, call.url.path
    verb = {"GET": "get", "POST": "create", "PATCH": "patch"}[call.method]
    assert any(
        verb in rule["verbs"] and ("resourceNames" not in rule or found["name"] in rule["resourceNames"])
        for rule in rules
    ), f"{verb} of {found['name']} is not permitted by {json.dumps(rules)}"
