"""Errors that services share.

::

    MorError                      anything MoR raises on purpose; str() says what was got, what was wanted, what to do
    ├── Invalid                   bad input                              -> 422
    │   └── DataFileError         a line of a data file                  -> 422
    ├── Unauthorized              no token or an unknown one             -> 401
    ├── Forbidden                 a token without the scope              -> 403
    ├── NotFound                                                         -> 404
    ├── Conflict                  the state does not allow it            -> 409
    ├── TooLarge                  over a limit in bytes, pixels or items -> 413
    ├── Unavailable               try again later (``retry_after_s``)    -> 503
    │   └── Overloaded            no room or no time for it now          -> 429
    └── StreamError               a stream operation failed
        ├── StreamFull            the bound was not left in time
        ├── LeaseLost             another consumer took the entry over
        └── BlobMissing           the blob's owner was settled or the store was flushed
"""

from __future__ import annotations


class MorError(Exception):
    status = 500
    title = "Internal error"


class Invalid(MorError, ValueError):
    status = 422
    title = "Invalid input"


class DataFileError(Invalid):
    """A bad line of a data file. ``str()`` is ``file:line: what is wrong; what to do``."""

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


class BlobMissing(StreamError):
    pass
