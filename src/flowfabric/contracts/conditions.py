"""Resume conditions: what has to happen before a suspended execution continues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Annotated, TypeAlias, Union

from msgspec import Meta

from flowfabric.contracts.base import Value
from flowfabric.contracts.ids import Name, OptionalName
from flowfabric.contracts.limits import MAX_COMPOSITE_DEPTH, U32_MAX
from flowfabric.errors import InvalidInput

_MEMBERS_MAX = 256


class ByName(Value, tag="ByName"):
    """Matches signals of one name."""

    name: OptionalName


class Wildcard(Value, tag="Wildcard"):
    """Matches every signal."""


SignalMatcher: TypeAlias = ByName | Wildcard


class CountKind(StrEnum):
    """What a count counts."""

    DISTINCT_WAITPOINTS = "DistinctWaitpoints"
    DISTINCT_SIGNALS = "DistinctSignals"
    DISTINCT_SOURCES = "DistinctSources"


class Single(Value, tag="Single"):
    """One matching signal on one waitpoint."""

    waitpoint_key: OptionalName
    matcher: SignalMatcher = Wildcard()


class OperatorOnly(Value, tag="OperatorOnly"):
    """No signal is enough; only an operator resumes."""


class TimeoutOnly(Value, tag="TimeoutOnly"):
    """No signal is enough; only the deadline ends the wait."""


class AllOf(Value, tag_field="kind", tag="AllOf"):
    """Every member must be met."""

    members: Annotated[tuple[ResumeCondition, ...], Meta(max_length=_MEMBERS_MAX)]


class Count(Value, tag_field="kind", tag="Count"):
    """At least ``n`` different signals, waitpoints or sources must match."""

    n: Annotated[int, Meta(ge=0, le=U32_MAX)]
    count_kind: CountKind
    matcher: SignalMatcher | None = None
    waitpoints: Annotated[tuple[Name, ...], Meta(max_length=_MEMBERS_MAX)]


CompositeBody: TypeAlias = AllOf | Count


class Composite(Value, tag="Composite"):
    """A condition made of others."""

    body: CompositeBody


# Union, because the alias is recursive through a name that exists only below.
ResumeCondition: TypeAlias = Union[Single, OperatorOnly, TimeoutOnly, Composite]  # noqa: UP007


def all_of_waitpoints(waitpoint_keys: Iterable[str]) -> Composite:
    """Build the condition that every one of these waitpoints gets a signal."""
    return Composite(body=AllOf(members=tuple(Single(waitpoint_key=k) for k in waitpoint_keys)))


def referenced_waitpoint_keys(condition: ResumeCondition) -> tuple[str, ...]:
    """List the waitpoint keys that a condition names, depth first, each once."""
    return tuple(dict.fromkeys(_keys(condition)))


def _keys(condition: ResumeCondition) -> Iterator[str]:
    if isinstance(condition, Single):
        yield condition.waitpoint_key
    elif isinstance(condition, Composite):
        body = condition.body
        if isinstance(body, Count):
            yield from body.waitpoints
        else:
            for member in body.members:
                yield from _keys(member)


def check_matchers(condition: ResumeCondition) -> None:
    """Refuse a matcher that asks for a signal without a name.

    Raises:
        InvalidInput: the rule is ``signal_name_empty``.
    """
    for matcher in _matchers(condition):
        if isinstance(matcher, ByName) and not matcher.name:
            raise InvalidInput(field="resume_condition", rule="signal_name_empty")


def _matchers(condition: ResumeCondition) -> Iterator[SignalMatcher | None]:
    if isinstance(condition, Single):
        yield condition.matcher
    elif isinstance(condition, Composite):
        body = condition.body
        if isinstance(body, Count):
            yield body.matcher
        else:
            for member in body.members:
                yield from _matchers(member)


def validate_composite(condition: ResumeCondition) -> None:
    """Check the structure of a composite condition; the root is at depth 1.

    Raises:
        InvalidInput: the rule begins with ``allof_empty_members``, ``count_n_zero``,
            ``count_waitpoints_empty``, ``count_exceeds_waitpoint_set`` or ``depth``, and ends
            with the path of the node.
    """
    if isinstance(condition, Composite):
        _check_body(condition.body, 1, "")


def _check_body(body: CompositeBody, depth: int, path: str) -> None:
    if depth > MAX_COMPOSITE_DEPTH:
        raise _broken(f"depth {depth} exceeds cap {MAX_COMPOSITE_DEPTH}", path)
    if isinstance(body, Count):
        _check_count(body, path)
        return
    if not body.members:
        raise _broken("allof_empty_members", path)
    for index, member in enumerate(body.members):
        if isinstance(member, Composite):
            place = f"members[{index}]"
            _check_body(member.body, depth + 1, f"{path}.{place}" if path else place)


def _check_count(body: Count, path: str) -> None:
    if body.n == 0:
        raise _broken("count_n_zero", path)
    if not body.waitpoints:
        raise _broken("count_waitpoints_empty", path)
    available = len(set(body.waitpoints))
    if body.count_kind is CountKind.DISTINCT_WAITPOINTS and body.n > available:
        raise _broken(f"count_exceeds_waitpoint_set: n={body.n} > waitpoints.len()={available}", path)


def _broken(what: str, path: str) -> InvalidInput:
    return InvalidInput(field="resume_condition", rule=f"{what} at path {path or '<root>'}")
