"""Running plain functions beside the event loop.

Each call has a thread of its own, which ends with it. A pool would let a handler that hangs take
a thread from those that come after it, and would keep the process alive until it returns.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")

_Answer = tuple[Any, BaseException | None]


async def run_in_thread(function: Callable[..., R], *args: Any, name: str) -> R:
    """Call a function in a new thread and wait for it. Cancelling leaves the thread behind.

    Raises:
        BaseException: whatever the function raises.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[_Answer] = loop.create_future()
    context = contextvars.copy_context()

    def run() -> None:
        answer: _Answer
        try:
            answer = context.run(function, *args), None
        except BaseException as error:  # noqa: BLE001 - it is raised again where the caller waits
            answer = None, error
        if not loop.is_closed():
            loop.call_soon_threadsafe(_answer, answered, answer)

    threading.Thread(target=run, name=name, daemon=True).start()
    value, error = await answered
    if error is not None:
        raise error
    result: R = value
    return result


def _answer(answered: asyncio.Future[_Answer], answer: _Answer) -> None:
    if not answered.done():
        answered.set_result(answer)
