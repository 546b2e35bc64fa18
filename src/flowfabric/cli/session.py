"""One command's connection to the store."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from flowfabric.cli.exits import UsageError
from flowfabric.engine.engine import Engine
from flowfabric.errors import InvalidInput
from flowfabric.urls import require_store, store_for

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncIterator, Coroutine

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
) -> AsyncIterator[Engine]:
    """The engine over the store that the command line names.

    Args:
        arguments: the command line.
        create: whether a store that is not there yet is made. Looking must not make one, because
            the reason is nearly always a wrong path.
        everywhere: whether all namespaces are seen, not only the one that the command line names.

    Raises:
        UsageError: the URL names no store.
        StoreError: the store cannot be used.
    """
    namespace = None if everywhere else arguments.namespace
    engine = Engine(_named_store(arguments.url, create=create), namespace=namespace)
    async with engine:
        yield engine


def _named_store(url: str, *, create: bool) -> Store:
    try:
        if not create:
            require_store(url)
        return store_for(url)
    except InvalidInput as error:
        raise UsageError(str(error)) from error
