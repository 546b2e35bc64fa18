"""The operator log: who did what to whose work, and what was so before.

Every act of an operator is one event of the family ``operator``, committed with the act itself, so
there is no act without its entry and no entry without its act. A request that is repeated gets its
first answer and acts no second time, so it leaves no second entry either.

What the duties of the engine do by themselves is no act: they only carry out what somebody said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowfabric.core.commands import ActLogged, LogActArgs
from flowfabric.core.events import Event, Family
from flowfabric.core.registry import no_subject, rule

if TYPE_CHECKING:
    from flowfabric.core.records import Execution, Flow
    from flowfabric.core.work import Work


def log_act(
    work: Work,
    name: str,
    /,
    *,
    execution: Execution | None = None,
    flow: Flow | None = None,
    namespace: str | None = None,
    **told: str | int | None,
) -> None:
    """Log an act: on an execution, on a flow, or on something else in a namespace.

    Args:
        work: the act's own.
        name: what was done, as a word of the past.
        execution: what it was done to.
        flow: what it was done to.
        namespace: where, if it was done to neither; empty for what concerns all namespaces.
        told: ``old`` and ``new`` for what was changed, ``reason``, and what else names the subject.
            What is unset is left out.
    """
    subject = execution if execution is not None else flow
    within = namespace if subject is None else subject.namespace
    assert within is not None, "an act has a subject or a namespace"
    said = {key: _plain(value) for key, value in told.items() if value not in (None, "")}
    work.publish(
        Event(
            family=Family.OPERATOR,
            name=name,
            namespace=within,
            execution_id="" if execution is None else execution.execution_id,
            at_ms=work.now,
            flow_id=None if subject is None else subject.flow_id,
            data={"actor": work.envelope.actor, **said},
            tags={} if execution is None else execution.tags,
        )
    )


def _plain(value: str | int | None) -> str | int | None:
    """The value without its enumeration, which stores do not know."""
    return str(value) if isinstance(value, str) else value


@rule(LogActArgs, subject=no_subject)
def log_engine_act(work: Work, args: LogActArgs) -> ActLogged:
    """Log an act that no single commit carries out."""
    told: dict[str, Any] = {**args.told}
    log_act(work, args.act, namespace=args.namespace, **told)
    return ActLogged()


def spelled(values: dict[str, int]) -> str:
    """Named numbers as one text, in the order of the names.

    >>> spelled({"tokens": 5, "cents": 7})
    'cents=7 tokens=5'
    """
    return " ".join(f"{name}={values[name]}" for name in sorted(values))
