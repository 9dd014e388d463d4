"""A sealed JSON object: any changed bit is found, and content without a seal is read as before."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mor_core.errors import Invalid
from mor_core.sealed_json import seal, unseal

OBJECTS = st.dictionaries(st.text(), st.integers() | st.text() | st.booleans(), min_size=1)


@given(OBJECTS)
def test_a_seal_is_a_field_and_comes_off(given_object: dict[str, object]) -> None:
    content = json.dumps(given_object).encode()
    assert unseal(seal(content)) == content
    assert unseal(content) == content
    assert json.loads(seal(content)).keys() == given_object.keys() | {"sha256"}


@given(OBJECTS, st.data())
def test_no_flipped_bit_changes_what_is_read(given_object: dict[str, object], data: st.DataObject) -> None:
    content = json.dumps(given_object).encode()
    damaged = bytearray(seal(content))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = json.loads(unseal(bytes(damaged)))
    except (Invalid, ValueError):
        return
    found = {name: value for name, value in found.items() if name in given_object}
    assert found == given_object, "only the seal itself was changed"


def test_a_truncated_object_is_named() -> None:
    with pytest.raises(Invalid, match=r"its SHA-256 is \w{12}…, it was written with \w{12}…"):
        unseal(seal(b'{"a": 10}')[:-1])
