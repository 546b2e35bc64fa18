"""Every operation over HTTP: one at a time, many at once, and waiting for something to do.

Bodies are msgpack or JSON with bytes in base64; the answer has the form of the question.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from starlette.responses import Response

import flowfabric.contracts
from flowfabric import errors
from flowfabric.contracts.base import Command
from flowfabric.contracts.events import TailEventsArgs
from flowfabric.contracts.flows import CancelFlowArgs
from flowfabric.contracts.ids import OPERATOR_OVERRIDE
from flowfabric.contracts.leases import ClaimBatchArgs, ClaimBatchResult
from flowfabric.contracts.packed import JSON, MSGPACK, pack, unpack
from flowfabric.contracts.schema import Form
from flowfabric.contracts.streams import TailFramesArgs
from flowfabric.engine.layers import operation_name
from flowfabric.engine.notifier import EVENTS
from flowfabric.server.access import Role, role_missing
from flowfabric.server.calls import Refused, refused
from flowfabric.server.permissions import roles_for
from flowfabric.server.problems import UNEXPECTED, problem_of
from flowfabric.server.routes.table import DATA_BODY_BYTES, route, text, whole_number

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from flowfabric.server.calls import Call

log = logging.getLogger("flowfabric.server")

R = TypeVar("R")

COMMANDS_MAX: Final = 256
WAITING: Final = (TailFramesArgs, TailEventsArgs, CancelFlowArgs)
"""Commands that may wait for something to happen."""
WAIT_MS_MAX: Final = 30_000


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """One command of a request with many."""

    operation: str
    command: msgspec.Raw
    request_id: str | None = None


class ManyAsked(msgspec.Struct, forbid_unknown_fields=True):
    """Commands that are carried out together; each has its own answer."""

    commands: list[Asked]


class Told(msgspec.Struct, omit_defaults=True):
    """One answer: an outcome, or a status with the problem."""

    outcome: Any = msgspec.UNSET
    status: int = 200
    problem: dict[str, Any] = {}


class ManyTold(msgspec.Struct):
    """The answers to many commands, in their order."""

    answers: list[Told]


@cache
def operations() -> dict[str, type[Command[Any]]]:
    """Every operation that can be asked for, by its name."""
    return {
        operation_name(kind): kind
        for kind in vars(flowfabric.contracts).values()
        if inspect.isclass(kind) and issubclass(kind, Command) and kind is not Command
    }


@route(
    "POST",
    "/v1/commands/{operation}",
    *Role,
    statuses={200: Any},
    form=Form.PLAIN,
    operations=operations,
    body_bytes_max=DATA_BODY_BYTES,
)
async def execute_command(call: Call) -> Response:
    """Carry out one operation: the body is its command, the answer its outcome."""
    operation = call.path("operation")
    _permitted(call, operation)
    form = _form_of(call)
    command = _command_of(call, operation, await call.body(), form)
    outcome = await _answer_of(call, call.execute(command), [command])
    return Response(pack(outcome, form), media_type=form)


@route(
    "POST",
    "/v1/commands",
    *Role,
    body=ManyAsked,
    statuses={200: ManyTold},
    form=Form.PLAIN,
    body_bytes_max=DATA_BODY_BYTES,
)
async def execute_commands(call: Call) -> Response:
    """Carry out many operations; each has its own outcome or problem, in the same order."""
    form = _form_of(call)
    asked: ManyAsked = unpack(await call.body(), ManyAsked, form)
    if len(asked.commands) > COMMANDS_MAX:
        raise errors.InvalidInput(field="commands", rule=f"at most {COMMANDS_MAX} commands")
    commands = [_attempt(call, one, form) for one in asked.commands]
    answers = await _answer_of(call, _carry_out(call, commands, asked.commands), commands)
    return Response(pack(ManyTold([_told(answer) for answer in answers]), form), media_type=form)


@route(
    "POST",
    "/v1/claims",
    Role.WORKER,
    body=ClaimBatchArgs,
    statuses={200: ClaimBatchResult},
    form=Form.PLAIN,
    query={"wait_ms": whole_number("how long to wait for work", 0, WAIT_MS_MAX)},
)
async def claim_work(call: Call) -> Response:
    """Claim up to ``limit`` executions, and wait for some if there are none."""
    form = _form_of(call)
    wait_ms = call.query_number("wait_ms", 0, WAIT_MS_MAX)
    args: ClaimBatchArgs = unpack(await call.body(), ClaimBatchArgs, form)
    result = await call.wait_for(_claim(call, args, wait_ms))
    return Response(pack(result, form), media_type=form)


@route(
    "GET",
    "/v1/changes",
    *Role,
    statuses={200: dict[str, str]},
    query={
        "after": text("the mark of the answer before"),
        "wait_ms": whole_number("how long to wait", 0, WAIT_MS_MAX),
    },
)
async def wait_for_change(call: Call) -> Response:
    """Wait until anything may have changed. It never says what."""
    wait_ms = call.query_number("wait_ms", 0, WAIT_MS_MAX)
    mark = await call.wait_for(call.service.changes.next(call.query("after"), wait_ms))
    return call.answer({"mark": mark})


async def _answer_of(call: Call, work: Coroutine[Any, Any, R], commands: Iterable[object]) -> R:
    """What the work answers. A server that ends gives up what waits, and finishes what does not."""
    if any(isinstance(command, WAITING) for command in commands):
        return await call.wait_for(work)
    return await work


async def _claim(call: Call, args: ClaimBatchArgs, wait_ms: int) -> ClaimBatchResult:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_ms / 1_000
    with call.engine.notifier.subscribe(EVENTS) as news:
        while True:
            if await call.request.is_disconnected():  # what it claimed would wait for its lease to lapse
                return ClaimBatchResult(claims=())
            result = await call.execute(args)
            left_ms = (deadline - loop.time()) * 1_000
            if result.claims or left_ms <= 0:
                return result
            await news.wait(left_ms)


def _form_of(call: Call) -> str:
    form = call.content_type()
    if form not in (MSGPACK, JSON):
        raise refused(415, f"send Content-Type: {MSGPACK} or {JSON}")
    return form


def _command_of(call: Call, operation: str, data: bytes | msgspec.Raw, form: str) -> Command[Any]:
    """The command of a body, if whoever asks may have it carried out.

    Raises:
        Unauthorized: they may not.
        Refused: there is no such operation.
        InvalidInput: the body describes no such command.
    """
    command: Command[Any] = unpack(data, _permitted(call, operation), form)
    _require_fence(call, command)
    return command


def _permitted(call: Call, operation: str) -> type[Command[Any]]:
    """The type of an operation's command, if whoever asks may have it carried out."""
    kind = operations().get(operation)
    if kind is None:
        raise refused(404, f"not found: operation {operation[:64]!r}")
    needed = roles_for(operation)
    if not call.principal.may(needed):
        raise role_missing(needed)
    return kind


def _require_fence(call: Call, command: Command[Any]) -> None:
    """A worker acts on the leases that it holds; only an operator acts on those of others."""
    without = getattr(command, "fence", ...) is None and getattr(command, "source", "") == OPERATOR_OVERRIDE
    if without and not call.principal.may(frozenset({Role.OPERATOR})):
        raise role_missing(frozenset({Role.OPERATOR}))


def _attempt(call: Call, asked: Asked, form: str) -> Command[Any] | errors.FlowFabricError:
    try:
        return _command_of(call, asked.operation, asked.command, form)
    except Refused:
        return errors.InvalidInput(field="operation", value=asked.operation[:64], rule="a known operation")
    except errors.FlowFabricError as error:
        return error


async def _carry_out(
    call: Call, commands: list[Command[Any] | errors.FlowFabricError], asked: list[Asked]
) -> list[Any]:
    """Carry out the good ones together, and put the answers where the questions were."""
    good = [(place, command) for place, command in enumerate(commands) if isinstance(command, Command)]
    outcomes = await call.engine.execute_many(
        [command for _, command in good],
        request_ids=[asked[place].request_id or call.request_id_at(place) for place, _ in good],
        namespace=call.namespace,
        actor=call.principal.name,
    )
    answers: list[Any] = list(commands)
    for (place, _), outcome in zip(good, outcomes, strict=True):
        answers[place] = outcome
    return answers


def _told(answer: Any) -> Told:
    if isinstance(answer, errors.FlowFabricError):
        problem = problem_of(answer)
        return Told(status=problem.status, problem=problem.body)
    if isinstance(answer, Exception):  # the commands beside it may have been carried out
        log.error("a command failed unexpectedly", exc_info=answer)
        return Told(status=UNEXPECTED.status, problem=UNEXPECTED.body)
    return Told(outcome=answer)
