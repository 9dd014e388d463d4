"""Start of a process: settings, logs and traces, the same way in every service and worker."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsError

from mor_core import logs, tracing
from mor_core.errors import Invalid, MorError
from mor_core.failures import problem_of
from mor_core.field_names import nearest
from mor_core.hidden_secrets import SECRET_NAME, hide_secrets, remember, remember_address
from mor_core.known_variables import KNOWN
from mor_core.printable import visible
from mor_core.settings import PREFIX, LoggedSettings, Settings

S = TypeVar("S", bound=Settings)

_LONGEST_VALUE = 80
"""Characters of a wrong value that the message quotes."""
_HOST = re.compile(r"^((?:\w*:/*)?[^/?#]*).+", re.DOTALL)
"""Address, as far as its host: the path of a webhook may be its secret."""
_USAGE = 2
"""Exit status for a wrong setting, as for a wrong option."""
_SIMILAR = 0.8
"""Least similarity of a suggestion: all variables begin alike."""
_UNKNOWN = "remove it, or correct its name"
"""Cure of a variable that resembles none."""
_FORMER = {
    "MOR_CIRCUIT_FAILURES": "remove it; MOR_CIRCUIT_LEAST_CALLS and MOR_CIRCUIT_FAILURE_SHARE say when a circuit opens",
    "MOR_WEIGHTS_URL": "remove it; the rollout service pulls weights from its own MOR_CONTROL_URL",
}
"""Variables of former versions -> what to do; the most similar name would mislead."""

log = structlog.get_logger(__name__)


def load(kind: type[S], **given: Any) -> S:
    """Read the settings from environment and secrets folder; ``given`` options that are not ``None`` come first.

    Raises:
        Invalid: names the variable, what it is set to unless that is a secret, and what is wanted.
    """
    try:
        settings = kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = [_problem(kind, one) for one in error.errors()]
        misspelt = [f"{name} is set, which nothing reads: {cure}" for name, cure in unread_variables().items()]
        raise Invalid("; ".join([*problems, *misspelt])) from None
    except SettingsError as error:  # a list or an object that is not JSON
        name = str(error).partition('"')[2].partition('"')[0]
        raise Invalid(f"{PREFIX}{name.upper()}: got {_got(kind, name)}; wanted: {_as_json(kind, name)}") from None
    for _, value in settings:
        if isinstance(value, SecretStr):
            secret = value.get_secret_value()
            remember(secret, *secret.split(","))
        remember_address(value.get_secret_value() if isinstance(value, SecretStr) else str(value))
    return settings


def begin(settings: LoggedSettings, name: str) -> None:
    """Set up logs and traces of a process, and name variables that nothing reads."""
    logs.configure(settings.log_level, settings.log_format, service=name)
    tracing.configure(f"mor-{name}")
    # The memory of this process holds tokens and private prompts.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for variable, cure in unread_variables().items():
        log.warning("no service of MoR reads this variable", name=variable, cure=cure)


def unread_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the ``MOR_*`` variables that no process of MoR reads, each with what to do about it."""
    unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in KNOWN)
    return {name: _FORMER.get(name) or _correction(name) for name in unknown}


def warn_of_unread_variables() -> None:
    """Name those that look misspelt on standard error, for a command that writes no log."""
    for variable, cure in unread_variables().items():
        if cure == _UNKNOWN:  # a variable of the user's own, as for tests
            continue
        sys.stderr.write(f"{visible(f'warning: nothing reads the variable {variable}; {cure}')}\n")


def _correction(unknown: str) -> str:
    similar = nearest(unknown, KNOWN, _SIMILAR)
    return f"did you mean {similar}?" if similar else _UNKNOWN


def listen(host: str, port: int, variables: str) -> socket.socket:
    """Return a socket that listens at ``host`` and ``port``, which ``variables`` set.

    ``::`` takes IPv4 calls too; brackets around an IPv6 address, as in a URL, are accepted.

    Raises:
        Invalid: the address cannot be taken.
    """
    host = host.removeprefix("[").removesuffix("]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = (error.strerror or "no reason is given").partition(" (while")[0]
        raise Invalid(
            f"{variables}: cannot listen at {bracketed(host)}:{port} ({reason}); give a free port, and an address of "
            "this machine"
        ) from error


def url_of(listener: socket.socket, *, tls: bool) -> str:
    """Return the URL of a socket that listens."""
    host, port = listener.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """Return a host as URLs write it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


@contextmanager
def reported_errors(program: str) -> Iterator[None]:
    """End the process on an error of MoR with one line and exit status 2, instead of a traceback."""
    try:
        yield
    except MorError as error:
        sys.stderr.write(f"{program}: {visible(hide_secrets(str(error)))}\n")
        raise SystemExit(_USAGE) from error


def _problem(kind: type[Settings], error: Any) -> str:
    """Describe one wrong value of the settings."""
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0])
    variable = f"{PREFIX}{name.upper()}"
    if error["type"] == "missing":
        return f"{variable}: got nothing; wanted: {_purpose(kind, name)}"
    wanted = problem_of(error).removeprefix("wanted: ")
    part = ".".join(map(str, error["loc"][1:]))
    return f"{variable}{f' ({part})' if part else ''}: got {_got(kind, name, error['input'])}; wanted: {wanted}"


def _got(kind: type[Settings], name: str, value: object = None) -> str:
    """Quote a wrong value, unless it is a secret."""
    given = os.environ.get(f"{PREFIX}{name.upper()}") if value is None else value
    field = kind.model_fields.get(name)
    if SECRET_NAME.search(name) or (field is not None and "SecretStr" in str(field.annotation)):
        return "a value that is not shown"
    whole = str(given)
    if name.endswith("_url"):
        whole = _HOST.sub(r"\1…", whole)
    shown = visible(hide_secrets(whole))
    return repr(shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]}…")


def _as_json(kind: type[Settings], name: str) -> str:
    """Say how a value that is a list or an object is written; a list by the parts of what was given."""
    field = kind.model_fields.get(name)
    if field is None or "dict" in str(field.annotation):
        return 'a JSON object, as {"name": "value"}'
    written = _got(kind, name)[1:-1]
    parts = [part.strip(" \"'[]") for part in written.split(",")]
    shown = written and "\\" not in written and not written.endswith("…") and "not shown" not in written
    example = [part for part in parts if part] if shown else []
    return f"a JSON list, as {json.dumps(example or ['one', 'two'])}"


def _purpose(kind: type[Settings], name: str) -> str:
    """Return the first sentence of a setting's description."""
    field = kind.model_fields.get(name)
    return (field.description or "a value").partition(".")[0] if field is not None else "a value"
