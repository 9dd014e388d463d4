"""Files that others write are read only where they are what they should be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mor_core.plain_files import newest_first


def test_files_are_sorted_though_one_is_renamed_meanwhile(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "part", "old")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))

    def listed() -> Iterator[Path]:
        for path in sorted(tmp_path.iterdir()):
            if path.name == "part":
                path.rename(tmp_path / "whole")
            yield path

    assert newest_first(listed()) == [tmp_path / "new", tmp_path / "old"]
