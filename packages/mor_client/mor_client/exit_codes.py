"""Exit statuses of ``mor``, documented in docs/command-line.md."""

from __future__ import annotations

import enum

from mor_core.errors import MorError

from mor_client.errors import ServiceError, WrongService


class ExitCode(enum.IntEnum):
    done = 0
    refused = 1
    """A service refused the request or failed, or a check of ``doctor`` failed."""
    usage = 2
    """An option, setting or input file is invalid; no request was sent."""
    no_answer = 3
    """A service could not be reached or was not ready in all attempts."""
    not_allowed = 4
    """The token is missing, unknown or without the needed scope."""
    not_found = 5
    conflict = 6
    """The current state does not allow the request."""
    run_failed = 7
    """``run watch``: the run failed or was stopped."""
    interrupted = 130


_BY_HTTP_STATUS = {
    401: ExitCode.not_allowed,
    403: ExitCode.not_allowed,
    404: ExitCode.not_found,
    409: ExitCode.conflict,
    429: ExitCode.no_answer,
    502: ExitCode.no_answer,
    503: ExitCode.no_answer,
    504: ExitCode.no_answer,
}


def exit_code_of(error: MorError) -> ExitCode:
    """Return the exit status of a command that ends with ``error``."""
    if not isinstance(error, ServiceError) or isinstance(error, WrongService):
        return ExitCode.usage
    if error.status_code is None:
        return ExitCode.no_answer
    return _BY_HTTP_STATUS.get(error.status_code, ExitCode.refused)
