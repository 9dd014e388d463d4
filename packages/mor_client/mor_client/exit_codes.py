"""Exit statuses of ``mor``, as docs/command-line.md has them."""

from __future__ import annotations

import enum

from mor_core.errors import MorError

from mor_client.errors import ServiceError


class Exit(enum.IntEnum):
    done = 0
    refused = 1
    """A service refused the request or failed; ``doctor`` found something that failed."""
    usage = 2
    """A wrong option, setting or input file; nothing was asked."""
    no_answer = 3
    """A service cannot be reached or is not ready, after all attempts."""
    not_allowed = 4
    """No token, an unknown one, or one without the scope."""
    not_found = 5
    conflict = 6
    """The present state does not allow it."""
    run_failed = 7
    """``run watch``: the run failed or was stopped."""
    interrupted = 130


_OF_STATUS = {
    401: Exit.not_allowed,
    403: Exit.not_allowed,
    404: Exit.not_found,
    409: Exit.conflict,
    429: Exit.no_answer,
    502: Exit.no_answer,
    503: Exit.no_answer,
    504: Exit.no_answer,
}


def exit_of(error: MorError) -> Exit:
    """The exit status that an error ends a command with."""
    if not isinstance(error, ServiceError):
        return Exit.usage
    if error.status_code is None:
        return Exit.no_answer
    return _OF_STATUS.get(error.status_code, Exit.refused)
