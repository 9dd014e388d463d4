"""Prometheus for a stack: its targets, start and end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mor_core.auth import hash_token
from three_domains import observe, stack

FAKE = """#!{python}
import http.server, sys
[where] = [option.partition("=")[2] for option in sys.argv if option.startswith("--web.listen-address")]
host, port = where.split(":")
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer((host, int(port)), Ready).serve_forever()
"""


def test_every_service_is_scraped_and_the_rules_are_the_charts(tmp_path: Path) -> None:
    made = stack.prepare(tmp_path, tmp_path / "base")
    config = json.loads(observe.configure(tmp_path).read_text())
    [job] = config["scrape_configs"]
    found = {one["labels"]["service"]: one["targets"] for one in job["static_configs"]}
    assert found == {name: [f"127.0.0.1:{made.ports[name]}"] for name in stack.HTTP_SERVICES}
    credentials = Path(job["authorization"]["credentials_file"])
    token = credentials.read_text()
    assert credentials.stat().st_mode & 0o077 == 0
    for held in (tmp_path / "tokens.json", *tmp_path.glob("clients/*/tokens.json")):
        scopes = {row["sha256"]: row["scope"] for row in json.loads(held.read_text())}
        assert scopes[hash_token(token)] == "metrics", "every service knows it"
    rules = (tmp_path / "prometheus" / "rules.yaml").read_text()
    assert "MorClientDown" in rules
    assert "@SELECTOR@" not in rules


def test_the_error_without_a_stack_has_the_cure(tmp_path: Path) -> None:
    with pytest.raises(stack.StackError, match="run `make demo` or `make up` first"):
        observe.configure(tmp_path)


def test_it_prints_its_address_and_ends_with_an_interrupt(tmp_path: Path) -> None:
    stack.prepare(tmp_path, tmp_path / "base")
    program = tmp_path / "prometheus-program"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    command = [sys.executable, "-m", "three_domains.observe", "--state", str(tmp_path), "--prometheus", str(program)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Prometheus: http://127.0.0.1:")
    [child] = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)


def test_the_error_of_a_failed_start_has_the_programs_output(tmp_path: Path) -> None:
    stack.prepare(tmp_path, tmp_path / "base")
    program = tmp_path / "prometheus-program"
    program.write_text("#!/bin/sh\necho no such flag\nexit 2\n")
    program.chmod(0o755)
    with pytest.raises(stack.StackError, match="no such flag"):
        observe.observe(str(program), tmp_path)
