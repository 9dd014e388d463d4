"""Links in folders that users name: data sets and models, which are exchanged and may come from anybody.

A link may stay inside the folder. It may lead out of it in one case: to a blob of the hub cache that the folder lies
in, or of the cache that ``HF_HUB_CACHE`` or ``HF_HOME`` gives.
"""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

from mor_core.errors import Invalid
from mor_core.failures import describe_failure


class FolderLinks:
    """Rule for the files that may be read through paths below one folder."""

    def __init__(self, root: Path) -> None:
        self._root, self._resolved = root, root.resolve()
        self._blobs = _blob_folders(root)

    def allow(self, named: Path, file: Path) -> bool:
        """Return whether ``file``, the resolved target of the path ``named``, may be read."""
        if file.is_relative_to(self._resolved):
            return True
        written = Path(os.path.normpath(named.absolute()))
        inside = any(written.is_relative_to(folder) for folder in (self._root.absolute(), self._resolved))
        return inside and any(_is_blob(file, folder) for folder in self._blobs)


def check_checkpoint(model: str) -> None:
    """Check that the folder of a checkpoint is there, unless it is a hub name, and the links in it.

    Raises:
        Invalid: there is no such folder, or as ``check_model_folder``.
    """
    folder = Path(model).expanduser()
    if folder.is_file():
        raise Invalid(f"model {model!r} is a file; give the checkpoint folder that it lies in")
    if not folder.is_dir() and (folder.is_absolute() or model.startswith(".")):
        raise Invalid(f"model {model!r}: there is no such folder; give the folder of a checkpoint, or OWNER/NAME")
    check_model_folder(model)


def check_model_folder(model: str) -> None:
    """Check the links in a model's folder, two levels deep as checkpoints are; a hub name has none.

    Raises:
        Invalid: a link leads elsewhere, or nowhere.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return
    links = FolderLinks(folder)
    for path in chain(folder.iterdir(), folder.glob("*/*")):
        if not path.is_symlink():
            continue
        try:
            allowed = links.allow(path, path.resolve(strict=True))
        except (OSError, RuntimeError) as error:
            raise Invalid(f"model {model!r}: the link {path.name} leads nowhere ({describe_failure(error)})") from error
        if not allowed:
            raise Invalid(
                f"model {model!r}: the link {path.name} leads out of its folder; put the file itself there, or give "
                "the folder below snapshots/ of a hub cache"
            )


def _blob_folders(root: Path) -> list[Path]:
    """Return the folders to whose blobs links may lead: the folder's own hub cache, and the given one."""
    folders = []
    for snapshot in (root.absolute(), *root.absolute().parents):
        if snapshot.parent.name == "snapshots" and (snapshot.parent.parent / "blobs").is_dir():
            folders.append(snapshot.parent.parent.resolve())
    if given := os.environ.get("HF_HUB_CACHE"):
        folders.append(Path(given).resolve())
    elif home := os.environ.get("HF_HOME"):
        folders.append((Path(home) / "hub").resolve())
    return folders


def _is_blob(file: Path, folder: Path) -> bool:
    return file.is_relative_to(folder) and file.parent.name == "blobs"
