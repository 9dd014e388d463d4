"""Virtual environment of a peer that MoR is compared with."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path


def create(folder: Path, arguments: Sequence[str]) -> Path:
    """Create an environment at ``folder`` that inherits this one, with what pip installs; return its Python.

    Args:
        arguments: packages and options for ``pip install``. Their versions replace those of this environment.
    """
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        parent = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (folder / "lib" / version / "site-packages" / "parent.pth").write_text(parent)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *arguments], check=True, timeout=900)
        ready.touch()
    return python
