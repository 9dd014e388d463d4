"""The download of a control plane's programs keeps nothing whose SHA-256 is not the published one."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.cluster import programs


@contextmanager
def site(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_programs_are_checked_against_what_is_published_beside_them(tmp_path: Path) -> None:
    name = f"etcd-{programs.ETCD}-linux-{programs.processor()}"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as files:
        member = tarfile.TarInfo(f"{name}/etcd")
        member.size = 4
        files.addfile(member, io.BytesIO(b"etcd"))
    etcd = tmp_path / programs.ETCD
    kubernetes = tmp_path / programs.KUBERNETES / "bin" / "linux" / programs.processor()
    for folder in (etcd, kubernetes):
        folder.mkdir(parents=True)
    (etcd / f"{name}.tar.gz").write_bytes(archive.getvalue())
    (etcd / "SHA256SUMS").write_text(f"{hashlib.sha256(archive.getvalue()).hexdigest()}  {name}.tar.gz\n")
    (kubernetes / "kube-scheduler").write_bytes(b"scheduler")
    (kubernetes / "kube-scheduler.sha256").write_text(hashlib.sha256(b"scheduler").hexdigest())
    with site(tmp_path) as address, httpx.Client() as client:
        assert programs.etcd(client, address) == b"etcd"
        assert programs.kubernetes("kube-scheduler", client, address) == b"scheduler"
        (kubernetes / "kube-scheduler").write_bytes(b"another")
        with pytest.raises(SystemExit, match=hashlib.sha256(b"another").hexdigest()):
            programs.kubernetes("kube-scheduler", client, address)
