"""Prometheus for a running demonstration: ``python -m three_domains.observe --state DIR [--prometheus PROGRAM]``.

It scrapes every service, loads the alerts that the Helm chart installs, and ends with Ctrl-C; its data stays in the
state folder.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from three_domains.stack import CLIENTS, HTTP_SERVICES, StackError, free_ports, metrics_token_file

_RULES = Path(__file__).parents[3] / "helm" / "mor" / "files" / "rules.yaml"
_RUNBOOKS = (Path(__file__).parents[3] / "docs" / "runbooks.md").as_uri()
_START_S = 30.0
"""Longest start of Prometheus, seconds."""
_STOP_S = 20.0
"""Seconds for Prometheus to end before it is killed."""


def ports(state: Path) -> dict[str, int]:
    """Return the ports of the services of the stack below ``state``.

    Raises:
        StackError: no stack was started there.
    """
    try:
        settings = dict(line.partition("=")[::2] for line in shlex.split((state / "stack.env").read_text()))
    except FileNotFoundError as error:
        raise StackError(f"no stack was started on {state}; run `make demo` or `make up` first") from error
    return {name: int(settings[f"{name.upper()}_PORT"]) for name in HTTP_SERVICES}


def configure(state: Path) -> Path:
    """Write Prometheus's configuration, as JSON, which is YAML, and its rules below ``state``; return its path."""
    folder = state / "prometheus"
    folder.mkdir(exist_ok=True)
    rules = _RULES.read_text().replace("@SELECTOR@", "").replace("@RUNBOOKS@", _RUNBOOKS)
    (folder / "rules.yaml").write_text(rules)
    scraped = [
        {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {"service": name, "component": "reward" if name in CLIENTS else name},
        }
        for name, port in ports(state).items()
    ]
    config = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "15s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": "mor",
                "authorization": {"credentials_file": str(metrics_token_file(state).resolve())},
                "static_configs": scraped,
            }
        ],
    }
    file = folder / "prometheus.yaml"
    file.write_text(json.dumps(config, indent=1))
    return file


def observe(program: str, state: Path) -> int:
    """Run Prometheus until it ends or is interrupted; return its exit status."""
    config, [port] = configure(state), free_ports(["prometheus"]).values()
    address = f"http://127.0.0.1:{port}"
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={config.parent / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (config.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_until_ready(process, address, config.parent / "log")
        print(f"Prometheus: {address} (alerts: {address}/alerts); Ctrl-C ends it", flush=True)
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{address}/-/ready", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise StackError(f"Prometheus did not start; its last output:\n{log.read_text(errors='replace')[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="folder of the demonstration")
    parser.add_argument("--prometheus", default="prometheus", help="program to run")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if shutil.which(options.prometheus) is None:
        print(f"error: no program {options.prometheus}; install Prometheus, or give --prometheus", file=sys.stderr)
        return 1
    try:
        return observe(options.prometheus, options.state.resolve())
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
