"""Package the charts for publication: ``python helm/package.py --source URL``, or ``make package SOURCE=URL``.

A packaged chart says where it comes from, which the charts in the tree cannot know: ``home``, ``sources`` and ``icon``
follow from the address of the repository that publishes them, ``artifacthub.io/changes`` from the newest version in
the chart's CHANGELOG.md, ``artifacthub.io/images`` from the images that its defaults use. ``--push`` uploads the
archives to an OCI registry and prints their digests, to sign with cosign.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from tools import HELM4, fetch  # noqa: E402

CHARTS = ("mor", "mor-reward")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
"""Kinds of changes that Artifact Hub knows, the headings of keepachangelog.com."""


def changes(changelog: str, version: str) -> list[dict[str, str]]:
    """Return the entries of a version: ``{"kind": "added", "description": ...}``.

    Raises:
        ValueError: its first version is another, or a heading is none of ``KINDS``.
    """
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    if newest is None or newest[1] != version:
        found = newest[1] if newest else "no version"
        raise ValueError(f"CHANGELOG.md begins with {found}, Chart.yaml has {version}: describe that version's changes")
    section = changelog[newest.end() :].partition("\n## ")[0]
    entries = []
    for heading, body in re.findall(r"^### (\S+)\n(.*?)(?=^### |\Z)", section, re.MULTILINE | re.DOTALL):
        if heading not in KINDS:
            raise ValueError(f"CHANGELOG.md has the heading {heading}, wanted one of {', '.join(sorted(KINDS))}")
        for entry in re.findall(r"^- (.*?)(?=^- |\Z)", body, re.MULTILINE | re.DOTALL):
            entries.append({"kind": heading.lower(), "description": " ".join(entry.split())})
    return entries


def images(helm: Path, chart: Path, registry: str) -> list[dict[str, str]]:
    """Return the images of the chart's defaults, with ``registry`` for MoR's own."""
    needed = ["--set=model.name=owner/name"] if chart.name == "mor" else ["--set=function.existingConfigMap=scorer"]
    rendered = _helm(helm, "template", "m", str(chart), f"--set=image.registry={registry}", *needed)
    found = sorted(set(re.findall(r"^\s*(?:- )?image: \"?([^\s\"]+)", rendered, re.MULTILINE)))
    return [{"name": image.rpartition("/")[2].partition(":")[0].partition("@")[0], "image": image} for image in found]


def describe(helm: Path, chart: Path, source: str, registry: str) -> dict[str, Any]:
    """Return the content of Chart.yaml for publication."""
    described: dict[str, Any] = yaml.safe_load((chart / "Chart.yaml").read_text())
    version = described["version"]
    listed = changes((chart / "CHANGELOG.md").read_text(), version)
    described |= {
        "home": source,
        "sources": [source],
        "icon": f"{source}/raw/v{version}/helm/icon.svg",
    }
    links = [{"name": "changelog", "url": f"{source}/blob/v{version}/helm/{chart.name}/CHANGELOG.md"}]
    described["annotations"] |= {
        "artifacthub.io/changes": yaml.safe_dump(listed, sort_keys=False),
        "artifacthub.io/images": yaml.safe_dump(images(helm, chart, registry), sort_keys=False),
        "artifacthub.io/links": yaml.safe_dump(links, sort_keys=False),
        "artifacthub.io/prerelease": str("-" in version).lower(),
    }
    return described


def package(source: str, registry: str, out: Path) -> list[Path]:
    """Write an archive of each chart into ``out``, and return them."""
    helm = fetch(HELM4)
    archives = []
    out.mkdir(parents=True, exist_ok=True)
    for name in CHARTS:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name
            shutil.copytree(HERE / name, copy)
            described = describe(helm, copy, source.rstrip("/"), registry)
            (copy / "Chart.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
            _helm(helm, "lint", "--strict", str(copy), f"--values={HERE / name / 'ci' / LINTED[name]}")
            _helm(helm, "package", str(copy), "--destination", str(out))
        archives.append(out / f"{name}-{described['version']}.tgz")
    return archives


LINTED = {"mor": "tiny-cpu-values.yaml", "mor-reward": "function-values.yaml"}


def push(archives: list[Path], registry: str, *options: str) -> list[str]:
    """Upload archives to ``oci://registry/charts``, and return their references with digests."""
    helm = fetch(HELM4)
    pushed = []
    for archive in archives:
        said = _helm(helm, "push", str(archive), f"oci://{registry}/charts", *options)
        digest = re.search(r"sha256:[0-9a-f]{64}", said)
        assert digest is not None, said
        pushed.append(f"{registry}/charts/{archive.name.rsplit('-', 1)[0]}@{digest[0]}")
    return pushed


def _helm(helm: Path, *arguments: str) -> str:
    """
    Raises:
        SystemExit: helm failed; the message is what it wrote.
    """
    done = subprocess.run([str(helm), *arguments], capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"helm {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="address of the repository that publishes the charts (https)")
    parser.add_argument("--registry", default="localhost", help="registry of the images and charts, with organisation")
    parser.add_argument("--out", type=Path, default=HERE.parent / ".mor" / "charts")
    parser.add_argument("--push", action="store_true", help="upload the archives to oci://REGISTRY/charts")
    parser.add_argument("--plain-http", action="store_true", help="the registry has no TLS")
    given = parser.parse_args()
    if not re.match(r"https?://[^/\s]+/\S+$", given.source):
        parser.error(
            f"got --source {given.source!r}, wanted the repository's address such as https://git.example/ml/mor"
        )
    try:
        archives = package(given.source, given.registry, given.out)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    for archive in archives:
        print(archive)
    if given.push:
        for reference in push(archives, given.registry, *(["--plain-http"] if given.plain_http else [])):
            print(reference)


if __name__ == "__main__":
    main()
