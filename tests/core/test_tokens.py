"""The tokens file over changes and damage, and open responses over the end of their token."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI
from fastapi.responses import FileResponse, StreamingResponse
from mor_core import token_watch
from mor_core.auth import Principal, Scope, TokenFile, hash_token, require
from mor_core.errors import Invalid
from mor_core.metrics import TOKENS_FILE_BROKEN
from mor_core.service import create_service
from mor_core.settings import ServiceSettings
from structlog.testing import capture_logs

pytestmark = pytest.mark.anyio

Reader = Annotated[Principal, Depends(require(Scope.viewer))]
ADMIN, VIEWER = "token-of-the-admin", "token-of-the-viewer"


def rows(*holders: tuple[str, Scope, str]) -> bytes:
    return json.dumps([{"name": n, "scope": s, "sha256": hash_token(t)} for n, s, t in holders]).encode()


BOTH = rows(("ops", Scope.admin, ADMIN), ("wall", Scope.viewer, VIEWER))
ONE = rows(("ops", Scope.admin, ADMIN))


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.json"
    file.write_bytes(BOTH)
    file.chmod(0o600)
    return file


DAMAGE: dict[str, Any] = {
    "half written": lambda path: path.write_bytes(BOTH[: len(BOTH) // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "no list": lambda path: path.write_bytes(b'{"name": "ops"}'),
    "another scope": lambda path: path.write_bytes(BOTH.replace(b"viewer", b"root__")),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "too large": lambda path: path.write_bytes(BOTH + b" " * (1 << 20)),
    "the same token twice": lambda path: path.write_bytes(
        rows(("ops", Scope.admin, ADMIN), ("clinic", Scope.client, ADMIN))
    ),
    "an empty name": lambda path: path.write_bytes(rows(("", Scope.admin, ADMIN))),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_file_keeps_the_last_good_tokens_and_is_logged_once(path: Path, damage: str) -> None:
    tokens = TokenFile(path)
    DAMAGE[damage](path)
    with capture_logs() as logs:
        for _ in range(5):
            found = tokens.holder(hash_token(ADMIN))
            assert found is not None and (found.name, found.scope) == ("ops", Scope.admin)
            assert tokens.holder(hash_token("made up")) is None
    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    assert hash_token(ADMIN) not in str(entry) and str(path) not in str(entry)
    assert TOKENS_FILE_BROKEN._value.get() == 1
    if path.is_dir():
        path.rmdir()
    path.write_bytes(ONE)
    tokens._retry_at = 0.0  # a second has passed
    assert tokens.holder(hash_token(VIEWER)) is None, "the repaired file is in use"
    assert TOKENS_FILE_BROKEN._value.get() == 0


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_file_is_refused_at_the_start_without_its_entries(path: Path, damage: str) -> None:
    DAMAGE[damage](path)
    with pytest.raises(Invalid, match=r"write a JSON list of \{name, scope, sha256\}") as refused:
        TokenFile(path)
    assert hash_token(ADMIN) not in str(refused.value)


def test_a_revoked_token_stays_revoked_when_an_older_file_comes_back(path: Path) -> None:
    tokens = TokenFile(path)
    row = {"name": "ops", "scope": "admin", "epoch": 1, "sha256": hash_token("the next token")}
    write(path, json.dumps([row]).encode())
    assert tokens.holder(hash_token("the next token")) is not None
    for older in (BOTH, json.dumps([row, *json.loads(BOTH)]).encode()):
        write(path, older)
        with capture_logs() as logs:
            assert tokens.holder(hash_token(ADMIN)) is None
        assert [entry["names"] for entry in logs] == [["ops"]]
        assert tokens.holder(hash_token(VIEWER)) is not None, "no other token is concerned"
    assert TokenFile(path).holder(hash_token(ADMIN)) is None, "a new process takes the highest epoch of the file"


async def test_callers_learn_neither_path_nor_hashes(path: Path) -> None:
    app = create_service("test", ServiceSettings(tokens_file=path), _nothing, {}, version="1")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as http:
        write(path, BOTH[:-40])
        for token, status in ((ADMIN, 200), ("made up", 401)):
            reply = await http.get("/v1/about", headers={"Authorization": f"Bearer {token}"})
            assert reply.status_code == status
            assert path.name not in reply.text and hash_token(ADMIN)[:8] not in reply.text


def test_a_replacement_with_the_same_time_and_size_is_noticed(path: Path) -> None:
    tokens = TokenFile(path)
    status = path.stat()
    replacement = path.with_suffix(".new")
    replacement.write_bytes(rows(("ops", Scope.admin, "another-of-the-admi"), ("wall", Scope.viewer, VIEWER)))
    assert replacement.stat().st_size == status.st_size
    os.utime(replacement, ns=(status.st_atime_ns, status.st_mtime_ns))
    replacement.replace(path)
    assert tokens.holder(hash_token(ADMIN)) is None


def test_the_swap_of_a_kubernetes_secret_is_noticed(tmp_path: Path) -> None:
    """The kubelet writes a new folder and swaps the link ``..data`` to it."""
    for version, content in (("1", BOTH), ("2", ONE)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tokens.json").write_bytes(content)
        os.utime(tmp_path / version / "tokens.json", (1e9, 1e9))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "tokens.json").symlink_to("..data/tokens.json")
    tokens = TokenFile(tmp_path / "tokens.json")
    assert tokens.holder(hash_token(VIEWER)) is not None
    (tmp_path / "..data_tmp").symlink_to("2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert tokens.holder(hash_token(VIEWER)) is None


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o440, False), (0o644, True), (0o602, True)])
def test_a_file_that_others_can_read_or_write_is_warned_about(path: Path, mode: int, warned: bool) -> None:
    path.chmod(mode)
    with capture_logs() as logs:
        TokenFile(path)
    assert bool(logs) == warned


@contextlib.asynccontextmanager
async def _nothing(_: FastAPI) -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def served(path: Path, tokens: TokenFile | None = None) -> AsyncIterator[str]:
    """Serve responses that take long, by a real server."""
    app = create_service("test", ServiceSettings(tokens_file=path), _nothing, {}, version="1")
    if tokens is not None:
        app.state.tokens = tokens
    large = path.with_name("weights")
    with large.open("wb") as file:
        file.truncate(1 << 30)

    @app.get("/silent")
    async def silent(_: Reader) -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            yield b": open\n\n"
            await asyncio.sleep(60)

        return StreamingResponse(events())

    @app.get("/file")
    async def download(_: Reader) -> FileResponse:
        return FileResponse(large)

    @app.get("/late")
    async def late(_: Reader) -> str:
        await asyncio.sleep(3 * token_watch._CHECK_S)
        return "a long poll's answer"

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_watch, "_CHECK_S", 0.2)


@pytest.mark.usefixtures("fast")
async def test_a_fault_in_a_check_ends_neither_the_response_nor_later_checks(path: Path) -> None:
    class Faulty(TokenFile):
        checks = 0

        async def identify(self, token: str) -> Principal:
            self.checks += 1
            if self.checks in (2, 3):
                raise ZeroDivisionError(token)
            return await super().identify(token)

    tokens = Faulty(path)
    async with served(path, tokens) as address, httpx.AsyncClient(base_url=address, timeout=20) as http:
        with capture_logs() as logs:
            async with http.stream("GET", "/silent", headers={"Authorization": f"Bearer {VIEWER}"}) as stream:
                chunks = stream.aiter_raw()
                assert await anext(chunks) == b": open\n\n"
                for _ in range(200):
                    if tokens.checks >= 4:
                        break
                    await asyncio.sleep(0.05)
                write(path, ONE)
                assert [chunk async for chunk in chunks] == [], "the removed token ends its stream all the same"
        assert [entry["log_level"] for entry in logs if "cannot be checked" in entry["event"]] == ["error"] * 2


@pytest.mark.usefixtures("fast")
async def test_open_responses_end_with_their_token_and_others_go_on(path: Path) -> None:
    async with served(path) as address, httpx.AsyncClient(base_url=address, timeout=20) as http:
        viewer, admin = ({"Authorization": f"Bearer {token}"} for token in (VIEWER, ADMIN))
        late = asyncio.create_task(http.get("/late", headers=viewer))
        async with (
            http.stream("GET", "/silent", headers=viewer) as stream,
            http.stream("GET", "/file", headers=viewer) as file,
            http.stream("GET", "/silent", headers=admin) as other,
        ):
            chunks, parts, others = stream.aiter_raw(), file.aiter_raw(), other.aiter_raw()
            assert await anext(chunks) == b": open\n\n"
            assert await anext(others) == b": open\n\n"
            await anext(parts)
            write(path, ONE)
            removed_at = time.monotonic()
            with pytest.raises(StopAsyncIteration):
                await anext(chunks)
            assert time.monotonic() - removed_at < 5
            await asyncio.sleep(0.5)
            with pytest.raises(httpx.RemoteProtocolError):
                async for _ in parts:
                    pass
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await anext(others)
        refused = await late
        assert refused.status_code == 401
        assert "rotated or removed during the request" in refused.json()["detail"]


@pytest.mark.usefixtures("fast")
async def test_a_late_answer_to_a_valid_token_arrives(path: Path) -> None:
    async with served(path) as address, httpx.AsyncClient(base_url=address, timeout=20) as http:
        reply = await http.get("/late", headers={"Authorization": f"Bearer {VIEWER}"})
        assert reply.json() == "a long poll's answer"


def test_a_pipe_in_place_of_the_file_stops_nothing(path: Path) -> None:
    """Opening it would wait for a writer for ever, and every request with it."""
    tokens = TokenFile(path)
    known = tokens._tokens
    path.unlink()
    os.mkfifo(path)
    tokens.holder("0" * 64)
    assert tokens._tokens == known
    with pytest.raises(Invalid, match="no regular file"):
        TokenFile(path)
