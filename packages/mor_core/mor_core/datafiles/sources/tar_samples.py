"""Samples of a WebDataset archive: members with one name up to the first dot, such as ``0001.json`` and ``0001.jpg``.

A sample's ``.json`` holds its columns, a ``.txt`` is its prompt, and its pictures are its images, in the order of their
names, in which 2 is before 10. Nothing is unpacked.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mor_core.datafiles.sources.picture_bytes import OriginalPicture, PictureOrigin
from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.images import MAX_BYTES

_PICTURES = {"png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"}


def samples(file: Path, parse: Callable[[bytes], dict[str, Any] | Invalid]) -> Iterator[tuple[int, Any]]:
    """Yield number and row of each sample; ``parse`` reads a JSON object.

    Raises:
        Invalid: the archive cannot be read.
    """
    number, key = 0, None
    members: dict[str, bytes | Invalid] = {}
    ended: set[str | None] = set()
    try:
        with tarfile.open(file, "r:", encoding="utf-8", errors="strict") as archive:
            for member in archive:
                if not (member.isfile() or member.islnk() or member.issym()):
                    continue
                folder, _, name = member.name.rpartition("/")
                if name.startswith("."):  # what macOS adds to archives
                    continue
                stem, _, suffix = name.partition(".")
                sample = f"{folder}/{stem}".lstrip("./")
                if members and sample != key:
                    number += 1
                    yield number, _row(str(key), members, parse)
                    members = {}
                    ended.add(key)
                    if sample in ended:
                        raise Invalid(f"{file}: the members of {sample!r} are apart; sort the archive by name")
                key = sample
                twice = suffix.lower() in members
                members[suffix.lower()] = _repeated(member.name) if twice else _content(archive, member)
    except Invalid:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise Invalid(f"{file}: not a readable tar ({describe_failure(error)}); write the file again") from error
    if members:
        yield number + 1, _row(str(key), members, parse)


def _repeated(name: str) -> Invalid:
    return Invalid(f"{name} is twice in its sample; keep one of the two")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Invalid:
    if not member.isfile():
        return Invalid(
            f"{member.name} is a link; write the archive with its files, as by: tar --dereference --hard-dereference"
        )
    if member.size > MAX_BYTES:
        return Invalid(f"{member.name}: {member.size} bytes, of at most {MAX_BYTES}; make it smaller")
    opened = archive.extractfile(member)
    content = opened.read() if opened is not None else b""
    if member.issparse():  # its bytes in the archive are not its content
        return content
    return OriginalPicture.read(content, PictureOrigin(None, member.offset_data))


def _row(
    key: str, members: dict[str, bytes | Invalid], parse: Callable[[bytes], dict[str, Any] | Invalid]
) -> dict[str, Any] | Invalid:
    row: dict[str, Any] = {"id": key}
    pictures = []
    for suffix, content in sorted(members.items(), key=lambda member: _order(member[0])):
        if isinstance(content, Invalid):
            return content
        if suffix.rpartition(".")[2] in _PICTURES:
            pictures.append({"bytes": content, "path": f"{key}.{suffix}"})
        elif suffix == "json":
            columns = parse(content)
            if isinstance(columns, Invalid):
                return columns
            row |= columns
        elif suffix == "txt":
            if "prompt" in row:
                return Invalid(f"{key}: both {key}.txt and {key}.json give the prompt; leave one out")
            try:
                row["prompt"] = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                return Invalid(f"{key}.txt is not UTF-8; save it as UTF-8, as by: iconv -f LATIN1 -t UTF-8 OLD > NEW")
        else:
            return Invalid(f"unknown member {key}.{suffix}; the columns belong into {key}.json")
    if pictures:
        row.pop("image", None)  # its name, in data sets that were packed from files
        row["images"] = pictures
    return row


def _order(suffix: str) -> list[str | int]:
    """Return a key that sorts numbers in a name by their value."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", suffix, flags=re.ASCII))]
