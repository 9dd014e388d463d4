"""HTTP client of one of MoR's services, for the chart's jobs."""

from __future__ import annotations

import os
import random
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import httpx

_LONGEST_S = 600.0
"""Longest call, seconds: the fit of a gate."""
_BUSY = (429, 502, 503, 504)
"""Statuses of a service that is busy or starts, or of the proxy before it."""


class Service:
    """HTTP client with the administrator's token, which retries until ``MOR_TIMEOUT_S`` while the service starts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.deadline = time.monotonic() + float(os.environ["MOR_TIMEOUT_S"])
        token = Path(os.environ["MOR_ADMIN_TOKEN_FILE"]).read_text().strip()
        self._http = httpx.Client(
            base_url=os.environ[f"MOR_{name.upper()}"],
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(),  # reads SSL_CERT_FILE
            trust_env=False,  # the token goes through no proxy of the environment
        )

    def call(self, method: str, path: str, *, missing: Any = ..., **request: Any) -> Any:
        """Return the answer's JSON, or ``missing`` for a 404 where it is given; exit on any other error status."""
        while True:
            try:
                left = max(self.deadline - time.monotonic(), 10.0)  # the last calls clean up
                timeout = httpx.Timeout(min(left, _LONGEST_S), connect=5)
                answer = self._http.request(method, path, timeout=timeout, **request)
                if answer.status_code not in _BUSY:
                    break
                problem = f"{answer.status_code} {answer.text[:300]}"
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
            if time.monotonic() > self.deadline:
                sys.exit(f"{self.name}: {method} {path}: {problem}; gave up")
            time.sleep(random.uniform(1, 3))
        if answer.status_code == 404 and missing is not ...:
            return missing
        if not answer.is_success:
            sys.exit(f"{self.name}: {method} {path} answered {answer.status_code}: {answer.text[:2000]}")
        return answer.json() if answer.content else None

    def runs(self) -> list[dict[str, Any]]:
        """Return all runs of run control, of which the route lists a page at a time."""
        runs: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while page := self.call("GET", "/v1/runs", params=after):
            runs += page
            after = {"after": page[-1]["id"]}
        return runs
