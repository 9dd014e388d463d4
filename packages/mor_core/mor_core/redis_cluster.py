"""Client of a Redis Cluster that behaves as redis-py's client of one server.

What MoR stores has hash tags: the keys of one run lie in one slot, those of the router's store in another. A command, a
script or a transaction therefore always goes to one node. Where a command names no key, as ``TIME``, all processes ask
the node that holds the announcements of runs, so that they agree.

Redis-py's own client is the base: it follows slots that move and primaries that fail. Added here are pauses between its
retries, its errors as ``RedisError``, and transactions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, RedisClusterException, SlotNotCoveredError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mor_core.run_announcements import RUNS_KEY

_SCRIPTS = ("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO")


class ClusterClient(RedisCluster):
    """Client of a cluster."""

    def __init__(
        self,
        nodes: Sequence[tuple[str, int]],
        connection_kind: Callable[[Any], Any],
        parser: Any,
        *,
        retry: Retry,
        **options: Any,
    ) -> None:
        """``connection_kind`` adds to redis-py's kind of connection; ``parser`` parses replies."""
        startup = [ClusterNode(host, port) for host, port in nodes]
        # Names may lead to other addresses once nodes were replaced, so those that were given stay in use.
        super().__init__(
            startup_nodes=startup,
            dynamic_startup_nodes=False,
            retry=Retry(NoBackoff(), retries=1),
            **options,
        )
        kind = connection_kind(self.connection_kwargs["connection_class"])
        self.connection_kwargs |= {"connection_class": kind, "parser_class": parser}
        for node in self.startup_nodes:
            node.connection_class = kind
            node.connection_kwargs["parser_class"] = parser
            kind(**node.connection_kwargs)  # refuses certificates that cannot be used now, not at the first command
        self.set_retry(retry)

    async def initialize(self, *args: Any, **options: Any) -> ClusterClient:
        """Find the nodes.

        Raises:
            RedisConnectionError: none can be reached, or they are no cluster that holds all slots.
        """
        try:
            await super().initialize(*args, **options)
        except RedisClusterException as error:
            raise _outage(error) from error
        return self

    async def aclose(self) -> None:
        """Close all connections, those of a client that found no cluster as well."""
        await super().aclose()
        for nodes in ("nodes_cache", "startup_nodes"):
            await self.nodes_manager.aclose(nodes)

    async def refresh(self) -> None:
        """Find the nodes again, after one of them was not what it had been.

        Raises:
            RedisConnectionError: as ``initialize``.
        """
        try:
            await self.nodes_manager.initialize()
        except RedisClusterException as error:
            raise _outage(error) from error

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        async def attempt() -> Any:
            try:
                return await RedisCluster.execute_command(self, *args, **options)
            except SlotNotCoveredError as error:
                raise _outage(error) from error

        return await self.retrying(attempt)

    def set_retry(self, retry: Retry) -> None:
        self._pauses = retry
        self._pauses.update_supported_errors([RedisConnectionError, RedisTimeoutError, ClusterDownError, TryAgainError])

    async def retrying(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """Call ``attempt`` until it succeeds, with jittered pauses, a bounded number of times."""

        async def nothing(_: Exception) -> None:
            """Redis-py's client has closed the connection."""

        return await self._pauses.call_with_retry(attempt, nothing)

    async def _determine_slot(self, command: str, *args: Any) -> int:
        """Return the slot of a command's keys, for those where redis-py would ask the server each time."""
        name = command.upper()
        if name in _SCRIPTS:
            return self.keyslot(args[2])
        if name == "XREADGROUP":
            return self.keyslot(args[[_text(arg) for arg in args].index("STREAMS") + 1])
        return await super()._determine_slot(command, *args)

    async def time(self, **_: Any) -> Any:
        """Return the time of one node, the same for all processes."""
        return await self._on_fixed_node("TIME")

    async def info(self, section: str | None = None, *_: str, **__: Any) -> Any:
        """Return the information of the same node."""
        return await self._on_fixed_node("INFO", *([] if section is None else [section]))

    async def ping(self, **_: Any) -> Any:
        """Check that each primary answers; a replica may be away."""
        return await self.execute_command("PING", target_nodes=self.PRIMARIES)

    async def _on_fixed_node(self, *command: str) -> Any:
        async def attempt() -> Any:
            await self.initialize()
            node = self.node_of(RUNS_KEY)
            return await RedisCluster.execute_command(self, *command, target_nodes=[node])

        return await self.retrying(attempt)

    def node_of(self, key: Any) -> ClusterNode:
        """Return the primary that holds the slot of a key.

        Raises:
            RedisConnectionError: none does.
        """
        try:
            node = self.get_node_from_key(key)
        except SlotNotCoveredError as error:
            raise _outage(error) from error
        assert node is not None, "only a replica may be missing"
        return node

    async def primaries(self) -> list[NodeConnections]:
        """Return the connections to each primary."""
        await self.initialize()
        return [NodeConnections(self, node) for node in self.get_primaries()]

    def pipeline(self, transaction: Any = True, shard_hint: Any = None) -> Any:
        """Return a pipeline whose keys all lie in one slot."""
        return _SlotPipeline(self, bool(transaction))


class NodeConnections:
    """Connections to one node, as a pool of redis-py."""

    def __init__(self, cluster: ClusterClient, node: ClusterNode | None = None) -> None:
        self._cluster = cluster
        self._node = node
        self.key: Any = None
        """Key whose node is meant where no node is given."""

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        """Return a connection that is open.

        Raises:
            RedisConnectionError: the node cannot be reached.
        """
        await self._cluster.initialize()
        node: Any = self._node or self._cluster.node_of(self.key)
        connection = node.acquire_connection()
        try:
            await connection.connect()
            if await connection.can_read():  # the rest of an answer that nobody waited for
                await connection.disconnect()
                await connection.connect()
        except BaseException:
            await connection.disconnect()
            node.release(connection)
            raise
        connection.owner = node
        return connection

    async def release(self, connection: Any) -> None:
        await connection.owner.disconnect_if_needed(connection)
        connection.owner.release(connection)


class _SlotPipeline(Pipeline):
    """Pipeline on the node that holds the slot of its first key, and so of all its keys."""

    def __init__(self, cluster: ClusterClient, transaction: bool) -> None:
        self._cluster = cluster
        self._node: Any = NodeConnections(cluster)
        # Of a pool, a pipeline only takes connections and gives them back.
        super().__init__(self._node, cluster.response_callbacks, transaction, None)  # type: ignore[arg-type]

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self._node.key is None:
            self._node.key = args[3] if args[0] in _SCRIPTS else args[1]
        return super().execute_command(*args, **options)

    async def watch(self, *names: Any) -> Any:  # type: ignore[override]
        async def attempt() -> Any:
            return await super(_SlotPipeline, self).watch(*names)

        return await self._on_present_node(attempt)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the commands to the node; once more where the slot has moved and nothing is watched."""
        commands, is_watching = self.command_stack, self.watching

        async def attempt() -> list[Any]:
            self.command_stack = commands
            replies = await super(_SlotPipeline, self).execute(raise_on_error)
            if moved := next((reply for reply in replies if isinstance(reply, AskError)), None):
                raise moved
            return replies

        if is_watching:
            return await attempt()
        found: list[Any] = await self._on_present_node(attempt)
        return found

    async def _on_present_node(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        async def retried() -> Any:
            try:
                return await attempt()
            except (AskError, RedisConnectionError, RedisTimeoutError, ClusterDownError) as error:
                await self.reset()  # type: ignore[no-untyped-call]
                await self._cluster.refresh()
                if isinstance(error, AskError):
                    raise RedisConnectionError("the slot of a key has moved to another node") from error
                raise

        return await self._cluster.retrying(retried)


def _outage(error: RedisClusterException) -> RedisConnectionError:
    return RedisConnectionError(
        f"{error}; check that the nodes of MOR_REDIS_URL are a cluster (cluster-enabled yes) that covers all slots, "
        "and that its user may use CLUSTER SLOTS"
    )


def _text(argument: Any) -> Any:
    return argument.decode(errors="replace") if isinstance(argument, bytes) else argument
