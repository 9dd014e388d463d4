"""Push to a Hugging Face hub, through the hub's own library: one commit, after all large files are there.

The library reads ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_TOKEN_PATH`` and ``HF_HUB_DISABLE_XET`` itself.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from mor_core.errors import Invalid, Unavailable
from mor_core.failures import quote_failure
from mor_core.hidden_secrets import remember
from mor_core.loopback import is_loopback
from mor_core.run_storage import ExportedFile

from mor_trainer.results.destination import HubRepository

_TIMEOUT_S = 300.0
"""Seconds without a byte from the hub, which may check a large file before it answers."""
_OURS = ("*.safetensors", "*.safetensors.index.json", "adapter_*")
"""Files of an earlier push, at the top, that the model would be loaded from, too; others in the repository stay."""
_REFUSED = (401, 403)
_CURE = "set HF_TOKEN, or HF_TOKEN_PATH to a file, with a token that may write to {}"


def push_to_hub(
    folder: Path, files: Sequence[ExportedFile], repository: HubRepository, *, public: bool, proxy: str | None
) -> str:
    """Push a model into a repository of a hub, which is created where it is missing, and return its address.

    Raises:
        Invalid: the hub has no such user, the token may not write, or the repository is public and ``public`` is off.
        Unavailable: the hub could not be reached, or failed.
    """
    os.environ["HF_HUB_OFFLINE"] = "0"  # which keeps loaders of models from the hub
    if proxy is not None:
        os.environ["HTTPS_PROXY"] = os.environ["HTTP_PROXY"] = proxy
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    huggingface_hub.get_session().timeout = _TIMEOUT_S
    hub = huggingface_hub.HfApi()
    name = repository.name
    address = urlsplit(hub.endpoint)
    if address.scheme != "https" and not is_loopback(address.hostname or ""):
        raise Invalid(
            f"HF_ENDPOINT is {hub.endpoint}, and a token would travel there unencrypted; give an https:// one"
        )
    token = huggingface_hub.get_token()
    if token is None:
        raise Invalid(f"there is no token for {hub.endpoint}; {_CURE.format(name)}")
    remember(token)  # from a file; a hub may quote it
    try:
        try:
            found = hub.repo_info(name)
        except RepositoryNotFoundError:
            hub.create_repo(name, visibility="public" if public else "private", exist_ok=True)
            found = hub.repo_info(name)
        if not found.private and not public:
            raise Invalid(f"{name} exists on {hub.endpoint} and is public; give --public, or another name")
        hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[glob.escape(file.name) for file in files],
            delete_patterns=_stale(hub.list_repo_files(name)),
            commit_message="Push by MoR",
            parent_commit=found.sha,  # two pushes at a time would mix their weights
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        reason = f"{hub.endpoint} refused the push to {name} ({quote_failure(error)})"
        if status in _REFUSED:
            raise Invalid(f"{reason}; {_CURE.format(name)}") from error
        raise Unavailable(f"{reason}; correct what it names, or try again") from error
    except Invalid:
        raise
    except Exception as error:  # whatever the library and its transports raise
        raise Unavailable(
            f"{hub.endpoint} could not be reached, or its answer not read ({quote_failure(error)}); check HF_ENDPOINT, "
            "the network and MOR_PUSH_PROXY, and push again: what is there is not sent again"
        ) from error
    return f"{hub.endpoint}/{name}"


def _stale(files: Iterable[str]) -> list[str]:
    """Return patterns of the files in a repository that a push replaces or deletes."""
    return [glob.escape(name) for name in files if "/" not in name and any(fnmatchcase(name, one) for one in _OURS)]
