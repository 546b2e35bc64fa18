"""The engine's door, and feeds, for code that blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack

from flowfabric.contracts.events import FeedEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.contracts.events import AnyEvent, Family
    from flowfabric.engine.feeds import Feed as AsyncFeed
    from flowfabric.engine.feeds import FeedOptions
    from flowfabric.engine.interface import AnyEngine
    from flowfabric.sync.portal import Portal

E = TypeVar("E", bound=FeedEvent, covariant=True)
R = TypeVar("R")


class Feed(Generic[E]):
    """Events as they happen, to be iterated with ``for``; see ``flowfabric.engine.feeds.Feed``.

    Entered with ``with``, it begins at that moment; else when the first event is asked for.
    """

    def __init__(self, portal: Portal, feed: AsyncFeed[E]) -> None:
        self._portal = portal
        self._feed = feed

    @property
    def cursor(self) -> str:
        """Where to go on after the last event that was handed out."""
        return self._feed.cursor

    def __enter__(self) -> Self:
        self._portal.call(self._feed.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> E:
        found = self._portal.call(self._step)
        if not found:
            raise StopIteration
        return found[0]

    async def _step(self) -> tuple[E, ...]:
        try:
            return (await anext(self._feed),)
        except StopAsyncIteration:
            return ()


class Engine:
    """Carries out commands; every call blocks until the answer is there."""

    def __init__(self, portal: Portal, engine: Callable[[], AnyEngine]) -> None:
        self._portal = portal
        self._engine = engine

    def execute(
        self,
        command: Command[R],
        *,
        request_id: str | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> R:
        """Carry out one command and return its outcome; see ``Engine.execute``."""
        return self._portal.call(
            lambda: self._engine().execute(command, request_id=request_id, namespace=namespace, actor=actor)
        )

    def execute_many(
        self,
        commands: Sequence[Command[R]],
        *,
        request_ids: Sequence[str | None] | None = None,
        namespace: str | None = None,
        actor: str = "",
    ) -> list[R | Exception]:
        """Carry out many commands; each has its own outcome or exception."""
        return self._portal.call(
            lambda: self._engine().execute_many(
                commands, request_ids=request_ids, namespace=namespace, actor=actor
            )
        )

    def now(self) -> int:
        """The store's clock, in milliseconds."""
        return self._portal.call(lambda: self._engine().now())

    def subscribe(
        self, *families: Family | str, namespace: str | None = None, **options: Unpack[FeedOptions]
    ) -> Feed[AnyEvent]:
        """The events of some families, or of all: ``for event in engine.subscribe("lease")``."""
        feed: AsyncFeed[Any] = self._engine().subscribe(*families, namespace=namespace, **options)
        return Feed(self._portal, feed)
