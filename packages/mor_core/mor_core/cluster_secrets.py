"""Secrets of the Kubernetes namespace that this pod is in, read and changed over the API with its service account.

A change states the version that it was made from: of two writers, the second reads again.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import stamina

from mor_core.errors import Invalid, Unavailable
from mor_core.process import bracketed

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = 10.0
"""Seconds for one call to the API server, which normally answers within one."""
_PATIENCE_S = 60.0
"""Seconds of attempts while the API server is away; the Job's further attempts follow."""
_CONFLICT = 409
_BUSY = (429, 500, 502, 503, 504)
_OWNER = "meta.helm.sh/release-name"
"""Annotation of an object that a release's manifest created."""
_KEPT = {"helm.sh/resource-policy": "keep"}
_LABELS = {"app.kubernetes.io/part-of": "mor", "app.kubernetes.io/managed-by": "mor-secrets-job"}
"""Labels of a new Secret. It has no label of its release: Argo CD deletes what has one and is not in the manifests."""

Data = dict[str, str]


class SecretConflict(Unavailable):
    """Another writer changed the Secret in between."""


@dataclass(frozen=True)
class StoredSecret:
    """Secret as it is in the cluster."""

    data: Data
    version: str
    owned: bool
    """True if a release's manifest created it, as former charts did."""


class ClusterSecrets:
    """Calls that the job's Role grants: create, and get and patch of the named Secrets."""

    def __init__(self, http: httpx.Client, namespace: str) -> None:
        self._http = http
        self._path = f"/api/v1/namespaces/{namespace}/secrets"

    def change(self, name: str, change: Callable[[Data], Data]) -> list[str]:
        """Change the text of a Secret, which is created if absent; return the keys that changed.

        Raises:
            Invalid: the API server refuses, or ``change`` does.
            Unavailable: the API server cannot be reached.
        """
        for attempt in stamina.retry_context(on=Unavailable, attempts=None, timeout=_PATIENCE_S, wait_max=5.0):
            with attempt:
                return self._change_once(name, change)
        raise AssertionError("the retry context returns or raises")

    def _change_once(self, name: str, change: Callable[[Data], Data]) -> list[str]:
        known = self._read(name)
        before = {} if known is None else known.data
        after = change(before)
        changed = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
        if known is None:
            metadata: dict[str, Any] = {"name": name, "labels": _LABELS}
            content = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata}
            self._call("POST", self._path, name, content | {"data": _encode(after)})
        elif changed or known.owned:
            version: dict[str, Any] = {"resourceVersion": known.version}
            if known.owned:
                # The next manifest has no values, so helm must neither delete the Secret nor the values that it wrote.
                version |= {"annotations": _KEPT, "managedFields": [{}]}
            data = {key: _encode(after).get(key) for key in changed}
            self._call("PATCH", f"{self._path}/{name}", name, {"metadata": version, "data": data})
        return changed

    def _read(self, name: str) -> StoredSecret | None:
        reply = self._call("GET", f"{self._path}/{name}", name)
        if reply is None:
            return None
        try:
            data = {key: base64.b64decode(value).decode() for key, value in (reply.get("data") or {}).items()}
        except (binascii.Error, UnicodeDecodeError):
            raise Invalid(f"Secret {name} has a value that is no text; remove that key") from None
        metadata = reply["metadata"]
        return StoredSecret(data, metadata["resourceVersion"], _OWNER in (metadata.get("annotations") or {}))

    def _call(self, method: str, path: str, name: str, content: Any = None) -> Any:
        """Return the answer, or ``None`` for a 404. Answers are not quoted: they may hold values."""
        headers = {"Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json"}
        try:
            reply = self._http.request(method, path, json=content, headers=headers)
        except httpx.TransportError as error:
            raise Unavailable(
                f"the Kubernetes API does not answer ({type(error).__name__}); does a network policy permit the job to "
                "reach it? See networkPolicy.apiServerCIDRs"
            ) from error
        if reply.status_code == _CONFLICT:
            raise SecretConflict(f"Secret {name} changed in between")
        if reply.status_code in _BUSY:
            raise Unavailable(f"the Kubernetes API answers {reply.status_code}; try again later")
        if method == "GET" and reply.status_code == 404:
            return None
        if reply.status_code in (401, 403):
            raise Invalid(
                f"the Kubernetes API refuses {method} of Secret {name} ({reply.status_code}); the job's Role must "
                "permit get and patch of it, and create"
            )
        if not reply.is_success:
            raise Invalid(f"the Kubernetes API answers {reply.status_code} to {method} of Secret {name}")
        return reply.json()


def connect_in_cluster() -> ClusterSecrets:
    """Connect with the service account of this pod.

    Raises:
        Invalid: this is no pod with a service account's token.
    """
    try:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        token, namespace = ((_ACCOUNT / name).read_text().strip() for name in ("token", "namespace"))
        trusted = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt"))
    except (KeyError, OSError) as error:
        raise Invalid(
            f"no service account of Kubernetes is here ({type(error).__name__}); run this in the chart's job"
        ) from error
    http = httpx.Client(
        base_url=f"https://{bracketed(host)}:{port}",
        headers={"Authorization": f"Bearer {token}"},
        verify=trusted,
        timeout=_TIMEOUT_S,
        trust_env=False,
    )
    return ClusterSecrets(http, namespace)


def _encode(data: Data) -> Data:
    return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
