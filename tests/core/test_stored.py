"""An entry of a store that does not fit harms only itself."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_core.stored import UNREADABLE, StoredEntries
from mor_core.wire import EventRecord, JsonObject, Wire
from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis


class Line(Wire):
    value: float


GOOD = Line(value=1.0)


def count() -> float:
    return float(UNREADABLE.labels("events")._value.get())


@settings(deadline=None)
@given(st.dictionaries(st.binary(max_size=8), st.none() | st.binary(max_size=40)))
def test_the_entries_beside_an_unreadable_one_stay(entries: dict[bytes, bytes | None]) -> None:
    before = count()
    mixed = {**entries, b"good": GOOD.model_dump_json().encode()}
    found = StoredEntries("events").parse_all(mixed, lambda _, content: Line.model_validate_json(content))
    assert found.pop(b"good") == GOOD
    skipped = len(mixed) - 1 - len(found) - sum(content is None for name, content in entries.items() if name != b"good")
    assert count() == before + skipped


def test_an_entry_over_the_bound_is_not_parsed() -> None:
    def parser(content: object) -> Line:
        raise AssertionError("it was parsed")

    assert StoredEntries("events", largest=10).parse("x", b" " * 11, parser) is None


@pytest.mark.anyio
async def test_a_key_of_another_type_is_empty(redis: Redis) -> None:
    before = count()
    await redis.set("k", "x")
    assert await StoredEntries("events").read("k", redis.hgetall("k"), {}) == {}
    assert count() == before + 1


@pytest.mark.anyio
@pytest.mark.parametrize("writers", [2, 3, 20])
async def test_writers_that_begin_a_store_anew_at_once_keep_each_others_entries(redis: Redis, writers: int) -> None:
    entries = StoredEntries("events")
    for round_ in range(20):
        await redis.set("k", "of another type")

        async def add(number: int) -> None:
            await entries.write(redis, {"k": "hash", "seen": "list"}, lambda: redis.hset("k", str(number), "1"))  # type: ignore[arg-type, return-value]

        await asyncio.gather(*map(add, range(writers)))
        assert len(await redis.hgetall("k")) == writers, round_  # type: ignore[misc]


@pytest.mark.anyio
async def test_a_value_that_is_too_long_stays_on_the_server(redis: Redis) -> None:
    """None of the commands that read values brings it here, and those beside it come."""
    entries, long = StoredEntries("events", largest=100), "x" * (8 << 20)
    await redis.hset("h", mapping={"good": "1", "long": long, long: "1"})  # type: ignore[misc]
    await redis.rpush("l", long, "1")  # type: ignore[misc]
    await redis.set("s", long)
    before = count()
    received = await network_bytes(redis)
    fields = await entries.fetch_hash(redis, "h")
    values = await entries.fetch(redis, "HMGET", "h", "good", "long", "none")
    listed = await entries.fetch(redis, "LRANGE", "l", 0, -1)
    single = [await entries.fetch(redis, "HGET", "h", "long"), await entries.fetch(redis, "GET", "s")]
    names = await entries.fetch(redis, "HKEYS", "h")
    assert await network_bytes(redis) - received < 1 << 20
    assert entries.parse_all(fields, lambda _, value: value) == {b"good": b"1"}
    assert entries.parse_list([*values, *listed, *single], bytes.decode) == ["1", "1"]
    assert sorted(entries.parse_list(names, bytes.decode)) == ["good", "long"]
    assert count() >= before + 6


@pytest.mark.anyio
async def test_a_hash_of_any_size_comes_in_pages(redis: Redis) -> None:
    stored = {f"field {number}".encode(): b"v" * 100 for number in range(3000)}
    await redis.hset("h", mapping=stored)  # type: ignore[arg-type, misc]
    assert await StoredEntries("events").fetch_hash(redis, "h") == stored
    assert await StoredEntries("events").fetch(redis, "HMGET", "h", *map(bytes.decode, stored)) == [*stored.values()]


async def network_bytes(redis: Redis) -> int:
    """Return the number of bytes that the server has sent."""
    return int((await redis.info("stats"))["total_net_output_bytes"])


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "-Infinity"])
def test_no_type_on_the_wire_takes_a_number_that_json_lacks(number: str) -> None:
    with pytest.raises(ValidationError):
        Line.model_validate_json(f'{{"value": {number}}}')
    free = TypeAdapter(JsonObject)
    for nested in (f'{{"a": {number}}}', f'{{"a": [{{"b": [1, {number}]}}]}}'):
        with pytest.raises(ValidationError):
            free.validate_json(nested)
    event = {"run": "r", "group_id": "000001-00000001", "kind": "step", "step": 1, "data": {}}
    assert EventRecord.model_validate(event).step == 1
    text = json.dumps({**event, "data": {"kl": "?"}}).replace('"?"', number)
    with pytest.raises(ValidationError):
        EventRecord.model_validate_json(text)


def test_free_form_objects_have_a_bounded_depth() -> None:
    deep: object = 1
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(ValidationError, match="nested"):
        TypeAdapter(JsonObject).validate_python(deep)


@pytest.mark.anyio
async def test_an_entry_that_was_replaced_meanwhile_stays(redis: Redis) -> None:
    entries, long = StoredEntries("events", largest=100), "x" * 200
    values = {"same": "?", "same and long": long, "new": "?", "new and long": long, "grown": "?", "": "?"}
    await redis.hset("h", mapping=values)  # type: ignore[arg-type, misc]
    read = await entries.fetch_hash(redis, "h") | {b"gone": b"?"}
    await redis.hset("h", mapping={"new": "!", "new and long": "1", "grown": long})  # type: ignore[misc]
    assert await entries.delete(redis, "h", read) == 3
    assert await redis.hgetall("h") == {b"new": b"!", b"new and long": b"1", b"grown": long.encode()}  # type: ignore[misc]
    assert await entries.delete(redis, "none", read) == 0
    await redis.set("k", "of another type")
    assert await entries.delete(redis, "k", read) == 0


@pytest.mark.anyio
async def test_a_broken_key_of_a_store_takes_no_other_key_with_it(redis: Redis) -> None:
    await redis.hset("scores", "a", "1")  # type: ignore[misc]
    await redis.set("vectors", "of another type")

    async def write() -> None:
        await redis.hset("vectors", "a", "2")  # type: ignore[misc]

    await StoredEntries("events").write(redis, {"scores": "hash", "vectors": "hash"}, write)
    assert await redis.hgetall("scores") == {b"a": b"1"}  # type: ignore[misc]
    assert await redis.hgetall("vectors") == {b"a": b"2"}  # type: ignore[misc]
