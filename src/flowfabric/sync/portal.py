"""From threads into an event loop that runs in a thread of its own, and back with the answer.

- A call blocks its own thread and no other. One that is interrupted cancels its work in the loop.
- The loop begins with the first who opens the portal and ends with the last who closes it; calls
  that are under way then fail.
- The loop's own thread must not wait for itself, so a call from there is refused.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from flowfabric.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

T = TypeVar("T")

NOT_STARTED: Final = "FlowFabric is not started: use `with ff:` or call `ff.start()` first"


class Portal:
    """An event loop in a thread, for as long as somebody has it open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_open(self) -> bool:
        """Whether the loop runs."""
        return self._loop is not None

    def open(self) -> None:
        """Begin the loop, or take part in one that runs."""
        with self._lock:
            self._users += 1
            if self._thread is None:
                running = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(running,), name="flowfabric loop", daemon=True
                )
                self._thread.start()
                running.wait()

    def close(self) -> None:
        """End the loop once everybody who opened the portal has closed it."""
        with self._lock:
            self._users = max(0, self._users - 1)
            thread, loop = self._thread, self._loop
            if self._users or thread is None or loop is None:
                return
            self._thread = self._loop = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _run(self, running: threading.Event) -> None:
        with asyncio.Runner() as runner:  # it cancels what is left when it closes
            self._loop = loop = runner.get_loop()
            loop.call_soon(running.set)
            loop.run_forever()

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Carry out a coroutine in the loop and return its result.

        Raises:
            RuntimeError: the portal is not open, or this is the loop's own thread.
            Unavailable: the loop ended before the work did.
        """
        thread, loop = self._thread, self._loop
        if thread is None or loop is None:
            raise RuntimeError(NOT_STARTED)
        if thread is threading.current_thread():
            raise RuntimeError(
                "a blocking call would wait for itself here; in an async function use flowfabric.FlowFabric"
            )
        future = asyncio.run_coroutine_threadsafe(make(), loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise Unavailable("The app was stopped while this call was under way.") from error
        finally:
            future.cancel()

    def tell(self, act: Callable[[], object]) -> None:
        """Have something done in the loop, without waiting for it. Does nothing once it has ended."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(act)


class Each(Generic[T]):
    """What an async iterator yields, one by one; each step blocks."""

    def __init__(self, portal: Portal, source: AsyncIterator[T] | AsyncGenerator[T, None]) -> None:
        self._portal = portal
        self._source = source

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        found = self._portal.call(self._step)
        if not found:
            raise StopIteration
        return found[0]

    async def _step(self) -> tuple[T, ...]:
        try:
            return (await anext(self._source),)
        except StopAsyncIteration:
            return ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what the iterator holds. Harmless when repeated."""
        finish = getattr(self._source, "aclose", None)
        if finish is not None and self._portal.is_open:
            self._portal.call(finish)
