"""The connection: what is sent together, what is lost with it, and that nothing is sent twice."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flowfabric import errors
from flowfabric.stores.valkey import Settings
from flowfabric.stores.valkey.client import Client


class Listener:
    """A server that answers as it is told, and notes what it was sent."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.answers: list[bytes | None] = []
        """One for each time that something arrives; None hangs up. ``+OK`` when there is none left."""
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while data := await reader.read(65_536):
            commands = data.count(b"*")
            if b"SETNAME" in data:
                writer.write(b"+OK\r\n")
                continue
            self.received.append(data)
            answer = self.answers.pop(0) if self.answers else b"+OK\r\n" * commands
            if answer is None:
                break
            writer.write(answer)
        writer.close()


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[Listener]:
    made = Listener()
    running = await asyncio.start_unix_server(made.serve, tmp_path / "socket")
    yield made
    running.close()


@pytest.fixture
async def client(listener: Listener, tmp_path: Path) -> AsyncIterator[Client]:
    made = Client(Settings(socket=str(tmp_path / "socket"), timeout_ms=200))
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
