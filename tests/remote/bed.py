"""A bed whose commands take the way over HTTP: the client, the application, the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeVar

import httpx

from flowfabric.contracts.base import Command
from flowfabric.engine.layers import operation_name
from flowfabric.remote import HttpEngine
from flowfabric.server import Role, ServerOptions, Service, entry_for, make_app
from flowfabric.server.routes.commands import operations
from flowfabric.testing.bed import Bed

R = TypeVar("R")

TOKEN = "token-of-the-tests"
# The server knows who asks by the token; beds ask as nobody, and for any namespace.
ENTRY = entry_for(TOKEN, "", (Role.ADMIN,), None)


class RemoteBed(Bed):
    """A bed behind a server. What is no public operation, or names an actor, goes to the engine."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.service = Service(self.engine, ServerOptions(tokens=(ENTRY,)))
        self.client = HttpEngine(
            "http://server",
            token=TOKEN,
            namespace=self.engine.namespace,
            transport=httpx.ASGITransport(make_app(self.service)),
        )
        await self.client.start()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.client.stop()
        self.service.close()
        await super().__aexit__(*details)

    async def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        if actor or operation_name(type(command)) not in operations():
            return await super().execute(command, request_id=request_id, namespace=namespace, actor=actor)
        request_id = request_id or self._next_request_id()
        return await self.client.execute(command, request_id=request_id, namespace=namespace)

    async def execute_many(self, commands: Sequence[Command[R]]) -> list[R | Exception]:
        if any(operation_name(type(command)) not in operations() for command in commands):
            return await super().execute_many(commands)
        ids = [self._next_request_id() for _ in commands]
        return await self.client.execute_many(commands, request_ids=ids)

    def _next_request_id(self) -> str:
        """What the engine would have minted, so that equal things are stored."""
        engine: Any = self.engine
        return f"request-{next(engine._requests)}"
