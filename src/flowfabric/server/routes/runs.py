"""Submitting and waiting in one request, for whoever has nothing but HTTP.

The server mints ids, partitions and times; a client says what is to be done and with what. Inputs
and results are plain JSON values where they are JSON, and base64 where they are bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import Response

from flowfabric import errors
from flowfabric.codec import JSON, Undecodable, Unencodable, decode_value
from flowfabric.contracts.check import check
from flowfabric.contracts.executions import CreateExecutionArgs, ExecutionDuplicate
from flowfabric.contracts.flows import FlowExists
from flowfabric.contracts.ids import DurationMs, Tags
from flowfabric.contracts.packed import JSON as JSON_FORM
from flowfabric.contracts.packed import unpack
from flowfabric.contracts.policy import policy_from_builtins
from flowfabric.contracts.runs import ReadRunArgs, RunView
from flowfabric.contracts.schema import Form
from flowfabric.contracts.states import PublicState
from flowfabric.engine.notifier import ended_topic
from flowfabric.flow_documents import FlowDocument, build_flow
from flowfabric.run import ENDED, SAFETY_POLL_MS
from flowfabric.server.access import Role
from flowfabric.server.calls import refused
from flowfabric.server.problems import problem_of
from flowfabric.server.routes.executions import execution_id_of
from flowfabric.server.routes.table import DATA_BODY_BYTES, route, whole_number
from flowfabric.submissions import Submissions, SubmitOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.server.calls import Call

WAIT_MS_MAX: Final = 30_000
RUNS_MAX: Final = 1_000
DEFAULT_NAMESPACE: Final = "default"
WAIT: Final = {"wait_ms": whole_number("how long to wait for the end", 0, WAIT_MS_MAX)}


class RunDocument(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be done: the kind, the input, and what else there is to say."""

    kind: str
    input: Any = None
    input_base64: bytes | None = None
    """Instead of ``input``, for a handler that takes bytes."""
    lane: str | None = None
    priority: int | None = None
    idempotency_key: str | None = None
    delay_ms: DurationMs | None = None
    execution_deadline_at: int | None = None
    tags: Tags | None = None
    policy: dict[str, Any] | None = None
    budgets: list[str] | None = None
    quota: str | None = None


class RunAnswer(msgspec.Struct):
    """A run: what was submitted, how it stands, and its result once there is one."""

    execution_id: str
    public_state: str
    duplicate: bool = False
    result: Any = None
    """Of a run that has completed, if it is JSON."""
    result_base64: bytes | None = None
    """Instead of it, if it is not."""
    failure_reason: str = ""
    failure_category: str = ""
    cancellation_reason: str = ""
    progress_pct: int | None = None
    progress_message: str | None = None
    attempts: int = 0
    completed_at: int | None = None


class ManyRuns(msgspec.Struct, forbid_unknown_fields=True):
    """Runs to submit together."""

    runs: list[RunDocument]


class Submitted(msgspec.Struct, omit_defaults=True):
    """What became of one of many submissions: the run, or a status with the problem."""

    status: int
    execution_id: str = ""
    duplicate: bool = False
    problem: dict[str, Any] | None = None


class ManySubmitted(msgspec.Struct):
    """What became of many submissions, in their order."""

    answers: list[Submitted]


class GraphAnswer(msgspec.Struct):
    """A flow that was submitted, or would have been, with the executions of its members by name."""

    flow_id: str
    members: dict[str, str]
    duplicate: bool = False
    valid: bool = True


class GraphDocument(FlowDocument, forbid_unknown_fields=True, kw_only=True):
    """A flow to submit as a whole."""

    idempotency_key: str | None = None


@route(
    "POST",
    "/v1/runs",
    Role.SUBMIT,
    body=RunDocument,
    statuses={200: RunAnswer, 201: RunAnswer},
    form=Form.PLAIN,
    query=WAIT,
    body_bytes_max=DATA_BODY_BYTES,
)
async def submit_run(call: Call) -> Response:
    """Submit a run, and wait for its end if asked to."""
    document = await _document(call, RunDocument)
    [command] = await _commands(call, [document])
    _ready_to_wait(call)  # whoever cannot wait is told so before anything is submitted
    outcome = await call.execute(command)
    duplicate = isinstance(outcome, ExecutionDuplicate)
    view = await _awaited(call, outcome.execution_id)
    return _told(_answer(view, duplicate=duplicate), 200 if duplicate else 201)


@route("GET", "/v1/runs/{execution_id}", Role.READ, statuses={200: RunAnswer}, form=Form.PLAIN, query=WAIT)
async def read_run(call: Call) -> Response:
    """Read how a run stands, and wait for its end if asked to."""
    return _told(_answer(await _awaited(call, execution_id_of(call))))


@route(
    "POST",
    "/v1/runs/batch",
    Role.SUBMIT,
    body=ManyRuns,
    statuses={200: ManySubmitted},
    form=Form.PLAIN,
    body_bytes_max=DATA_BODY_BYTES,
)
async def submit_runs(call: Call) -> Response:
    """Submit many runs; each has its own outcome or problem, in the same order."""
    asked = (await _document(call, ManyRuns)).runs
    if len(asked) > RUNS_MAX:
        raise errors.InvalidInput(field="runs", rule=f"at most {RUNS_MAX} runs")
    commands = await _commands(call, asked)
    outcomes = await call.engine.execute_many(commands, namespace=call.namespace, actor=call.principal.name)
    return _told(ManySubmitted([_submitted(outcome) for outcome in outcomes]))


@route(
    "POST",
    "/v1/graphs",
    Role.SUBMIT,
    body=GraphDocument,
    statuses={200: GraphAnswer, 201: GraphAnswer},
    form=Form.PLAIN,
    query={"validate": whole_number("1: only say whether it could be submitted", 0, 1)},
    body_bytes_max=DATA_BODY_BYTES,
)
async def submit_graph(call: Call) -> Response:
    """Submit a flow as a whole: members by name, and what each comes after."""
    document = await _document(call, GraphDocument)
    key = _key_of(call, document.idempotency_key)
    try:
        flow = build_flow(document, call.principal.name)
        submissions = Submissions({}, _namespace(call))
        command, ids = await flow.command(call.engine, submissions, key)
    except (ValueError, TypeError) as error:
        raise _no_document(error) from error
    if call.query_number("validate", 0, 1):
        check(command)
        return _told(GraphAnswer("", dict.fromkeys(ids, "")))
    outcome = await call.execute(command)
    duplicate = isinstance(outcome, FlowExists)
    answer = GraphAnswer(outcome.flow_id, ids, duplicate=duplicate)
    return _told(answer, 200 if duplicate else 201)


async def _document(call: Call, kind: type[Any]) -> Any:
    if call.content_type() != JSON_FORM:
        raise refused(415, f"send Content-Type: {JSON_FORM}")
    return unpack(await call.body(), kind, JSON_FORM)


def _no_document(error: Exception) -> errors.FlowFabricError:
    if isinstance(error, errors.FlowFabricError):
        return error
    return errors.InvalidInput(field="body", rule=str(error)[:1_000])


def _namespace(call: Call) -> str:
    return call.namespace or DEFAULT_NAMESPACE


def _key_of(call: Call, key: str | None, place: int = 0) -> str | None:
    """The idempotency key of a submission: its own, or else one that stands for the request.

    So a request that is sent again under the same id submits nothing twice, though the ids of runs are
    new each time. The name of the token is part of it: clients choose their ids without knowing of
    each other.
    """
    if key is not None or not call.request_id:
        return key
    name = call.principal.name
    asked = f"{call.route.path}:{len(name)}:{name}{call.request_id}"
    return f"request:{hashlib.sha256(asked.encode()).hexdigest()}/{place}"


async def _commands(call: Call, documents: Sequence[RunDocument]) -> list[CreateExecutionArgs]:
    """The commands that submit some runs.

    Raises:
        InvalidInput: an input cannot be stored, or is given twice.
    """
    submissions = Submissions({}, _namespace(call))
    made: list[CreateExecutionArgs] = []
    for place, document in enumerate(documents):
        if document.input is not None and document.input_base64 is not None:
            raise errors.InvalidInput(field="input", rule="one of input and input_base64")
        value = document.input if document.input_base64 is None else document.input_base64
        try:
            [command] = await submissions.creations(
                call.engine, document.kind, [value], _options(call, document, place)
            )
        except Unencodable as error:
            raise errors.InvalidInput(field="input", rule=str(error)) from error
        made.append(msgspec.structs.replace(command, execution_deadline_at=document.execution_deadline_at))
    return made


def _options(call: Call, document: RunDocument, place: int) -> SubmitOptions:
    return SubmitOptions(
        lane=document.lane,
        priority=document.priority,
        idempotency_key=_key_of(call, document.idempotency_key, place),
        delay=None if document.delay_ms is None else document.delay_ms / 1_000,
        tags=document.tags,
        policy=policy_from_builtins(document.policy),
        budgets=document.budgets,
        quota=document.quota,
        creator=call.principal.name,
    )


async def _awaited(call: Call, execution_id: str) -> RunView:
    """The run as it stands when it has ended, when the time is over, or when the server ends.

    A server that ends answers all the same: what was submitted must not be submitted again.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _ready_to_wait(call) / 1_000
    with call.engine.notifier.subscribe(ended_topic(execution_id)) as changes:
        while True:
            view = await call.execute(ReadRunArgs(execution_id=execution_id))
            left_ms = (deadline - loop.time()) * 1_000
            if view.public_state in ENDED or left_ms <= 0 or call.service.closing:
                return view
            await changes.wait(min(left_ms, SAFETY_POLL_MS))


def _ready_to_wait(call: Call) -> int:
    """How long to wait, in milliseconds. The request has its place among those that wait then.

    Raises:
        Refused: there is no such place, or the time is none.
    """
    wait_ms = call.query_number("wait_ms", 0, WAIT_MS_MAX)
    if wait_ms:
        call.place.wait()
    return wait_ms


def _answer(view: RunView, *, duplicate: bool = False) -> RunAnswer:
    answer = RunAnswer(
        execution_id=view.execution_id,
        public_state=view.public_state,
        duplicate=duplicate,
        failure_reason=view.failure_reason,
        failure_category=view.failure_category,
        cancellation_reason=view.cancellation_reason,
        progress_pct=view.progress_pct,
        progress_message=view.progress_message,
        attempts=view.total_attempt_count,
        completed_at=view.completed_at,
    )
    if view.public_state is PublicState.COMPLETED and view.result is not None:
        _put_result(answer, view.result, view.result_encoding)
    return answer


def _put_result(answer: RunAnswer, result: bytes, encoding: str | None) -> None:
    """Put a result into an answer: as JSON if it is that, else as base64."""
    try:
        answer.result = decode_value(result, encoding or JSON)
    except Undecodable:
        answer.result = result
    if isinstance(answer.result, bytes):
        answer.result, answer.result_base64 = None, result


def _submitted(outcome: Any) -> Submitted:
    if isinstance(outcome, errors.FlowFabricError):
        problem = problem_of(outcome)
        return Submitted(problem.status, problem=problem.body)
    if isinstance(outcome, Exception):
        raise outcome
    duplicate = isinstance(outcome, ExecutionDuplicate)
    return Submitted(200 if duplicate else 201, outcome.execution_id, duplicate)


def _told(answer: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type=JSON_FORM)
