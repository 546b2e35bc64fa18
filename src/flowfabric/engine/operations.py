"""Operations that one rule alone cannot answer: they read indexes, wait, or take several commands.

An operation is registered for a command type and is carried out instead of a rule, unless its
``applies`` says that the rule alone is enough for this command.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from flowfabric.contracts.base import Command
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

C = TypeVar("C")
R = TypeVar("R")

CarryOut: TypeAlias = "Callable[[Engine, Any, Envelope], Awaitable[Any]]"


class Operation:
    """How a command type is carried out."""

    __slots__ = ("applies", "carry_out")

    def __init__(self, carry_out: CarryOut, applies: Callable[[Any], bool] | None) -> None:
        self.carry_out = carry_out
        self.applies = applies


OPERATIONS: Final[dict[type[Command[Any]], Operation]] = {}


def operation_for(command: Command[Any]) -> CarryOut | None:
    """The operation that carries this command out, or None if its rule does."""
    found = OPERATIONS.get(type(command))
    if found is None or (found.applies is not None and not found.applies(command)):
        return None
    return found.carry_out


def operation(
    command_type: type[C], *, applies: Callable[[C], bool] | None = None
) -> Callable[
    [Callable[[Engine, C, Envelope], Awaitable[R]]],
    Callable[[Engine, C, Envelope], Awaitable[R]],
]:
    """Register the decorated coroutine function as the way to carry out ``command_type``.

    It gets the engine, the checked command, and the envelope (request id, namespace, actor).
    """

    def register(
        carry_out: Callable[[Engine, C, Envelope], Awaitable[R]],
    ) -> Callable[[Engine, C, Envelope], Awaitable[R]]:
        assert command_type not in OPERATIONS, f"{command_type.__name__} already has an operation"
        OPERATIONS[command_type] = Operation(carry_out, applies)  # type: ignore[index]
        return carry_out

    return register
