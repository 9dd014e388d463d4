"""Users of the services in Redis: the commands and keys of each, as rules of Redis >= 7 and Valkey >= 8.

``helm/mor/files/redis-users.txt`` is generated from here. A test compares the commands with those in the code, and
another runs the whole loop with these users.
"""

from __future__ import annotations

from dataclasses import dataclass

from mor_core.blobs import BLOB, OWNED, OWNERS
from mor_core.fence import ATTEMPT
from mor_core.outage_waits import WAITS
from mor_core.run_announcements import RUNS_KEY
from mor_core.streams import key

ROUTER_PREFIX = "mor:{router}:"
"""Begin of the keys of the router's store."""
CONTROL_LEASE = "mor:control"
"""Key of the lease of the one run control that uses the server."""
MARK = "mark"
"""Key of a run that a flush of the server removes."""

CLUSTER = "command cluster|slots asking"
"""Commands by which a client finds the nodes of a cluster, and reads a slot that moves."""
_EACH = "ping info select client|setname multi exec discard evalsha evalsha_ro script|load del expire"
_CONSUMER = "xreadgroup xgroup|create xgroup|setid xautoclaim xpending xclaim xack xdel xlen xadd xrange time"
_STORE = (
    "hget hgetall hmget hkeys hlen hexists hset hsetnx hdel hincrby hscan lpush ltrim lrange get set incrby "
    "pexpire ttl pttl watch unwatch"
)
_BLOBS = (f"{BLOB}:*", f"{OWNERS}:*", f"{OWNED}:*")


@dataclass(frozen=True)
class RedisUser:
    """A service's user."""

    commands: str
    """Commands, separated by spaces."""
    keys: tuple[str, ...]
    """Patterns of keys that it reads and writes."""
    read_only: tuple[str, ...] = ()
    """Patterns of keys that it reads."""
    write_only: tuple[str, ...] = ()
    """Patterns of keys that it deletes, and whose content it cannot read."""

    @property
    def rules(self) -> str:
        """Rules for ``ACL SETUSER``, apart from name and password."""
        commands = [f"+{command}" for command in sorted({*self.commands.split(), *CLUSTER.split()})]
        patterns = [f"~{pattern}" for pattern in self.keys]
        patterns += [f"%R~{pattern}" for pattern in self.read_only]
        patterns += [f"%W~{pattern}" for pattern in self.write_only]
        return " ".join(["resetkeys", "resetchannels", "-@all", *commands, *patterns])


def _of_runs(*names: str) -> tuple[str, ...]:
    """Return the patterns of these keys of all runs."""
    return tuple(key("*", name) for name in names)


USERS = {
    "control": RedisUser(
        f"{_EACH} {_CONSUMER} get set scan hscan hdel pttl pexpire",
        (RUNS_KEY, CONTROL_LEASE, *_of_runs("events", "dead", "prompts", "rollouts", "rewards", ATTEMPT)),
        write_only=_of_runs(MARK, WAITS, *_BLOBS),
    ),
    "worker": RedisUser(
        f"{_EACH} {_CONSUMER} xtrim hget hset hdel hscan get set sadd srem scard smembers getrange",
        (RUNS_KEY, *_of_runs("prompts", "rollouts", "rewards", "events", "dead", MARK, ATTEMPT, WAITS, *_BLOBS)),
    ),
    "rollout": RedisUser(
        f"{_EACH} {_CONSUMER} hset hdel hscan get set sadd getrange",
        _of_runs("prompts", "rollouts", "dead", ATTEMPT, WAITS, *_BLOBS),
        (RUNS_KEY,),
    ),
    "router": RedisUser(
        f"{_EACH} {_CONSUMER} {_STORE} getrange",
        (f"{ROUTER_PREFIX}*", *_of_runs("rollouts", "rewards", "dead", ATTEMPT, WAITS)),
        (RUNS_KEY, *_of_runs(f"{BLOB}:*")),
    ),
}
"""User of each process; the reward service has none."""


def users_file() -> str:
    """Return a line with name and rules for each user."""
    return "".join(f"{name} {user.rules}\n" for name, user in USERS.items())
