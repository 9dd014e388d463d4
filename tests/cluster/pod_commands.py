"""Commands of job pods that talk to the API server, run here as processes with the pod's own service account.

What they do to Secrets is thus real, and so is what their Roles permit; all other pods of simulated nodes run nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

_MODULE = "mor_core.secrets_job"
_RUN = f"""
import pathlib, runpy, sys
from mor_core import cluster_secrets
cluster_secrets._ACCOUNT = pathlib.Path(sys.argv[1])
sys.argv = ["secrets_job", *sys.argv[2:]]
runpy.run_module("{_MODULE}", run_name="__main__")
"""


def runs_here(pod: dict[str, Any]) -> bool:
    command: list[str] = pod["spec"]["containers"][0].get("command", [])
    return command[1:3] == ["-m", _MODULE]


def run(pod: dict[str, Any], http: httpx.Client, authority: Path, folder: Path) -> str:
    """Run the pod's command to its end; return its error output, empty after a success."""
    namespace, account = pod["metadata"]["namespace"], pod["spec"]["serviceAccountName"]
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = http.post(path, json=request)
    answer.raise_for_status()
    mounted = folder / pod["metadata"]["uid"]
    mounted.mkdir()
    files = {"token": answer.json()["status"]["token"], "namespace": namespace, "ca.crt": authority.read_text()}
    for name, content in files.items():
        (mounted / name).write_text(content)
    container = pod["spec"]["containers"][0]
    variables = {each["name"]: each["value"] for each in container.get("env", [])}
    server = urlsplit(str(http.base_url))
    variables |= {"KUBERNETES_SERVICE_HOST": str(server.hostname), "KUBERNETES_SERVICE_PORT": str(server.port)}
    command = [sys.executable, "-c", _RUN, str(mounted), *container["command"][3:]]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False)
    return "" if done.returncode == 0 else done.stderr[-2000:] or f"exit status {done.returncode}"
