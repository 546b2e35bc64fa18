"""How a connection to a server is made: the way to it, TLS, and how it introduces itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.stores.valkey.connection import Connection
from flowfabric.stores.valkey.faults import checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowfabric.stores.valkey.connection import Command
    from flowfabric.stores.valkey.settings import Settings

CLIENT_NAME: Final = "flowfabric"

KEEPALIVE: Final = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""A network that has swallowed the connection is found out within 25 seconds, also by a connection that
only listens. Systems that lack one of these use their own."""


async def connect(
    settings: Settings,
    hear: Callable[[bytes], None] | None = None,
    on_lost: Callable[[], None] | None = None,
) -> Connection:
    """Make a connection that has introduced itself.

    Raises:
        OSError: the server cannot be reached, or has no certificate that is trusted.
        StoreError: the server refuses us.
    """
    try:
        async with asyncio.timeout(settings.timeout_ms / 1_000):
            connection = await _dial(settings, lambda: Connection(settings.timeout_ms, hear, on_lost))
    except TimeoutError as fault:
        raise errors.StoreUnreachable(
            f"{settings.place} accepted no connection in time. Check the address, and whether this port "
            f"speaks TLS: the URL says it does{'' if settings.tls else ' not'}."
        ) from fault
    try:
        checked(await connection.send(_introduction(settings)), settings.place)
    except BaseException:
        connection.close()
        raise
    return connection


async def _dial(settings: Settings, protocol: Callable[[], Connection]) -> Connection:
    loop = asyncio.get_running_loop()
    if settings.socket is not None:
        return (await loop.create_unix_connection(protocol, settings.socket))[1]
    tls = _tls(settings) if settings.tls else None
    transport, connection = await loop.create_connection(protocol, settings.host, settings.port, ssl=tls)
    _keep_alive(transport.get_extra_info("socket"))
    return connection


def _tls(settings: Settings) -> ssl.SSLContext:
    """Whom to trust, and who we are. The server's name is always verified.

    The files are read anew for each connection, so that certificates may be replaced.

    Raises:
        StoreUnusable: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except OSError as fault:
        raise errors.StoreUnusable(
            f"{settings.place}: ca_file, cert_file or key_file cannot be used ({type(fault).__name__}). "
            "Name files in PEM form that this process may read."
        ) from fault
    return context


def _keep_alive(raw: socket.socket) -> None:
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            if hasattr(socket, name):
                raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _introduction(settings: Settings) -> list[Command]:
    commands: list[Command] = []
    if settings.password is not None:
        user = () if settings.username is None else (settings.username,)
        commands.append(("AUTH", *user, settings.password))
    commands.append(("CLIENT", "SETNAME", CLIENT_NAME))
    # A server that is made a replica would answer reads from the past; so it says where the primary is.
    commands.append(("CLIENT", "CAPA", "redirect"))
    if settings.database:
        commands.append(("SELECT", settings.database))
    return commands
