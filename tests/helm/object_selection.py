"""Field and label selectors of lists and watches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.helm.controllers import Key


def selected(key: Key, document: dict[str, Any], wanted: Key, query: Mapping[str, str]) -> bool:
    if key[:2] != wanted[:2] or wanted.namespace not in ("", key.namespace):
        return False
    field = query.get("fieldSelector", "")
    if field.startswith("metadata.name=") and key.name != field.partition("=")[2]:
        return False
    labels = document["metadata"].get("labels") or {}
    terms = re.split(r",(?![^(]*\))", query.get("labelSelector", ""))
    return all(_matches(labels, term.strip()) for term in terms if term.strip())


def _matches(labels: dict[str, str], term: str) -> bool:
    if found := re.match(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$", term):
        within = labels.get(found[1]) in [value.strip() for value in found[3].split(",")]
        return within == (found[2] == "in")
    if found := re.match(r"^(\S+?)\s*(!=|==?)\s*(\S*)$", term):
        return (labels.get(found[1]) == found[3]) == (found[2] != "!=")
    return term[1:] not in labels if term.startswith("!") else term in labels
