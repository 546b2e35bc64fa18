"""Flows as documents: members by their names, and what each comes after.

```json
{"kind": "order",
 "members": {"charge": {"kind": "charge_card", "input": 7},
             "ship": {"kind": "ship", "after": "charge"}}}
```

``after`` is a name, a list of names that all have to succeed, ``{"any_of": [...]}``, or
``{"quorum": 2, "of": [...]}``. The command line reads such documents from files, the server from
requests.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from flowfabric.contracts.durations import parse_duration_ms
from flowfabric.contracts.limits import EDGES_PER_REQUEST_MAX, MEMBERS_PER_REQUEST_MAX
from flowfabric.flows import Flow, Join, Member, all_of, any_of, quorum
from flowfabric.submissions import SubmitOptions

if TYPE_CHECKING:
    from collections.abc import Iterator


class JoinDocument(msgspec.Struct, forbid_unknown_fields=True):
    """``{"any_of": ["a", "b"]}`` or ``{"quorum": 2, "of": ["a", "b", "c"]}``."""

    any_of: list[str] = msgspec.field(default_factory=list)
    quorum: int = 0
    of: list[str] = msgspec.field(default_factory=list)
    cancel_remaining: bool = True


class MemberDocument(msgspec.Struct, forbid_unknown_fields=True):
    """One member: its kind, its input, and what it comes after."""

    kind: str
    input: Any = None
    after: str | list[str] | JoinDocument = msgspec.field(default_factory=list)
    lane: str | None = None
    priority: int | None = None
    delay: str | None = None
    tags: dict[str, str] | None = None

    @property
    def upstreams(self) -> list[str]:
        """The names of the members that it comes after."""
        if isinstance(self.after, JoinDocument):
            return self.after.any_of or self.after.of
        return [self.after] if isinstance(self.after, str) else self.after


class FlowDocument(msgspec.Struct, forbid_unknown_fields=True):
    """A flow: its kind, and its members by name in any order."""

    kind: str
    members: dict[str, MemberDocument]


def read_flow(data: bytes, creator: str) -> Flow:
    """The flow that a JSON document describes.

    Args:
        data: the document.
        creator: who submits its members, for the record.

    Raises:
        ValueError: it describes none; the message says what is wrong with it.
    """
    return build_flow(msgspec.json.decode(data, type=FlowDocument), creator)


def build_flow(document: FlowDocument, creator: str) -> Flow:
    """The flow that a document describes.

    Raises:
        ValueError: a member comes after itself, or after one that is not there; or there are more members
            or edges than one request may bring.
    """
    _require_bounded(document)
    flow = Flow(document.kind)
    for name in _in_order(document.members):
        member = document.members[name]
        options = _options(member, creator)
        flow.add(member.kind, member.input, after=_join(member, flow.members), name=name, **options)
    return flow


def _require_bounded(document: FlowDocument) -> None:
    """Refuse what no request may bring, before any work is done for it."""
    if len(document.members) > MEMBERS_PER_REQUEST_MAX:
        raise ValueError(f"a flow has at most {MEMBERS_PER_REQUEST_MAX:,} members in one document")
    if sum(len(member.upstreams) for member in document.members.values()) > EDGES_PER_REQUEST_MAX:
        raise ValueError(f"a flow has at most {EDGES_PER_REQUEST_MAX:,} edges in one document")


def _in_order(members: dict[str, MemberDocument]) -> Iterator[str]:
    """The names of all members, upstreams first. It takes as many steps as there are members and edges."""
    unmet = {name: len(set(member.upstreams)) for name, member in members.items()}
    downstreams: dict[str, list[str]] = {}
    for name, member in members.items():
        for upstream in set(member.upstreams):
            downstreams.setdefault(upstream, []).append(name)
    ready = deque(name for name, count in unmet.items() if not count)
    while ready:
        found = ready.popleft()
        del unmet[found]
        yield found
        for name in downstreams.get(found, ()):
            unmet[name] -= 1
            if not unmet[name]:
                ready.append(name)
    if unmet:
        raise ValueError(f"member {min(unmet)!r} comes after itself, or after one that is not there")


def _join(member: MemberDocument, members: dict[str, Member[Any]]) -> Join:
    upstreams = [members[name] for name in member.upstreams]
    after = member.after
    if not isinstance(after, JoinDocument):
        return all_of(*upstreams)
    if bool(after.any_of) == bool(after.quorum and after.of):
        raise ValueError('\'after\' is a name, a list of names, {"any_of": …} or {"quorum": k, "of": …}')
    if after.any_of:
        return any_of(*upstreams, cancel_remaining=after.cancel_remaining)
    return quorum(after.quorum, upstreams, cancel_remaining=after.cancel_remaining)


def _options(member: MemberDocument, creator: str) -> SubmitOptions:
    delay = None if member.delay is None else parse_duration_ms(member.delay) / 1_000
    return SubmitOptions(
        lane=member.lane, priority=member.priority, delay=delay, tags=member.tags, creator=creator
    )
