"""Indexes are built once, whole, by one process, in bounded memory; damaged ones are built again."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mor_core.datafiles import picture_cells, read_prompts
from mor_core.errors import DataFileError, Invalid, MorError, Unavailable
from mor_core.prompt_index import PromptSet, index_builder, index_folders, open_prompts, sweep_indexes
from mor_core.prompt_index.file_lock import FileLock
from mor_core.prompt_index.index_file import MANIFEST, PICTURES, PROMPTS

from tests.core.published_rows import png
from tests.core.test_prompt_index import ROWS, written
from tests.core.written_rows import lines


def opened(path: Path) -> tuple[PromptSet, int]:
    """Open an index beside a file; return also how many rows were read to build it."""
    seen = [0]
    return open_prompts(path, index_dir=path.parent / "index", progress=seen.append), max(seen)


def test_an_index_is_built_once(tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS)
    assert [opened(path)[1] for _ in range(3)] == [len(ROWS), 0, 0]


@pytest.mark.parametrize("change", ["appended", "replaced", "replaced with its time", "another file", "moved"])
def test_changed_data_is_indexed_again(tmp_path: Path, change: str) -> None:
    path = written(tmp_path, *ROWS)
    opened(path)
    state = path.stat()
    if change == "appended":
        path.write_text(path.read_text() + lines({"prompt": "more"}))
    elif change == "another file":
        path = path.rename(tmp_path / "train-00000.jsonl")
        (tmp_path / "train-00001.jsonl").write_text(lines({"prompt": "more"}))
        path = tmp_path / "*.jsonl"
    elif change == "moved":
        path = path.rename(tmp_path / "others.jsonl")
    else:
        path.write_text(path.read_text().replace("Which?", "Whose?"))
    if change == "replaced with its time":
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    prompts, read = opened(path)
    assert read == len(prompts) and list(prompts) == read_prompts(path)


@pytest.mark.parametrize("first", ["missing", "broken", "over the budget"])
def test_a_picture_that_is_put_in_place_is_read_for_the_next_run(
    tmp_path: Path, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, {"prompt": "Which?", "images": ["later.png"]}, {"prompt": "Why?"})
    if first == "broken":
        (tmp_path / "later.png").write_bytes(png()[:40])
    elif first == "over the budget":
        (tmp_path / "later.png").write_bytes(png("green"))
        monkeypatch.setattr(picture_cells, "MOST_BYTES", 10)
    index: dict[str, Any] = {"index_dir": tmp_path / "index", "leave_out": True}
    before = open_prompts(path, **index)
    assert (len(before), len(before.problems)) == (1, 1)
    assert open_prompts(path, **index).folder == before.folder
    monkeypatch.undo()
    (tmp_path / "later.png").write_bytes(png("blue"))
    after = open_prompts(path, **index)
    assert (len(after), list(after.problems)) == (2, [])
    assert open_prompts(path, **index).folder == after.folder
    # A run that began before goes on with its rows.
    assert open_prompts(path, **index, former=before.folder.name).folder == before.folder


def test_a_picture_that_was_exchanged_is_read_for_the_next_run(tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS)
    before = opened(path)[0]
    (tmp_path / "a.png").write_bytes(png("green"))
    with pytest.raises(DataFileError, match="put the former picture back, or create the run again"):
        before[0]
    assert list(opened(path)[0]) == read_prompts(path)
    assert opened(path)[1] == 0
    former = open_prompts(path, index_dir=tmp_path / "index", former=before.folder.name)
    assert former.folder == before.folder


def test_data_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS)
    with pytest.raises(Invalid, match="changed while it was read; start again when it is complete"):
        open_prompts(path, index_dir=tmp_path / "index", progress=lambda rows: path.touch())
    assert opened(path)[1] == len(ROWS)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([MANIFEST, PROMPTS, PICTURES]), place=st.floats(0, 1), cut=st.booleans(), data=st.data())
def test_damage_is_found_and_repaired(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, cut: bool, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("damage"), *ROWS)
    wanted = read_prompts(path)
    file = opened(path)[0].folder / name
    content = bytearray(file.read_bytes())
    at = min(int(place * len(content)), len(content) - 1)
    content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content[:at] if cut else content)
    prompts, read = opened(path)
    if read or name == MANIFEST:  # another source in the manifest changes nothing
        assert list(prompts) == wanted
        return
    with pytest.raises(MorError, match=r"the index .* is damaged \(.*\); it is built again at the next start"):
        list(prompts)
    repaired, read = opened(path)
    assert read == len(wanted) and list(repaired) == wanted


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE prompts SET file = 99",
        "UPDATE prompts SET messages = '[]'",
        "UPDATE prompts SET id = x'00'",
        "UPDATE prompts SET row = row + 1000",
        "UPDATE pictures SET size = 1 << 40",
        "UPDATE pictures SET start = -1",
        "UPDATE pictures SET sha256 = 'short'",
        "UPDATE pictures SET start = 1 << 40 WHERE copied",
        "DROP TABLE pictures",
    ],
)
def test_a_forged_index_is_damaged(tmp_path: Path, forgery: str) -> None:
    path = written(tmp_path, *ROWS)
    folder = opened(path)[0].folder
    with sqlite3.connect(folder / PROMPTS) as database:
        database.execute(forgery)
    database.close()
    manifest = json.loads((folder / MANIFEST).read_bytes())
    content = (folder / PROMPTS).read_bytes()
    manifest |= {"database_bytes": len(content), "database_crc32": zlib.crc32(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(MorError, match="is damaged"):
        list(PromptSet(folder))
    assert opened(path)[1] == len(ROWS)


def test_builders_at_once_build_one_index(tmp_path: Path) -> None:
    path = written(tmp_path, *({"prompt": f"{row}?", "images": ["a.png"]} for row in range(600)))
    found: list[tuple[PromptSet, int]] = []
    builders = [threading.Thread(target=lambda: found.append(opened(path))) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert sorted(read for _, read in found) == [0, 0, 0, 600]
    assert all(list(prompts.ids) == list(found[0][0].ids) for prompts, _ in found)


def test_what_a_killed_builder_leaves_is_never_used(tmp_path: Path) -> None:
    path = written(tmp_path, *({"prompt": f"{row}?"} for row in range(600)))
    killed = (
        "import os, signal, sys; from pathlib import Path; from mor_core.prompt_index import open_prompts\n"
        "end = lambda rows: os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_prompts(Path(sys.argv[1]), index_dir=Path(sys.argv[1]).parent / 'index', progress=end)"
    )
    assert subprocess.run([sys.executable, "-c", killed, str(path)], check=False).returncode == -signal.SIGKILL
    assert list((tmp_path / "index").glob(".*.part"))
    prompts, read = opened(path)
    assert (read, len(prompts)) == (600, 600)
    assert not list((tmp_path / "index").glob(".*.part"))


def test_a_builder_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS)

    def end(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_prompts(path, index_dir=tmp_path / "index", progress=end)
    assert [file.suffix for file in (tmp_path / "index").iterdir()] == [".lock"]
    assert opened(path)[1] == len(ROWS)


def test_a_builder_that_has_stopped_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, *ROWS)
    name = opened(path)[0].folder.name
    sweep_indexes(tmp_path / "index", 0, 0)
    held = FileLock.acquire(tmp_path / "index" / f".{name}.lock")
    assert held is not None
    monkeypatch.setattr(index_folders, "_STALLED_S", 0.5)
    with pytest.raises(Unavailable, match=r"another process builds this index and has not advanced for 0\.5 s; end it"):
        opened(path)
    held.release()
    assert opened(path)[1] == len(ROWS)


def test_a_disk_without_room_is_named_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(
        Unavailable, match=r"bytes are free; the index of rows\.jsonl needs about \d+ more.*MOR_INDEX_DIR"
    ):
        index_builder.check_room(tmp_path, 1 << 60, Path("rows.jsonl"))


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS)
    (tmp_path / "index").write_text("a file")
    with pytest.raises(Unavailable, match=r"index of .* cannot be used .*; set MOR_INDEX_DIR to a folder that can be"):
        opened(path)


def test_indexes_that_nobody_uses_are_deleted(tmp_path: Path) -> None:
    folders = []
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(lines({"prompt": name}))
        prompts, _ = opened(path)
        folders.append(prompts.folder)
        prompts.close()
        for file in (prompts.folder, *prompts.folder.iterdir()):
            os.utime(file, times=(time.time() - age * 86400,) * 2)
    new, middle, old = folders
    (tmp_path / "index" / "of-somebody-else").mkdir()
    os.utime(tmp_path / "index" / "of-somebody-else", times=(0, 0))
    sweep_indexes(tmp_path / "index", 1.5, 1 << 30)
    assert (new.exists(), middle.exists(), old.exists()) == (True, True, False)
    size = sum(file.stat().st_size for file in (new, *new.iterdir()))
    with_new, read = opened(tmp_path / "new.jsonl")
    assert read == 0
    sweep_indexes(tmp_path / "index", 1.5, size)
    assert (new.exists(), middle.exists()) == (True, False)
    sweep_indexes(tmp_path / "index", 0, 0)
    assert new.exists() and len(with_new) == 1, "one in use stays"
    with_new.close()
    sweep_indexes(tmp_path / "index", 0, 0)
    assert [file.name for file in (tmp_path / "index").iterdir()] == ["of-somebody-else"]


_MEASURE = """
import sys
from pathlib import Path
from typing import Any
from mor_core.datafiles import read_prompts
from mor_core.prompt_index import open_prompts

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10

path = Path(sys.argv[1])
for reader in (lambda: open_prompts(path, index_dir=path.parent / "index"), lambda: read_prompts(path)):
    before = peak()
    print(sum(len(content) for prompt in reader() for content in prompt.images.values()), peak() - before)
"""


def memory(path: Path) -> tuple[int, int]:
    """Return by how many bytes a process grows that indexes and reads all prompts, and one that holds them all."""
    shown = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], check=True, capture_output=True, text=True)
    (indexed, index), (read, whole) = (map(int, line.split()) for line in shown.stdout.splitlines())
    assert indexed == read > 0
    return index, whole


def data_with_pictures(folder: Path, rows: int, filling: int) -> Path:
    for row in range(rows):
        # What follows a picture's end makes it another file and costs the decoder nothing.
        (folder / f"{row}.png").write_bytes(png() + row.to_bytes(8, "big") + bytes(filling))
    path = folder / "rows.jsonl"
    path.write_text(lines(*({"prompt": f"{row}?", "images": [f"{row}.png"]} for row in range(rows))))
    return path


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    index, whole = memory(data_with_pictures(tmp_path, 1500, 60_000))
    assert whole > 60e6 > 20e6 > index


@pytest.mark.slow
def test_memory_of_fifty_thousand_rows(tmp_path: Path) -> None:
    index, whole = memory(data_with_pictures(tmp_path, 50_000, 4000))
    assert whole > 4 * 64e6 > 4 * index
