"""One command's connection to the store."""

from __future__ import annotations

import asyncio
import getpass
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from flowfabric.app import server_engine
from flowfabric.cli.exits import UsageError
from flowfabric.engine.engine import Engine
from flowfabric.errors import InvalidInput
from flowfabric.urls import is_server, require_store, store_for

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncIterator, Coroutine

    from flowfabric.engine.interface import AnyEngine
    from flowfabric.stores.base import Store

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run one verb on an event loop, on uvloop where that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@asynccontextmanager
async def open_engine(
    arguments: Namespace, *, create: bool = False, everywhere: bool = False
) -> AsyncIterator[AnyEngine]:
    """The engine over the store, or behind the server, that the command line names.

    Args:
        arguments: the command line.
        create: whether a store that is not there yet is made. Looking must not make one, because
            the reason is nearly always a wrong path.
        everywhere: whether all namespaces are seen, not only the one that the command line names.

    Raises:
        UsageError: the URL names no store.
        Unauthorized: the server does not know the token in ``FF_TOKEN``.
        StoreError: the store cannot be used, or the server not reached.
    """
    namespace = None if everywhere else arguments.namespace
    if not is_server(arguments.url):
        store = _named_store(arguments.url, create=create)
        async with Engine(store, namespace=namespace, actor=_user()) as engine:
            yield engine
        return
    remote = server_engine(arguments.url, None, namespace=namespace)
    await remote.start()
    try:
        yield remote
    finally:
        await remote.stop()


def _user() -> str:
    """Who sits at this machine, for the operator log; nobody where the system does not say."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""
    return name if name.isprintable() else ascii(name)


def _named_store(url: str, *, create: bool) -> Store:
    try:
        if not create:
            require_store(url)
        return store_for(url)
    except InvalidInput as error:
        raise UsageError(str(error)) from error
