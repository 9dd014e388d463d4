"""Errors that services share.

::

    MorError                      base; str() states what was received, what is expected, the cure
    ├── Invalid                   invalid input                          -> 422
    │   └── DataFileError         a line of a data file                  -> 422
    ├── Unauthorized              missing or unknown token               -> 401
    ├── Forbidden                 token without the needed scope         -> 403
    ├── NotFound                  no such resource                       -> 404
    ├── Conflict                  not possible in the current state      -> 409
    ├── TooLarge                  over a limit of bytes, pixels or items -> 413
    ├── Unavailable               retry later (``retry_after_s``)        -> 503
    │   └── Overloaded            no capacity or not enough time         -> 429
    └── StreamError               failed stream operation
        ├── StreamFull            no space within the time limit
        ├── LeaseLost             another consumer claimed the entry
        │   └── Superseded        a later attempt at the run has begun
        └── BlobMissing           the blob's owner was settled, or the store was flushed
"""

from __future__ import annotations


class MorError(Exception):
    status = 500
    title = "Internal error"


class Invalid(MorError, ValueError):
    status = 422
    title = "Invalid input"


class DataFileError(Invalid):
    """Invalid line of a data file. ``str()`` is ``file:line: problem; cure``."""

    def __init__(self, path: object, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")
        self.line = line


class Unauthorized(MorError):
    status = 401
    title = "Not authenticated"


class Forbidden(MorError):
    status = 403
    title = "Not allowed"


class NotFound(MorError):
    status = 404
    title = "Not found"


class Conflict(MorError):
    status = 409
    title = "Conflict"


class TooLarge(MorError):
    status = 413
    title = "Too large"


class Unavailable(MorError):
    status = 503
    title = "Not available"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    status = 429
    title = "Too many requests"


class StreamError(MorError):
    pass


class StreamFull(StreamError):
    pass


class LeaseLost(StreamError):
    pass


class Superseded(LeaseLost):
    pass


class BlobMissing(StreamError):
    pass
