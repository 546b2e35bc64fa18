"""Evaluating a resume condition, one signal at a time.

The rules this module keeps:

- What satisfies a node is kept under the node's own path (``""`` for the root, ``members[0]``,
  ``members[0].members[1]`` below it), so equal nodes never share what they have counted.
- Whether a node is met is computed from its members upwards, from nothing but these sets.
- Only a signal on a waitpoint that a node names can satisfy the node. ``OperatorOnly`` and
  ``TimeoutOnly`` are kinds of their own, which no signal satisfies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.contracts.conditions import (
    AllOf,
    ByName,
    Composite,
    Count,
    CountKind,
    OperatorOnly,
    Single,
    TimeoutOnly,
)
from flowfabric.contracts.signals import SignalEffect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowfabric.contracts.conditions import ResumeCondition, SignalMatcher

Satisfiers = dict[str, tuple[str, ...]]
"""Node path -> what has satisfied it so far, in the order of arrival."""

ROOT: Final = ""
OPERATOR_ONLY_NAME: Final = "__operator_only__"
TIMEOUT_ONLY_NAME: Final = "__timeout_only__"
"""Shown to people where a condition that takes no signals is listed; never compared with a name."""

SOURCE_SEPARATOR: Final = "\x1f"
"""Control characters are refused in both parts of a source, so two sources never look the same."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """What a condition looks at in a signal."""

    signal_id: str
    signal_name: str
    source_type: str
    source_identity: str
    waitpoint_id: str
    waitpoint_key: str


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What a signal did to a condition."""

    effect: SignalEffect
    satisfiers: Satisfiers

    @property
    def contributed(self) -> bool:
        """True if the signal brought the condition closer."""
        return self.effect in (SignalEffect.APPENDED_TO_WAITPOINT, SignalEffect.RESUME_CONDITION_SATISFIED)


def apply_signal(condition: ResumeCondition, satisfiers: Satisfiers, arrival: Arrival) -> Applied:
    """Add one signal to what has satisfied a condition. Nothing that was passed in is changed."""
    candidates = [
        (path, node) for path, node in signal_nodes(condition) if arrival.waitpoint_key in _keys_of(node)
    ]
    accepting = [(path, node) for path, node in candidates if _accepts(node.matcher, arrival)]
    if not accepting:
        return Applied(effect=_refusal(condition, named=bool(candidates)), satisfiers=satisfiers)
    grown = dict(satisfiers)
    for path, node in accepting:
        _add_satisfier(grown, path, node, arrival)
    if grown == satisfiers:
        return Applied(effect=SignalEffect.APPENDED_TO_WAITPOINT_DUPLICATE, satisfiers=satisfiers)
    if is_met(condition, grown):
        return Applied(effect=SignalEffect.RESUME_CONDITION_SATISFIED, satisfiers=grown)
    return Applied(effect=SignalEffect.APPENDED_TO_WAITPOINT, satisfiers=grown)


def is_met(condition: ResumeCondition, satisfiers: Satisfiers, path: str = ROOT) -> bool:
    """Whether a node is satisfied, computed from its members upwards."""
    if isinstance(condition, Single):
        return path in satisfiers
    if not isinstance(condition, Composite):
        return False
    body = condition.body
    if isinstance(body, Count):
        return len(satisfiers.get(path, ())) >= body.n
    return all(is_met(member, satisfiers, place) for place, member in _members(body, path))


class Unmet(msgspec.Struct, frozen=True, kw_only=True):
    """A node that signals can satisfy and have not satisfied yet."""

    path: str
    waitpoint_keys: tuple[str, ...]
    signal_name: str | None
    """None if a signal of any name counts."""
    received: int
    needed: int


def unmet_nodes(condition: ResumeCondition, satisfiers: Satisfiers) -> Iterator[Unmet]:
    """What the condition still waits for, depth first."""
    for path, node in signal_nodes(condition):
        received, needed = len(satisfiers.get(path, ())), 1 if isinstance(node, Single) else node.n
        if received < needed:
            matcher = node.matcher
            yield Unmet(
                path=path,
                waitpoint_keys=_keys_of(node),
                signal_name=matcher.name if isinstance(matcher, ByName) else None,
                received=received,
                needed=needed,
            )


def required_signal_names(condition: ResumeCondition, waitpoint_key: str) -> tuple[str, ...]:
    """The names that count on one waitpoint; none at all means that every name does."""
    if isinstance(condition, OperatorOnly):
        return (OPERATOR_ONLY_NAME,)
    if isinstance(condition, TimeoutOnly):
        return (TIMEOUT_ONLY_NAME,)
    names: dict[str, None] = {}
    for _, node in signal_nodes(condition):
        if waitpoint_key not in _keys_of(node):
            continue
        matcher = node.matcher
        if not isinstance(matcher, ByName):
            return ()
        names[matcher.name] = None
    return tuple(names)


def signal_nodes(condition: ResumeCondition, path: str = ROOT) -> Iterator[tuple[str, Single | Count]]:
    """The nodes that signals can satisfy, with their paths, depth first."""
    if isinstance(condition, Single):
        yield path, condition
    elif isinstance(condition, Composite):
        if isinstance(condition.body, Count):
            yield path, condition.body
        else:
            for place, member in _members(condition.body, path):
                yield from signal_nodes(member, place)


def _members(body: AllOf, path: str) -> Iterator[tuple[str, ResumeCondition]]:
    prefix = f"{path}." if path else ""
    for index, member in enumerate(body.members):
        yield f"{prefix}members[{index}]", member


def _keys_of(node: Single | Count) -> tuple[str, ...]:
    return (node.waitpoint_key,) if isinstance(node, Single) else node.waitpoints


def _accepts(matcher: SignalMatcher | None, arrival: Arrival) -> bool:
    return not isinstance(matcher, ByName) or matcher.name == arrival.signal_name


def _refusal(condition: ResumeCondition, *, named: bool) -> SignalEffect:
    """Why no node accepted the signal; a condition that is no composite has one word for it."""
    if not isinstance(condition, Composite):
        return SignalEffect.NO_OP
    if named:
        return SignalEffect.SIGNAL_IGNORED_MATCHER_FAILED
    return SignalEffect.SIGNAL_IGNORED_NOT_IN_CONDITION


def _add_satisfier(satisfiers: Satisfiers, path: str, node: Single | Count, arrival: Arrival) -> None:
    """Note the signal at its node: the first one at a single, each different one at a count."""
    before = satisfiers.get(path, ())
    if isinstance(node, Single):
        if not before:
            satisfiers[path] = (arrival.signal_id,)
        return
    satisfier = _counted(node.count_kind, arrival)
    if satisfier not in before:
        satisfiers[path] = (*before, satisfier)


def _counted(kind: CountKind, arrival: Arrival) -> str:
    if kind is CountKind.DISTINCT_WAITPOINTS:
        return arrival.waitpoint_id
    if kind is CountKind.DISTINCT_SIGNALS:
        return arrival.signal_id
    return f"{arrival.source_type}{SOURCE_SEPARATOR}{arrival.source_identity}"
