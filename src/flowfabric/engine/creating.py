"""Creating with an idempotency key: the key is bound first, then the execution is created.

The two live in different partitions, so they are two commits. A crash between them leaves a
reservation alone; repeating the request finishes it, and a scanner frees it otherwise. The second
commit relies on the reservation, so nothing is created under a key that was freed meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.executions import CreateExecutionArgs, CreateExecutionResult
from flowfabric.core.commands import ReserveIdempotencyKeyArgs
from flowfabric.core.rules.creation import idempotency_window_ms, request_digest
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.work import Envelope

R = TypeVar("R")

TRIES_MAX: Final = 3
"""How often a key is reserved anew that was lost between the two commits."""


class Decider(Protocol):
    """What creating needs of an engine."""

    async def execute(self, command: Command[R], *, namespace: str | None = None) -> R:
        """Carry out one command and return its outcome."""

    async def decide(self, asked: Sequence[tuple[Command[Any], Envelope]]) -> list[Any]:
        """The outcomes of some commands, or the exceptions that refused them."""


def has_key(args: CreateExecutionArgs) -> bool:
    """True if creating takes two commits."""
    return bool(args.idempotency_key)


async def create_once(
    engine: Decider, args: CreateExecutionArgs, envelope: Envelope
) -> CreateExecutionResult:
    """Create the execution unless its idempotency key is bound to one already.

    Raises:
        IdempotencyConflict: the key is bound to a request with other content.
        InvalidInput: see ``create_execution``.
    """
    answer: Any = None
    for _ in range(TRIES_MAX):
        answer = await _reserve_and_create(engine, args, envelope)
        if not isinstance(answer, errors.Contention):
            break
    if isinstance(answer, Exception):
        raise answer
    created: CreateExecutionResult = answer
    return created


operation(CreateExecutionArgs, applies=has_key)(create_once)


async def _reserve_and_create(engine: Decider, args: CreateExecutionArgs, envelope: Envelope) -> Any:
    """The outcome of creating, or the exception that refused it."""
    assert args.idempotency_key is not None
    reserved = await engine.execute(
        ReserveIdempotencyKeyArgs(
            namespace=args.namespace,
            idempotency_key=args.idempotency_key,
            execution_id=args.execution_id,
            digest=request_digest(args),
            window_ms=idempotency_window_ms(args.policy),
        ),
        namespace=envelope.namespace,
    )
    # A reservation that an earlier request left without its execution is finished here, under
    # the id it was made for.
    [answer] = await engine.decide([(replace(args, execution_id=reserved.execution_id), envelope)])
    return answer
