"""What apps, runs and workers need of an engine, wherever it is: over a store, or over a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Unpack

from flowfabric.engine.layers import Door

if TYPE_CHECKING:
    from flowfabric.contracts.events import AnyEvent, Family
    from flowfabric.engine.feeds import Feed, FeedOptions
    from flowfabric.engine.notifier import Notifier
    from flowfabric.stores.base import Durability


class Clock(Protocol):
    """Whatever knows the store's time."""

    async def now(self) -> int:
        """The store's clock, in milliseconds."""


class AnyEngine(Door, Clock, Protocol):
    """An engine: it carries out commands, tells the time, and wakes those who wait."""

    namespace: str | None
    notifier: Notifier
    durability: Durability | None

    def subscribe(
        self, *families: Family | str, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[AnyEvent]:
        """The events of some families, or of all."""

    async def start(self) -> Durability:
        """Begin. Returns what an acknowledged command survives."""

    async def stop(self) -> None:
        """Finish what is in flight."""
