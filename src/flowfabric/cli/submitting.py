"""``submit``: one execution, or one for each line of a file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from flowfabric.cli.exits import OK, REFUSED, UsageError, failure_to_wire, print_failure
from flowfabric.cli.output import (
    end_progress,
    print_fields,
    print_json,
    print_note,
    print_progress,
    shown_payload,
)
from flowfabric.cli.session import open_engine, run
from flowfabric.cli.values import decoded_json, json_lines, json_payload
from flowfabric.contracts.executions import CreateExecutionArgs, ExecutionDuplicate
from flowfabric.contracts.ids import Namespace as NamespaceName
from flowfabric.contracts.states import PublicState
from flowfabric.contracts.wire import to_wire
from flowfabric.errors import StoreError
from flowfabric.minting import new_execution_id
from flowfabric.run import Run

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.contracts.runs import RunView
    from flowfabric.engine.engine import Engine

BATCH: Final = 500


def submit(arguments: Namespace) -> int:
    """Carry out ``submit``."""
    if arguments.timeout is not None and not arguments.wait:
        raise UsageError("--timeout belongs to --wait. Add --wait, or leave --timeout out.")
    if arguments.many is None:
        return run(_submit_one(arguments))
    if arguments.input is not None or arguments.idempotency_key is not None:
        raise UsageError(
            "--many takes its inputs from the file, and no idempotency key. Leave the other out."
        )
    return run(_submit_many(arguments, json_lines(arguments.many)))


async def _submit_one(arguments: Namespace) -> int:
    payload = json_payload("null" if arguments.input is None else arguments.input, "the input")
    async with open_engine(arguments, create=True) as engine:
        [command] = await _creations(engine, arguments, [payload])
        outcome = await engine.execute(command)
        if arguments.wait:
            if not arguments.json:
                print_note(f"submitted {outcome.execution_id}, waiting for its end")
            return await _wait(engine, arguments, outcome.execution_id)
    if arguments.json:
        print_json(outcome)
    else:
        _say_duplicate(outcome)
        print(outcome.execution_id)
    return OK


async def _submit_many(arguments: Namespace, payloads: list[bytes]) -> int:
    """Submit in batches; each line that is refused is reported, and the others go on."""
    codes: list[int] = []
    async with open_engine(arguments, create=True) as engine:
        submitted: list[str] = []
        for start in range(0, len(payloads), BATCH):
            commands = await _creations(engine, arguments, payloads[start : start + BATCH])
            outcomes = await engine.execute_many(commands)
            codes += [_report_one(outcome, arguments, submitted) for outcome in outcomes]
            print_progress(f"submitted {len(submitted)} of {len(payloads)}")
        end_progress()
        if arguments.wait:
            codes += [await _wait(engine, arguments, execution_id) for execution_id in submitted]
    return max(codes, default=OK)


def _report_one(outcome: Any, arguments: Namespace, submitted: list[str]) -> int:
    """Report one line's outcome. With --wait the end is what is printed, not the submission."""
    if isinstance(outcome, StoreError):
        raise outcome
    if isinstance(outcome, Exception):
        if arguments.json:
            print_json(failure_to_wire(outcome))
        print_failure(outcome)
        return REFUSED
    submitted.append(outcome.execution_id)
    if not arguments.wait:
        if arguments.json:
            print_json(outcome)
        else:
            print(outcome.execution_id)
    return OK


async def _creations(
    engine: Engine, arguments: Namespace, payloads: list[bytes]
) -> list[CreateExecutionArgs]:
    """The commands for some inputs. They differ in nothing but the id and the input."""
    delay_ms = arguments.delay
    first = CreateExecutionArgs(
        execution_id=new_execution_id(),
        namespace=NamespaceName(arguments.namespace),
        lane_id=arguments.lane,
        execution_kind=arguments.kind,
        input_payload=b"",
        payload_encoding="json",
        priority=arguments.priority,
        creator_identity="cli",
        idempotency_key=arguments.idempotency_key,
        tags=dict(arguments.tag),
        delay_until=None if delay_ms is None else await engine.store.now() + delay_ms,
    )
    return [replace(first, execution_id=new_execution_id(), input_payload=payload) for payload in payloads]


def _say_duplicate(outcome: Any) -> None:
    if isinstance(outcome, ExecutionDuplicate):
        print_note("this was submitted before; here is the id of the first submission")


async def _wait(engine: Engine, arguments: Namespace, execution_id: str) -> int:
    """Wait for the end of one execution and print how it ended.

    Raises:
        TimeoutError: the time given was over first; the execution goes on.
    """
    timeout_ms = arguments.timeout
    try:
        async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1_000):
            view = await Run[Any](lambda: engine, execution_id, arguments.namespace).wait()
    except TimeoutError as error:
        raise TimeoutError(
            f"{execution_id} has not ended in the time given; it goes on. "
            f"Look with: flowfabric show '{execution_id}'"
        ) from error
    if arguments.json:
        print_json(run_to_wire(view))
    else:
        _print_end(view)
    return OK if view.public_state is PublicState.COMPLETED else REFUSED


def run_to_wire(view: RunView) -> dict[str, Any]:
    """How an execution stands, with a JSON result decoded beside its bytes."""
    return {**to_wire(view), "result_json": decoded_json(view.result, view.result_encoding)}


def _print_end(view: RunView) -> None:
    if view.public_state is PublicState.COMPLETED:
        print(shown_payload(view.result))
        return
    fields: list[tuple[str, str]] = [("execution", view.execution_id), ("ended", view.public_state)]
    fields += [("because", reason) for reason in (view.failure_reason, view.cancellation_reason) if reason]
    print_fields(fields)
