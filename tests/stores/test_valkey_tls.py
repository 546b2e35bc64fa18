"""TLS: who is trusted, who is refused, and what is said about it."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from flowfabric import errors
from flowfabric.stores.valkey import Settings, ValkeyStore
from tests.stores.builders import counter, creation, record_of
from tests.valkey import prefix_of, server


class Terminator:
    """Speaks TLS in front of the tests' server, which cannot.

    Args:
        context: how it introduces itself, and whom it asks for a certificate.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> asyncio.Server:
        running = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = running.sockets[0].getsockname()[1]
        return running

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(server().socket)
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def terminate(authority: trustme.CA) -> AsyncIterator[Callable[..., Any]]:
    """Starts terminators, each with a certificate for some host."""
    async with AsyncExitStack() as stack:

        async def start(host: str = "127.0.0.1", *, ask: bool = False) -> Terminator:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority.issue_cert(host).configure_cert(context)
            if ask:
                authority.configure_trust(context)
                context.verify_mode = ssl.CERT_REQUIRED
            made = Terminator(context)
            stack.callback((await made.start()).close)
            return made

        yield start


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


def store_at(terminator: Terminator, place: Path, **options: Any) -> ValkeyStore:
    settings: dict[str, Any] = {"host": "127.0.0.1", "port": terminator.port, "tls": True}
    settings["prefix"] = prefix_of(place)
    return ValkeyStore(Settings(**settings | options))


async def test_a_server_whose_authority_is_named_is_trusted(
    terminate: Callable[..., Any], ca_file: str, tmp_path: Path
) -> None:
    store = store_at(await terminate(), tmp_path, ca_file=ca_file)
    await store.open()
    await store.commit(creation(counter()))
    assert await record_of(store, counter().key) == counter()
    await store.close()


async def test_a_server_of_another_authority_is_refused(
    terminate: Callable[..., Any], tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    for ca_file in (None, str(tmp_path / "other.pem")):
        store = store_at(await terminate(), tmp_path, ca_file=ca_file)
        with pytest.raises(errors.StoreUnusable, match=r"certificate that is not trusted.*\?ca_file="):
            await store.open()


async def test_a_certificate_for_another_host_is_refused(
    terminate: Callable[..., Any], ca_file: str, tmp_path: Path
) -> None:
    store = store_at(await terminate("db.example"), tmp_path, ca_file=ca_file)
    with pytest.raises(errors.StoreUnusable, match="for another name"):
        await store.open()


async def test_a_server_that_asks_who_we_are_is_told(
    terminate: Callable[..., Any], authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    terminator = await terminate(ask=True)
    own = authority.issue_cert("worker.example")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    store = store_at(terminator, tmp_path, ca_file=ca_file, cert_file=str(tmp_path / "own.pem"))
    await store.open()
    await store.close()
    nameless = store_at(terminator, tmp_path, ca_file=ca_file)
    with pytest.raises(errors.StoreError, match=r"cert_file|cannot be reached"):
        await nameless.open()


async def test_files_that_cannot_be_used_are_named(terminate: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("not a certificate")
    terminator = await terminate()
    for options in ({"ca_file": str(tmp_path / "none.pem")}, {"cert_file": str(tmp_path / "bad.pem")}):
        with pytest.raises(errors.StoreUnusable, match="ca_file, cert_file or key_file cannot be used"):
            await store_at(terminator, tmp_path, **options).open()


async def test_a_server_that_speaks_no_tls_is_not_spoken_to_in_clear(tmp_path: Path) -> None:
    port = server().listen()
    store = ValkeyStore(Settings(host="127.0.0.1", port=port, tls=True, timeout_ms=300, password="s3cret"))
    with pytest.raises(errors.StoreUnreachable, match="whether this port speaks TLS"):
        await store.open()
