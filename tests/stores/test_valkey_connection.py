"""The connection: what is sent together, what is lost with it, and that nothing is sent twice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import hiredis
import pytest

from flowfabric import errors
from flowfabric.stores.valkey import Settings
from flowfabric.stores.valkey.client import Client
from flowfabric.stores.valkey.connection import Connection
from flowfabric.stores.valkey.servers import Use


class Listener:
    """A server that answers as it is told, and notes what it was sent."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.answers: list[bytes | None] = []
        """One for each time that something arrives; None hangs up. ``+OK`` when there is none left."""
        self.connections = 0
        self.introduced = b"+OK\r\n"
        """What it answers to each command with which a client introduces itself."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parser, data, commands = hiredis.Reader(), b"", 0
        while piece := await reader.read(65_536):
            data += piece
            parser.feed(piece)
            commands += len(list(iter(parser.gets, False)))
            if parser.has_data():  # the rest of a long command is on its way
                continue
            answer = self._answer(data, commands)
            if answer is None:
                break
            writer.write(answer)
            data, commands = b"", 0
        writer.close()

    def _answer(self, data: bytes, commands: int) -> bytes | None:
        if b"SETNAME" in data:
            return self.introduced * commands
        self.received.append(data)
        return self.answers.pop(0) if self.answers else b"+OK\r\n" * commands


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[Listener]:
    made = Listener()
    running = await asyncio.start_unix_server(made.serve, tmp_path / "socket")
    yield made
    running.close()


@pytest.fixture
async def client(listener: Listener, tmp_path: Path) -> AsyncIterator[Client]:
    made = Client(Settings(socket=str(tmp_path / "socket"), timeout_ms=1_000))
    made.open()
    yield made
    made.close()


async def test_commands_of_one_turn_leave_in_one_write(client: Client, listener: Listener) -> None:
    await client.read(0, ("PING",))
    listener.received.clear()
    found = await asyncio.gather(*(client.read(0, ("GET", str(number))) for number in range(20)))
    assert found == [[b"OK"]] * 20
    assert len(listener.received) == 1
    assert listener.connections == 1


async def test_a_claim_does_not_wait_behind_what_is_written(client: Client, listener: Listener) -> None:
    listener.answers = [b""]
    writing = asyncio.create_task(client.invoke(0, "create_execution", ["key"], []))
    async with asyncio.timeout(60):
        while not listener.received:
            await asyncio.sleep(0)
    assert await client.invoke(0, "claim_execution", ["key"], [], use=Use.CLAIMING) == [b"OK"]
    assert not writing.done()
    assert listener.connections == 2
    client.close()
    with pytest.raises(errors.StoreUnreachable):
        await writing


async def test_answers_go_to_who_asked_even_when_some_have_gone(client: Client, listener: Listener) -> None:
    await client.read(0, ("PING",))
    listener.answers = [b"+one\r\n+two\r\n+three\r\n"]
    tasks = [asyncio.create_task(client.read(0, ("GET", name))) for name in "abc"]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert await asyncio.gather(*tasks[1:]) == [[b"two"], [b"three"]]


async def test_what_was_in_flight_when_the_connection_broke_fails_and_is_not_sent_again(
    client: Client, listener: Listener
) -> None:
    await client.read(0, ("PING",))
    listener.received.clear()
    listener.answers = [None]
    found = await asyncio.gather(
        *(client.write(0, ("SET", "a", "b")) for _ in range(3)), return_exceptions=True
    )
    assert [type(one) for one in found] == [errors.StoreUnreachable] * 3
    assert len(listener.received) == 1
    assert await client.write(0, ("SET", "a", "c")) == [b"OK"]
    assert b"".join(listener.received).count(b"SET") == 4


async def test_an_answer_that_does_not_come_in_time_fails_everything_behind_it(
    client: Client, listener: Listener
) -> None:
    await client.read(0, ("PING",))
    listener.answers = [b""]
    found = await asyncio.gather(*(client.read(0, ("GET", name)) for name in "ab"), return_exceptions=True)
    assert {type(one) for one in found} <= {errors.StoreTimeout, errors.StoreUnreachable}
    assert await client.read(0, ("GET", "a")) == [b"OK"]
    assert listener.connections == 2


class Timers:
    """The event loop, with a clock that only the test moves on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self._due.append((when, callback))
        return self._loop.call_later(3_600, callback)

    def move_to(self, now: float) -> None:
        self._now = now
        due, self._due = self._due, []
        for when, callback in due:
            callback() if when <= now else self._due.append((when, callback))


@pytest.fixture
async def timed(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Connection, Timers]]:
    """A connection that waits for ten seconds of a clock that stands still."""
    loop, timers = asyncio.get_running_loop(), Timers()
    path = str(tmp_path / "socket")
    _, connection = await loop.create_unix_connection(lambda: Connection(timeout_ms=10_000), path)
    monkeypatch.setattr(connection, "_loop", timers)
    yield connection, timers
    connection.close()


async def test_a_large_command_leaves_at_once() -> None:
    """The server begins with it while the next one is written."""
    connection = Connection(timeout_ms=10_000)
    written: list[bytes] = []
    connection.connection_made(cast("asyncio.Transport", SimpleNamespace(write=written.append, abort=print)))
    asking = [
        connection.send([("SET", name, b"v" * size)]) for name, size in (("a", 1), ("b", 9_000), ("c", 1))
    ]
    sent = [asyncio.ensure_future(one) for one in asking]
    await asyncio.sleep(0)
    assert len(written) == 1
    assert written[0].count(b"SET") == 2
    await asyncio.sleep(0)
    assert [one.count(b"SET") for one in written] == [2, 1]
    connection.close()
    await asyncio.gather(*sent, return_exceptions=True)


async def test_what_cannot_be_written_waits_for_no_answer() -> None:
    """It would get that of the next command, and all behind it one too early."""
    connection = Connection(timeout_ms=10_000)
    connection.connection_made(cast("asyncio.Transport", SimpleNamespace(write=print, abort=print)))
    with pytest.raises(UnicodeEncodeError):
        await connection.send([("GET", "\ud800")])
    answer = asyncio.ensure_future(connection.send([("ECHO", "one")]))
    await asyncio.sleep(0)
    connection.data_received(b"+one\r\n")
    assert await answer == [b"one"]
    connection.close()


async def test_every_answer_has_its_own_time(timed: tuple[Connection, Timers], listener: Listener) -> None:
    """One timer serves all, so the time of what is sent later must not begin with what came first."""
    connection, timers = timed
    assert await connection.send([("PING",)]) == [b"OK"]
    timers.move_to(6)
    listener.answers = [b""]
    late = asyncio.create_task(connection.send([("GET", "a")]))
    await asyncio.sleep(0)
    timers.move_to(15.9)
    await asyncio.sleep(0)
    assert not late.done()
    timers.move_to(16)
    with pytest.raises(TimeoutError):
        await late
    assert connection.closed


async def test_an_answer_that_is_late_counts_though_nobody_waits_for_it(
    timed: tuple[Connection, Timers], listener: Listener
) -> None:
    """Those that were sent behind it get no answer before it."""
    connection, timers = timed
    listener.answers = [b""]
    gone = asyncio.create_task(connection.send([("GET", "a")]))
    await asyncio.sleep(0)
    gone.cancel()
    timers.move_to(5)
    behind = asyncio.create_task(connection.send([("GET", "b")]))
    await asyncio.sleep(0)
    timers.move_to(10)
    assert connection.closed
    with pytest.raises(ConnectionResetError):
        await behind


async def test_words_that_nobody_asked_for_end_the_connection(client: Client, listener: Listener) -> None:
    listener.answers = [b"+OK\r\n-ERR too many clients\r\n"]
    assert await client.read(0, ("PING",)) == [b"OK"]
    await client.read(0, ("PING",))
    assert listener.connections == 2


async def test_bytes_that_are_no_answer_end_the_connection(client: Client, listener: Listener) -> None:
    listener.answers = [b"HTTP/1.1 400 Bad Request\r\n"]
    with pytest.raises(errors.StoreUnreachable):
        await client.read(0, ("PING",))


async def test_a_function_that_is_missing_is_called_again_once_and_no_other_fault_is(
    client: Client, listener: Listener
) -> None:
    listener.answers = [b"-ERR Function not found\r\n", b"+name\r\n", b":1\r\n"]
    assert await client.invoke(0, "commit", ["key"], []) == [1]
    assert client.reloads == 1
    listener.received.clear()
    listener.answers = [b"-ERR something else\r\n"]
    with pytest.raises(errors.StoreError):
        await client.invoke(0, "commit", ["key"], [])
    assert len(listener.received) == 1


async def test_whoever_still_waits_for_a_connection_is_told_when_the_client_is_closed(
    client: Client, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation that nobody asked for would end a task without a word."""
    monkeypatch.setattr(listener, "introduced", b"")  # it never answers the introduction
    reading = asyncio.create_task(client.read(0, ("PING",)))
    async with asyncio.timeout(60):
        while not listener.connections:
            await asyncio.sleep(0.001)
    client.close()
    with pytest.raises(errors.StoreUnreachable):
        await reading
    assert not reading.cancelled()


@pytest.mark.parametrize("answer", [b"-READONLY a replica\r\n", b"-REDIRECT 127.0.0.1:7000\r\n"])
async def test_the_connections_to_a_server_that_became_a_replica_are_given_up(
    client: Client, listener: Listener, answer: bytes
) -> None:
    """Its address may lead to the new primary by now."""
    await client.read(0, ("PING",))
    listener.answers = [answer]
    with pytest.raises(errors.StoreUnreachable):
        await client.write(0, ("SET", "a", "b"))
    assert await client.read(0, ("PING",)) == [b"OK"]
    assert listener.connections == 3


class Node:
    """A server of a cluster that tells of it what the test says.

    Args:
        owner: the node that has all slots by its account; itself if None.
        ready: whether it answers anything else.
        delay_s: how long it takes to tell.
    """

    def __init__(self, owner: "Node | None" = None, *, ready: bool = True, delay_s: float = 0.0) -> None:
        self.owner, self.ready, self.delay_s = owner or self, ready, delay_s
        self.port, self.open = 0, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        while data := await reader.read(65_536):
            if b"SETNAME" in data:
                writer.write(b"+OK\r\n" * data.count(b"*"))
            elif b"SLOTS" in data:
                await asyncio.sleep(self.delay_s)
                told = b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$1\r\nx\r\n"
                writer.write(told % self.owner.port)
            else:
                writer.write(b"$3\r\nyes\r\n" if self.ready else b"-CLUSTERDOWN the cluster is down\r\n")
        self.open -= 1
        writer.close()

    async def ended(self) -> None:
        """Wait until every connection was closed by the other side."""
        async with asyncio.timeout(60):
            while self.open:
                await asyncio.sleep(0.001)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Node]]]:
    """Starts nodes."""
    async with AsyncExitStack() as stack:

        async def start(*owner: Node, **options: Any) -> Node:
            node = Node(*owner, **options)
            running = await asyncio.start_server(node.serve, "127.0.0.1", 0)
            stack.push_async_callback(node.ended)
            stack.callback(running.close)
            node.port = running.sockets[0].getsockname()[1]
            return node

        yield start


def cluster_client(*nodes: Node) -> Client:
    """A client that knows these nodes."""
    seeds = tuple(("127.0.0.1", node.port) for node in nodes)
    made = Client(
        Settings(host="127.0.0.1", port=nodes[0].port, cluster=True, seeds=seeds, timeout_ms=20_000)
    )
    made.open()
    return made


async def test_a_node_that_is_cut_off_from_its_cluster_is_not_believed_again_and_again(
    serve: Callable[..., Awaitable[Node]],
) -> None:
    new = await serve(delay_s=0.02)
    new.owner = new
    old = await serve(ready=False)  # answers sooner, and that it has everything
    client = cluster_client(old, new)
    assert await client.read(0, ("GET", "a")) == [b"yes"]
    assert client.redirects == 1
    client.close()


async def test_a_node_that_has_left_the_cluster_is_forgotten(serve: Callable[..., Awaitable[Node]]) -> None:
    new = await serve()
    old = await serve()
    first = await serve(old)
    client = cluster_client(first)
    assert await client.read(0, ("GET", "a")) == [b"yes"]
    assert old.open == 1
    first.owner = old.owner = new
    client._servers.outdated = True
    assert await client.read(0, ("GET", "a")) == [b"yes"]
    await old.ended()
    assert ("127.0.0.1", old.port) not in client._servers._known
    client.close()


async def test_a_connection_to_a_node_that_is_leaving_is_closed_though_it_came_late(
    serve: Callable[..., Awaitable[Node]],
) -> None:
    old = await serve()
    new = await serve()
    client = cluster_client(new)
    assert await client.read(0, ("GET", "a")) == [b"yes"]
    leaving = client._servers.at(("127.0.0.1", old.port))
    asking = asyncio.create_task(leaving.send([("GET", "a")]))
    await asyncio.sleep(0)  # it is just connecting
    client._servers.outdated = True
    assert await client.read(0, ("GET", "a")) == [b"yes"]
    assert await asking == [b"yes"]
    client.close()
    await old.ended()
