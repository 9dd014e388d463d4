"""Options with which pip in a build uses the package indexes of this machine's pip: ``pip_for_builds.py FOLDER``.

Writes FOLDER/pip.conf with this machine's settings, and prints the options of ``podman build`` and ``run`` that mount
it with the folders and certificates that it names.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

_OURS = {"constraint", "requirement", "target", "prefix"}
"""Settings that the Dockerfiles set themselves."""


def settings() -> dict[str, str]:
    """Return pip's settings, those of the environment last, because they take precedence."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    lines = sorted(listed, key=lambda line: line.startswith(":env:"))
    parts = (line.partition("=") for line in lines)
    found = {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, _, value in parts}
    return {name: value for name, value in found.items() if name not in _OURS}


def mounts(value: str) -> set[Path]:
    """Return the files of this machine that a setting names. An index links to files beside its own folder."""
    found = set()
    for word in value.split():
        if word.startswith("file://"):
            found.add(Path(word.removeprefix("file://")).parent)
        elif word.startswith("/"):
            found.add(Path(word))
    return {path for path in found if path.exists()}


def main() -> None:
    config = Path(sys.argv[1]).resolve() / "pip.conf"
    known = settings()
    lines = [f"{name} = " + "\n  ".join(value.split()) for name, value in known.items()]
    config.write_text("\n".join(["[global]", *lines]) + "\n", encoding="utf-8")
    named = sorted(set().union(*map(mounts, known.values())))
    volumes = [f"--volume {config}:/etc/pip.conf:ro", *(f"--volume {path}:{path}:ro" for path in named)]
    print("--network host", *volumes)


if __name__ == "__main__":
    main()
