"""A cache bounded in bytes drops the least recently used value."""

from __future__ import annotations

from mor_core.byte_cache import ByteBoundCache


def test_the_least_recently_used_value_is_dropped() -> None:
    found: list[bool] = []
    cache = ByteBoundCache[bytes](10, len, found.append)
    cache.put("a", b"1234")
    cache.put("b", b"1234")
    assert cache.get("a") == b"1234"
    cache.put("c", b"1234")
    assert cache.get("b") is None
    assert "a" in cache
    assert "c" in cache
    assert (cache.bytes, len(cache)) == (8, 2)
    assert found == [True, False]


def test_a_new_value_takes_the_place_of_the_old_one() -> None:
    cache = ByteBoundCache[bytes](10, len)
    cache.put("a", b"1234")
    cache.put("a", b"12345678")
    assert cache.bytes == 8
    cache.put("a", b"12345678901")
    assert cache.get("a") is None
    assert cache.bytes == 0


def test_a_value_over_the_bound_is_not_kept_and_drops_no_other() -> None:
    cache = ByteBoundCache[bytes](10, len)
    cache.put("a", b"1234")
    cache.put("b", b"12345678901")
    assert "b" not in cache
    assert "a" in cache
    cache.clear()
    assert (cache.bytes, len(cache)) == (0, 0)
