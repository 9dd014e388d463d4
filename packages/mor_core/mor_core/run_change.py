"""Tags and the note of a run, which people change at any time, also after its end."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from mor_core.wire import Documented

MOST_TAGS = 20
"""Tags of a run; more would no longer fit beside its name."""
_TAG = re.compile(r"\w[\w.:/=+-]{0,39}")


def _check_tag(text: str) -> str:
    if not _TAG.fullmatch(text):
        raise ValueError(
            f"got {text[:60]!r}; a tag is up to 40 letters, digits and the signs _.:/=+-; leave others out"
        )
    return text


Tag = Annotated[str, AfterValidator(_check_tag), Field(json_schema_extra={"pattern": f"^{_TAG.pattern}$"})]
"""One word, so that a command and a table take it as such."""
Note = Annotated[str, StringConstraints(strip_whitespace=True, max_length=4000)]


class RunChange(Documented):
    """Change of the tags and the note of a run. What is left out stays as it is."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"add_tags": ["baseline"], "remove_tags": [], "note": "the first run with the new anchors"}]
        }
    )

    add_tags: tuple[Tag, ...] = Field((), max_length=MOST_TAGS)
    """Tags to add: up to 40 letters, digits and ``_.:/=+-`` each. A run has at most 20."""
    remove_tags: tuple[Tag, ...] = Field((), max_length=MOST_TAGS)
    """Tags to remove; one that the run does not have changes nothing."""
    note: Note | None = None
    """New note, up to 4,000 characters; an empty text removes it, null leaves it as it is."""
