"""Creating with an idempotency key: the key is bound first, then the execution is created.

The two live in different partitions, so they are two commits. A crash between them leaves a
reservation alone; repeating the request finishes it, and a scanner frees it otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from flowfabric.contracts.executions import CreateExecutionArgs, CreateExecutionResult
from flowfabric.core.commands import ReserveIdempotencyKeyArgs
from flowfabric.core.rules.creation import idempotency_window_ms, request_digest
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine


@operation(CreateExecutionArgs, applies=lambda args: bool(args.idempotency_key))
async def create_once(engine: Engine, args: CreateExecutionArgs, envelope: Envelope) -> CreateExecutionResult:
    """Create the execution unless its idempotency key is bound to one already.

    Raises:
        IdempotencyConflict: the key is bound to a request with other content.
    """
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
    if isinstance(answer, Exception):
        raise answer
    created: CreateExecutionResult = answer
    return created
