"""Each service's user in Redis has the commands that its code calls, and no other service's keys."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from mor_core.failures import describe_failure
from mor_core.redis_permissions import RedisPermissions
from mor_core.redis_users import USERS, users_file
from mor_core.run_announcements import AnnouncedRuns
from mor_core.settings import StreamSettings
from mor_core.stored import StoredEntries, StoredType
from mor_core.streams import connect
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from tests.conftest import Valkey

ROOT = Path(__file__).parents[2]
CORE = ROOT / "packages/mor_core/mor_core"
_STAGES = [
    CORE / f"{name}.py"
    for name in (
        "streams",
        "stream_consumer",
        "bounded_reads",
        "blobs",
        "fence",
        "stored",
        "run_stage",
        "stage",
        "service_info",
    )
]
_TRAINER = ROOT / "services/trainer/mor_trainer"
CODE = {
    "control": [*(_TRAINER / "control").rglob("*.py"), CORE / "endless_keys.py", CORE / "service_info.py"],
    "worker": [*(_TRAINER / "groups").rglob("*.py"), *(_TRAINER / "run").rglob("*.py"), *_STAGES],
    "rollout": [*(ROOT / "services/rollout/mor_rollout").rglob("*.py"), CORE / "blobs.py", CORE / "service_info.py"],
    "router": [
        *(ROOT / "services/router/mor_router").rglob("*.py"),
        CORE / "endless_keys.py",
        CORE / "stored_counters.py",
        CORE / "service_info.py",
    ],
}
_COMMANDS = {
    "delete": "del",
    "hscan_iter": "hscan",
    "scan_iter": "scan",
    "incr": "incrby",
    "xpending_range": "xpending",
    "xgroup_create": "xgroup|create",
    "xgroup_setid": "xgroup|setid",
    "register_script": "evalsha",
    "pipeline": "exec",
    "lock": "evalsha",
    "script_load": "script|load",
    "fetch_hash": "hscan",
    "fetch_pages": "hscan",
}
_ELSEWHERE = {"rollout": {"smembers", "srem", "scard"}, "worker": {"hgetall", "lrange"}}
"""Commands of a shared file that a service does not reach: it releases no blobs, or has no lists."""


def commands_of(path: Path) -> set[str]:
    """Return the commands that a file calls on a client or a pipeline, and in Lua."""
    methods = set(dir(Redis)) - {"aclose"}
    text = path.read_text()
    bounded = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)} & set(_COMMANDS)
    passed = {name.lower() for name in re.findall(r'(?:fetch|bounded|command = )\([^)"]*"([A-Z]+)"', text)}
    found = {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and node.attr in methods
        and ast.unparse(node.value).rpartition(".")[2] in ("redis", "_redis", "pipe")
    }
    lua = {name.lower() for name in re.findall(r"redis\.p?call\('(\w+)'", text)}
    return {_COMMANDS.get(name, name) for name in found | (bounded & {"fetch_hash", "fetch_pages"})} | lua | passed


@pytest.mark.parametrize("service", USERS)
def test_a_user_has_the_commands_that_its_code_calls(service: str) -> None:
    called = set().union(*(commands_of(path) for path in CODE[service])) - _ELSEWHERE.get(service, set())
    assert called
    assert called <= set(USERS[service].commands.split())


def test_the_file_of_the_chart_is_generated_from_the_users() -> None:
    written = (ROOT / "helm/mor/files/redis-users.txt").read_text()
    assert written == users_file(), "run python helm/generate.py"


OWN = {
    "control": "mor:{r}:events",
    "worker": "mor:{r}:prompts",
    "rollout": "mor:{r}:prompts",
    "router": "mor:{router}:clients",
}
FORBIDDEN = {
    "control": ["HGETALL mor:{router}:clients", "GET mor:{r}:blob:0", "HSET mor:runs r x", "XLEN mor:{router}:x"],
    "worker": ["SCAN 0", "HGETALL mor:{router}:clients", "HGET mor:{router}:clients c"],
    "rollout": [
        "SCAN 0",
        "HGETALL mor:{router}:clients",
        "HSET mor:runs r x",
        "XLEN mor:{r}:rewards",
        "DEL mor:{r}:events",
    ],
    "router": ["SCAN 0", "HSET mor:runs r x", "XLEN mor:{r}:prompts", "SET mor:{r}:blob:0 x", "XLEN mor:{r}:events"],
}
FORBIDDEN_TO_ALL = [
    "KEYS *", "FLUSHALL", "FLUSHDB", "CONFIG GET *", "ACL LIST", "ACL WHOAMI", "SHUTDOWN",
    "CLIENT LIST", "CLIENT KILL ID 1", "MONITOR", "SAVE", "BGREWRITEAOF", "REPLICAOF NO ONE", "SCRIPT FLUSH",
    "FUNCTION LIST", "MODULE LIST", "EVAL return(1) 0", "SUBSCRIBE x", "PUBLISH x y", "SET other 1", "GET other",
    "RENAME mor:runs other", "MIGRATE h 1 k 0 1", "RESTORE k 0 x", "DUMP mor:runs", "SWAPDB 0 1",
]  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize("service", USERS)
async def test_a_user_may_touch_its_own_keys_alone(valkey: Valkey, service: str) -> None:
    admin = Redis.from_url(valkey.url)
    await admin.execute_command("ACL", "SETUSER", service, "on", ">secret", *USERS[service].rules.split())  # type: ignore[no-untyped-call]
    await admin.aclose()
    url = valkey.url.replace("redis://", f"redis://{service}:secret@")
    redis = connect(StreamSettings(redis_url=SecretStr(url)))
    await redis.ping()
    await redis.delete(OWN[service])
    for command in [*FORBIDDEN[service], *FORBIDDEN_TO_ALL]:
        with pytest.raises(NoPermissionError) as refused:
            await redis.execute_command(*command.split())
        assert "ermission" in describe_failure(refused.value), "an operator must see that the user lacks something"
    if "hscan" in USERS[service].commands.split():
        assert await AnnouncedRuns(redis).read() == []
    await redis.aclose()


MENDED: list[tuple[str, str, StoredType, list[str]]] = [
    ("control", "mor:{r}:events", "stream", ["XLEN"]),
    ("worker", "mor:runs", "hash", ["HSET", "r", "x"]),
    ("worker", "mor:{r}:rewards", "stream", ["XLEN"]),
    ("rollout", "mor:{r}:waits", "hash", ["HSET", "r", "x"]),
    ("router", "mor:{r}:waits", "hash", ["HSET", "r", "x"]),
    ("router", "mor:{router}:scores:o", "hash", ["HSET", "r", "x"]),
    ("router", "mor:{router}:recent:c", "list", ["LPUSH", "x"]),
    ("router", "mor:{router}:given:o:n", "string", ["GET"]),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("service", "name", "kind", "command"), MENDED)
async def test_a_user_may_begin_its_stores_anew(
    valkey: Valkey, service: str, name: str, kind: StoredType, command: list[str]
) -> None:
    admin = Redis.from_url(valkey.url)
    await admin.execute_command("ACL", "SETUSER", service, "on", ">secret", *USERS[service].rules.split())  # type: ignore[no-untyped-call]
    await admin.delete(name)
    await admin.sadd(name, "of another type")  # type: ignore[misc]
    redis = connect(StreamSettings(redis_url=SecretStr(valkey.url.replace("redis://", f"redis://{service}:secret@"))))
    first, *more = command
    await StoredEntries("users").write(redis, {name: kind}, lambda: redis.execute_command(first, name, *more))
    assert await admin.type(name) in (kind.encode(), b"none")
    await admin.delete(name)
    await redis.aclose()
    await admin.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("service", USERS)
async def test_a_missing_permission_is_named(valkey: Valkey, service: str) -> None:
    """Each command and each pattern of keys in turn; the check does nothing but check."""
    admin, user = Redis.from_url(valkey.url), USERS[service]
    rules = [f"+{command}" for command in {*user.commands.split()} - {"multi", "exec", "discard", "watch", "unwatch"}]
    redis = connect(StreamSettings(redis_url=SecretStr(valkey.url.replace("redis://", f"redis://{service}:secret@"))))
    before = await admin.dbsize()
    try:
        for lacking in [None, *draw_some(rules), *(f"~{pattern}" for pattern in user.keys)]:
            given = [rule for rule in user.rules.split() if rule != lacking]
            await admin.execute_command("ACL", "SETUSER", service, "reset", "on", ">secret", *given)  # type: ignore[no-untyped-call]
            found = await RedisPermissions(redis, service).missing()
            assert (found is None) is (lacking is None), (lacking, found)
            assert lacking is None or lacking[1:].replace("|", " ") in str(found) or lacking[0] == "~"
    finally:
        await admin.execute_command("ACL", "SETUSER", service, "reset", "on", ">secret", *user.rules.split())  # type: ignore[no-untyped-call]
    assert await admin.dbsize() == before
    await redis.ping()
    await redis.aclose()
    await admin.aclose()


def draw_some(rules: list[str]) -> list[str]:
    """Return every third rule, other ones for other users; all those of the streams' reading."""
    return sorted(rule for place, rule in enumerate(sorted(rules)) if place % 3 == 0 or "read" in rule)
