"""A server in a thread of this process, for clients that block."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flowfabric.app import seed_signing_key
from flowfabric.engine.engine import Engine
from flowfabric.server.serving import Server, make_server
from flowfabric.server.settings import read_settings
from flowfabric.stores.memory import MemoryStore
from flowfabric.sync.portal import Portal
from tests.server.test_serving import free_port

PATIENCE_S = 20


@contextmanager
def served_from_a_thread(**environment: str) -> Iterator[str]:
    """The address of a server over a store in memory."""
    portal, port = Portal(), free_port()
    engine = Engine(MemoryStore())

    async def begin() -> Server:
        await engine.start()
        await seed_signing_key(engine)
        return make_server(engine, read_settings({"listen": f"127.0.0.1:{port}"}, environment, None))

    async def end() -> None:
        await engine.stop()

    portal.open()
    made = portal.call(begin)
    serving = threading.Thread(target=lambda: portal.call(made.serve))
    serving.start()
    deadline = time.monotonic() + PATIENCE_S
    while not made.started:
        assert serving.is_alive()
        assert time.monotonic() < deadline
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        portal.tell(made.stop)
        serving.join()
        portal.call(end)
        portal.close()
