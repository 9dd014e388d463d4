"""Object stores for large blobs: the check that a process can use the one that ``MOR_BLOB_DIR`` names."""

from __future__ import annotations

import fsspec
from fsspec.utils import get_protocol

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "az": "azure",
    "adl": "azure",
}
"""Protocol -> extra of ``mor-core`` with its library."""
_ONE_PROCESS = ("memory",)
"""Protocols whose content no other process sees."""


def check_store(url: str) -> None:
    """Check that the library of an fsspec URL's protocol is there.

    Raises:
        ValueError: it is not, or no other process could read what is written there.
    """
    for part in url.split("::"):  # a chain of protocols, such as a cache before a store
        protocol = get_protocol(part)
        if protocol in _ONE_PROCESS:
            raise ValueError(
                f"{protocol}:// is memory of this process; give a folder or an object store that all share"
            )
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            cure = f"install mor-core[{EXTRAS[protocol]}]" if protocol in EXTRAS else "install it beside mor-core"
            library = (error.name or "a library").partition(".")[0]
            raise ValueError(f"{protocol}:// needs {library}, which is not installed; {cure}") from error
        except ValueError as error:
            known = ", ".join(sorted(EXTRAS))
            raise ValueError(f"{protocol}:// is no protocol of fsspec; give a folder, or one of {known}") from error
