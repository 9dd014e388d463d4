"""Real Redis servers of Debian's package ``redis-server``: a pair behind Sentinels, and a cluster."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.ports import free_port

BINARY = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(BINARY is None, reason="no redis-server; apt-get install redis-server")
PASSWORD = "a-password-of-the-servers"
SENTINEL_PASSWORD = "a-password-of-the-sentinels"
SERVICE = "mor-queue"
_SLOTS = 16384
_DEADLINE_S = 30.0


class RedisServer:
    """One process; a test may kill it."""

    def __init__(self, folder: Path, *options: str, sentinel: str | None = None) -> None:
        """``sentinel``: configuration of a Sentinel, which this process is then."""
        assert BINARY is not None
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{self.port}.conf"
        common = f'port {self.port}\nbind 127.0.0.1\ndir "{folder}"\n'
        written.write_text(common + (sentinel or ""))
        mode = ["--sentinel"] if sentinel is not None else ["--save", "", "--repl-diskless-sync-delay", "0", *options]
        with (folder / f"{self.port}.log").open("wb") as log:
            self._process = subprocess.Popen([BINARY, str(written), *mode], stdout=log, stderr=log)
        self.password = SENTINEL_PASSWORD if sentinel is not None else PASSWORD
        try:
            until(self.answers, "a server came up")
        except AssertionError as error:
            self.kill()
            error.add_note((folder / f"{self.port}.log").read_text()[-2000:])
            raise

    def answers(self) -> bool:
        with self.client() as client:
            return bool(client.ping())

    @contextmanager
    def client(self) -> Iterator[Redis]:
        with Redis(port=self.port, password=self.password, socket_timeout=5) as client:
            yield client

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=10)


class SentinelPair:
    """Two servers, of which one follows the other, and three Sentinels that name the one that leads."""

    def __init__(self, folder: Path) -> None:
        secret = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
        self.servers = [RedisServer(folder / "first", *secret)]
        first = self.servers[0].port
        self.servers.append(RedisServer(folder / "second", *secret, "--replicaof", "127.0.0.1", str(first)))
        until(lambda: self._role(self.servers[1]) == ["slave", "connected"], "the replica follows")
        watched = (
            f"requirepass {SENTINEL_PASSWORD}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {first} 2\nsentinel auth-pass {SERVICE} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} 400\nsentinel failover-timeout {SERVICE} 2000\n"
        )
        self.sentinels = [RedisServer(folder / f"sentinel-{place}", sentinel=watched) for place in range(3)]
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}/0?sentinel_password={SENTINEL_PASSWORD}"
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: self._knows_all(sentinel), "the Sentinels know each other")  # type: ignore[misc]

    def _role(self, server: RedisServer) -> list[str]:
        with server.client() as client:
            role = client.role()
        return [str(part.decode() if isinstance(part, bytes) else part) for part in (role[0], role[3])]

    def _knows_all(self, sentinel: RedisServer) -> bool:
        with sentinel.client() as client:
            known = client.sentinel_master(SERVICE)
        return bool(known["num-other-sentinels"] == 2 and known["num-slaves"] == 1)

    def fail_over(self, key: str = "") -> None:
        """Kill the server that leads; return once the other one leads, which has every key."""
        del key
        self.servers[0].kill()
        until(lambda: self._leads(self.servers[1]), "the replica leads")

    def _leads(self, server: RedisServer) -> bool:
        with server.client() as client:
            return bool(client.role()[0] in (b"master", "master"))

    def end(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.kill()


class RedisCluster:
    """Three primaries with a third of the slots each, and a replica of each."""

    def __init__(self, folder: Path, *, replicas: bool = True) -> None:
        options = (
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "500",
            "--cluster-replica-validity-factor",
            "0",
        )
        secret = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
        names = [f"node-{place}" for place in range(6 if replicas else 3)]
        self.nodes = [RedisServer(folder / name, *options, *secret) for name in names]
        primaries, followers = self.nodes[:3], self.nodes[3:]
        for place, node in enumerate(primaries):
            with node.client() as client:
                first, last = place * _SLOTS // 3, (place + 1) * _SLOTS // 3 - 1
                client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", place + 1)
        for node in self.nodes[1:]:
            with node.client() as client:
                client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
        until(lambda: all(self._counts(node, len(self.nodes)) for node in self.nodes), "the nodes know each other")
        for primary, follower in zip(primaries, followers, strict=False):
            with primary.client() as client:
                name = client.execute_command("CLUSTER MYID")
            with follower.client() as client:
                client.execute_command("CLUSTER REPLICATE", name)
        until(lambda: all(self.is_whole(node) for node in self.nodes), "the cluster is whole")
        until(lambda: all(self._follows(node) for node in followers), "the replicas follow")
        self.url = f"redis+cluster://:{PASSWORD}@127.0.0.1:{self.nodes[0].port},127.0.0.1:{self.nodes[1].port}"

    def _counts(self, node: RedisServer, wanted: int) -> bool:
        with node.client() as client:
            return len(client.execute_command("CLUSTER NODES")) == wanted

    def _follows(self, node: RedisServer) -> bool:
        with node.client() as client:
            return bool(client.info("replication").get("master_link_status") == "up")

    def is_whole(self, node: RedisServer) -> bool:
        with node.client() as client:
            return bool(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")

    def node_of(self, key: str) -> RedisServer:
        """Return the primary that holds a key."""
        with self.nodes[-1].client() as client:
            slot = client.execute_command("CLUSTER KEYSLOT", key)
            ranges = client.execute_command("CLUSTER SLOTS")
        [port] = [held[2][1] for held in ranges if held[0] <= slot <= held[1]]
        return next(node for node in self.nodes if node.port == port)

    def fail_over(self, key: str) -> None:
        """Kill the primary of a key; return once another node holds it."""
        dead = self.node_of(key)
        dead.kill()
        self.nodes.remove(dead)
        until(lambda: self.node_of(key) is not dead, "a replica leads")

    def end(self) -> None:
        for node in self.nodes:
            node.kill()


def until(holds: Callable[[], bool], what: str, deadline_s: float = _DEADLINE_S) -> None:
    """Wait until ``holds``; a server that does not answer yet does not."""
    deadline = time.monotonic() + deadline_s
    while True:
        with suppress(RedisError, StopIteration, ValueError):
            if holds():
                return
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def set_users(servers: Sequence[RedisServer], name: str, rules: str) -> None:
    """Create a user with the password ``secret`` on each server."""
    for server in servers:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", *rules.split())
