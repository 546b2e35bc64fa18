"""``cancel``, ``replay``, ``pause``, ``unpause``: one command for each id, with an answer for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowfabric.cli.exits import OK, REFUSED, failure_to_wire, print_failure
from flowfabric.cli.output import print_json
from flowfabric.cli.session import open_engine, run
from flowfabric.contracts.blocking import (
    ExecutionPaused,
    ExecutionUnpaused,
    PauseExecutionArgs,
    UnpauseExecutionArgs,
)
from flowfabric.contracts.executions import CancelExecutionArgs, ExecutionCancelled, ReplayExecutionArgs
from flowfabric.errors import StoreError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from flowfabric.contracts.base import Command


def cancel(arguments: Namespace) -> int:
    """Carry out ``cancel``."""

    def command(execution_id: Any) -> Command[Any]:
        return CancelExecutionArgs(execution_id=execution_id, reason=arguments.reason)

    return run(_execute_each(arguments, command))


def replay(arguments: Namespace) -> int:
    """Carry out ``replay``."""

    def command(execution_id: Any) -> Command[Any]:
        return ReplayExecutionArgs(execution_id=execution_id, keep_journal=arguments.keep_journal)

    return run(_execute_each(arguments, command))


def pause(arguments: Namespace) -> int:
    """Carry out ``pause``."""

    def command(execution_id: Any) -> Command[Any]:
        return PauseExecutionArgs(execution_id=execution_id, reason=arguments.reason)

    return run(_execute_each(arguments, command))


def unpause(arguments: Namespace) -> int:
    """Carry out ``unpause``."""

    def command(execution_id: Any) -> Command[Any]:
        return UnpauseExecutionArgs(execution_id=execution_id)

    return run(_execute_each(arguments, command))


async def _execute_each(arguments: Namespace, command: Callable[[Any], Command[Any]]) -> int:
    ids = arguments.execution_ids
    async with open_engine(arguments) as engine:
        answers = await engine.execute_many([command(execution_id) for execution_id in ids])
    codes = [
        _report(execution_id, answer, as_json=arguments.json)
        for execution_id, answer in zip(ids, answers, strict=True)
    ]
    return max(codes)


def _report(execution_id: str, answer: Any, *, as_json: bool) -> int:
    if isinstance(answer, StoreError):
        raise answer
    if isinstance(answer, Exception):
        if as_json:
            print_json(failure_to_wire(answer))
        print_failure(answer, subject=execution_id)
        return REFUSED
    if as_json:
        print_json(answer)
    elif isinstance(answer, ExecutionCancelled):
        print(
            f"cancelled {execution_id}"
            + (f", which was {answer.cancelled_from}" if answer.cancelled_from else "")
        )
    elif isinstance(answer, (ExecutionPaused, ExecutionUnpaused)):
        done = "paused" if isinstance(answer, ExecutionPaused) else "unpaused"
        print(f"{done} {execution_id}, which is {answer.public_state}")
    else:
        print(f"replayed {execution_id}, which is {answer.public_state} now")
    return OK
