"""What the functions on the server must not spell themselves: states, indexes, kinds, events, bounds.

All of it is data of ``core``, written out as Lua tables when the library is put together. A word that is
renamed there is renamed here, and a function that asks for one that is not there fails when it is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric.contracts.conditions import ByName, Composite, Count, CountKind, Single
from flowfabric.contracts.events import Family
from flowfabric.contracts.flows import AllOfEdges, EdgeGroupState, OnSatisfied, QuorumOfEdges
from flowfabric.contracts.limits import DIMENSIONS_MAX, SAFE_INTEGER_MAX
from flowfabric.contracts.signals import SignalEffect
from flowfabric.contracts.states import (
    AttemptLifecycle,
    BlockingReason,
    LifecyclePhase,
    PublicState,
    TerminalOutcome,
    WaitpointState,
)
from flowfabric.core import conditions, indexes, layout
from flowfabric.core.policies import NEVER_RETRIED
from flowfabric.core.registry import ACTING_ANEW, EARLIER_REQUESTS_MAX
from flowfabric.core.rules import joins
from flowfabric.core.rules.claiming import ATTEMPT_TYPE_OF
from flowfabric.core.rules.quotas import INSTANTS_PER_PIECE
from flowfabric.core.rules.streaming import SLACK_DIVISOR
from flowfabric.core.rules.transitions import CHANGED, DEPENDENCIES_UNRESOLVED, ENDED
from flowfabric.core.state import BLOCKER_ORDER, PUBLIC_OF_OUTCOME
from flowfabric.core.vocabulary import BlockerKind, Continuation, LeaseState
from flowfabric.stores.valkey.keys import BEHIND_SCOPE, SCOPE_END
from flowfabric.stores.valkey.native.signatures import SIGNAL_KEYS, SIGNATURES
from flowfabric.stores.valkey.telling import SCOPES_MAX

if TYPE_CHECKING:
    from enum import StrEnum

    import msgspec


def _named(words: type[StrEnum]) -> dict[str, str]:
    return {word.name: word.value for word in words}


def _tag(struct: type[msgspec.Struct]) -> str:
    """The word that tells a struct from others in its place."""
    return str(struct.__struct_config__.tag)


def _index_names() -> dict[str, str]:
    spelled = {name: value for name, value in vars(indexes).items() if isinstance(value, str)}
    return {name: value for name, value in spelled.items() if value in indexes.NAMES}


_LEASE_DATA: Final = (
    "lease_id",
    "lease_epoch",
    "attempt_id",
    "attempt_index",
    "worker_id",
    "worker_instance_id",
)
"""What every event about a lease says."""

WORDS: Final[dict[str, Any]] = {
    "SCOPE_END": SCOPE_END.decode(),
    "BEHIND_SCOPE": BEHIND_SCOPE.decode(),
    "SEPARATOR": indexes.SEPARATOR,
    "SAFE_INTEGER_MAX": SAFE_INTEGER_MAX,
    "FOREVER": indexes.FOREVER,
    "DIMENSIONS_MAX": DIMENSIONS_MAX,
    "EARLIER_REQUESTS_MAX": EARLIER_REQUESTS_MAX,
    "ACTING_ANEW": dict.fromkeys(sorted(ACTING_ANEW), True),
    "AGEING_MS_PER_DOUBLING": indexes.AGEING_MS_PER_DOUBLING,
    "HEAD_START_MS_MAX": indexes.HEAD_START_MS_MAX,
    "USUAL": layout.USUAL,
    "INDEX": _index_names(),
    "SIGNATURES": {name: signature.names for name, signature in SIGNATURES.items()},
    "PHASE": _named(LifecyclePhase),
    "CONTINUATION": _named(Continuation),
    "OUTCOME": _named(TerminalOutcome),
    "BLOCKING": _named(BlockingReason),
    "LEASE": _named(LeaseState),
    "ATTEMPT": _named(AttemptLifecycle),
    "ATTEMPT_TYPE_OF": ATTEMPT_TYPE_OF,
    "PUBLIC": _named(PublicState),
    "PUBLIC_OF_OUTCOME": PUBLIC_OF_OUTCOME,
    "FAMILY": _named(Family),
    "LOG": {family.value: f"log:{family}" for family in Family},
    "TOLD_IN": {family.value: f"told_in:{family}" for family in Family},
    "PAIR": {name: layout.name_of_pair(name) for name in _LEASE_DATA},
    "WAITPOINT": _named(WaitpointState),
    "EFFECT": _named(SignalEffect),
    "COUNT_KIND": _named(CountKind),
    "CONDITION": {
        name: str(node.__struct_config__.tag)
        for name, node in (
            ("SINGLE", Single),
            ("COMPOSITE", Composite),
            ("COUNT", Count),
            ("BY_NAME", ByName),
        )
    },
    "SOURCE_SEPARATOR": conditions.SOURCE_SEPARATOR,
    "SIGNAL_KEYS": SIGNAL_KEYS,
    "SCOPES_MAX": SCOPES_MAX,
    "ENDED_ATTEMPT": {outcome: state for outcome, (state, _) in ENDED.items()},
    "ENDED_STREAM": {outcome: reason for outcome, (_, reason) in ENDED.items()},
    "NEVER_RETRIED": dict.fromkeys(sorted(NEVER_RETRIED), True),
    "OWN_SCOPE": indexes.OWN_SCOPE,
    "BLOCKER": _named(BlockerKind),
    "BLOCKER_ORDER": BLOCKER_ORDER,
    "CHANGED": CHANGED,
    "DEPENDENCIES_UNRESOLVED": DEPENDENCIES_UNRESOLVED,
    "EDGE": {"PENDING": joins.PENDING, "SATISFIED": joins.SATISFIED, "IMPOSSIBLE": joins.IMPOSSIBLE},
    "EDGE_GROUP": _named(EdgeGroupState),
    "JOIN": {"ALL_OF": _tag(AllOfEdges), "QUORUM": _tag(QuorumOfEdges)},
    "LET_RUN": OnSatisfied.LET_RUN,
    "STREAM_SLACK_DIVISOR": SLACK_DIVISOR,
    "INSTANTS_PER_PIECE": INSTANTS_PER_PIECE,
}


_ESCAPES: Final = {code: f"\\{code:03d}" for code in (*range(0x20), ord('"'), ord("\\"))}
"""How Lua writes the characters that it could not read back as they are."""


def written() -> str:
    """All words as the beginning of a Lua program."""
    return "".join(f"local {name} = {_lua(value)}\n" for name, value in WORDS.items())


def _lua(value: Any) -> str:
    """A value as Lua writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return '"' + "".join(f"\\{code:03d}" for code in value) + '"'
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    if isinstance(value, tuple):
        return "{" + ", ".join(map(_lua, value)) + "}"
    pairs = ", ".join(f"[{_lua(str(name))}] = {_lua(part)}" for name, part in value.items())
    return f"{{{pairs}}}"
