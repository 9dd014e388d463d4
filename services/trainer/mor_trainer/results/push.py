"""Push of a model's folder to its destination."""

from __future__ import annotations

from pathlib import Path

from mor_core.errors import Conflict, Invalid
from mor_core.proxies import proxy_of
from pydantic import SecretStr

from mor_trainer.results.destination import HubRepository, parse_destination
from mor_trainer.results.hub import push_to_hub
from mor_trainer.results.model_files import check_model, list_model_files
from mor_trainer.results.oci_registry import Registry
from mor_trainer.results.registry_credentials import read_credentials


def push(folder: Path, destination: str, *, public: bool = False, proxy: SecretStr | None = None) -> str:
    """Push a model and return its address there. It appears there whole or not at all.

    Another call continues after an interruption: files that are there are not sent again. ``public``: a repository
    that the push creates on a hub is public.

    Raises:
        Invalid: the folder, the destination or the credentials do not fit.
        Conflict: a file vanished meanwhile.
        Unavailable: the other end failed, or could not be reached.
    """
    place = parse_destination(destination)
    check_model(folder)
    if public and not isinstance(place, HubRepository):
        raise Invalid("a registry's own settings decide who reads from it; leave --public out")
    try:
        files = list_model_files(folder)
        if isinstance(place, HubRepository):
            return push_to_hub(folder, files, place, public=public, proxy=proxy_of(proxy))
        with Registry(place, read_credentials(place.host), proxy=proxy_of(proxy)) as registry:
            return registry.push(folder, files)
    except OSError as error:
        raise Conflict(
            f"a file of {folder} cannot be read ({error.strerror}); was the run pruned meanwhile?"
        ) from error
