"""From what a submitter says to the command that submits it, and from the answer to a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypedDict

from msgspec.structs import replace

from flowfabric.codec import encode_value
from flowfabric.contracts.executions import CreateExecutionArgs, CreateExecutionResult, ExecutionDuplicate
from flowfabric.contracts.limits import TAGS_MAX
from flowfabric.contracts.policy import ExecutionPolicy
from flowfabric.handlers import Handler, milliseconds
from flowfabric.minting import new_execution_id
from flowfabric.run import Run

if TYPE_CHECKING:
    from flowfabric.engine.interface import AnyEngine, Clock


EARLY: Final = ("routing_requirements", "timeout_policy", "budget_ids", "quota_policy_id")
"""The parts of a handler's policy that count from the submission on."""


class SubmitOptions(TypedDict, total=False):
    """What may be said about a submission. An option that is None, or absent, says nothing."""

    lane: str | None
    """Where it waits; the handler's lane when absent."""
    priority: int | None
    """0 to 9000; the handler's when absent."""
    idempotency_key: str | None
    """Submitting again with this key gives the same run."""
    delay: timedelta | float | None
    """Seconds or timedelta before it may be claimed."""
    deadline: datetime | None
    """When it expires if it has not ended."""
    tags: dict[str, str] | None
    """Labels such as ``{"team.name": "media"}``."""
    policy: ExecutionPolicy | None
    """Wins over the handler's, part by part."""
    budgets: Sequence[str] | None
    """Names of budgets, instead of the handler's."""
    quota: str | None
    """The name of a quota policy, instead of the handler's."""
    execution_id: str | None
    """The id to use; minted when absent."""
    creator: str | None
    """Who submits, for the record."""


class Submissions:
    """Makes commands and runs for the handlers and the namespace of one app."""

    def __init__(
        self,
        handlers: Mapping[str, Handler[..., Any]],
        namespace: str,
        carried: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._handlers = handlers
        self._carried = carried
        self.namespace = namespace
        self.namespace = namespace

    async def creations(
        self, clock: Clock, handler: Handler[..., Any] | str, inputs: Sequence[Any], options: SubmitOptions
    ) -> list[CreateExecutionArgs]:
        """The commands that submit some executions of one kind to the store.

        Raises:
            Unencodable: an input cannot be stored.
        """
        delay_ms = milliseconds(options.get("delay"))
        delay_until = None if delay_ms is None else await clock.now() + delay_ms
        return [self._creation(handler, value, options, delay_until) for value in inputs]

    def _creation(
        self, handler: Handler[..., Any] | str, value: Any, options: SubmitOptions, delay_until: int | None
    ) -> CreateExecutionArgs:
        known = self._known(handler)
        payload, encoding = encode_value(value)
        lane, priority = options.get("lane"), options.get("priority")
        execution_id, key = options.get("execution_id"), options.get("idempotency_key")
        deadline = options.get("deadline")
        return CreateExecutionArgs(
            execution_id=new_execution_id() if execution_id is None else execution_id,
            namespace=self.namespace,
            lane_id=(lane or (known.lane if known else "default")),
            execution_kind=handler if isinstance(handler, str) else handler.kind,
            input_payload=payload,
            payload_encoding=encoding,
            priority=priority if priority is not None else (known.priority if known else 0),
            creator_identity=options.get("creator") or "",
            idempotency_key=None if key is None else key,
            tags=self._tags(options.get("tags") or {}),
            policy=_submitted_policy(_limited_policy(options), known),
            delay_until=delay_until,
            execution_deadline_at=None if deadline is None else round(deadline.timestamp() * 1_000),
        )

    def _tags(self, own: dict[str, str]) -> dict[str, str]:
        """The submitter's tags, and what is carried along as long as there is room for it."""
        carried = self._carried()
        return {**carried, **own} if carried and len(own) + len(carried) <= TAGS_MAX else own

    def run(
        self,
        engine: Callable[[], AnyEngine],
        handler: Handler[..., Any] | str,
        outcome: CreateExecutionResult,
    ) -> Run[Any]:
        """The run that a submission has made or found."""
        return self.run_of(
            engine, handler, outcome.execution_id, duplicate=isinstance(outcome, ExecutionDuplicate)
        )

    def run_of(
        self,
        engine: Callable[[], AnyEngine],
        handler: Handler[..., Any] | str,
        execution_id: str,
        *,
        duplicate: bool = False,
    ) -> Run[Any]:
        """The run of an execution of this handler."""
        known = self._known(handler)
        return Run(
            engine,
            execution_id,
            self.namespace,
            result_type=Any if known is None else known.result_type,
            duplicate=duplicate,
        )

    def _known(self, handler: Handler[..., Any] | str) -> Handler[..., Any] | None:
        return self._handlers.get(handler) if isinstance(handler, str) else handler


def require_options_for_many(options: SubmitOptions) -> None:
    """Refuse options that name one execution where many are submitted."""
    if {"idempotency_key", "execution_id"} & options.keys():
        raise TypeError("an idempotency key or an execution id names one execution; submit one by one")


def _limited_policy(options: SubmitOptions) -> ExecutionPolicy | None:
    """The policy of a submission, with the budgets and the quota policy that it names."""
    own, budgets, quota = options.get("policy"), options.get("budgets"), options.get("quota")
    if budgets is None and quota is None:
        return own
    base = own or ExecutionPolicy()
    return replace(
        base,
        budget_ids=base.budget_ids if budgets is None else tuple(budgets),
        quota_policy_id=quota or base.quota_policy_id,
    )


def _submitted_policy(
    own: ExecutionPolicy | None, handler: Handler[..., Any] | None
) -> ExecutionPolicy | None:
    """What has to be known before the first claim: routing, deadlines, budgets and the quota policy."""
    if handler is None or handler.policy is None:
        return own
    base = own or ExecutionPolicy()
    wanted = {name: getattr(handler.policy, name) for name in EARLY if getattr(base, name) is None}
    found = {name: part for name, part in wanted.items() if part is not None}
    return replace(base, **found) if found else own
