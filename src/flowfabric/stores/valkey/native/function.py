"""What a function on the server needs in order to stand in for a rule."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import msgspec

from flowfabric.core.events import Event
from flowfabric.core.layout import name_of_pair
from flowfabric.core.records import Execution, LastRequest, ReleasedLease, key_for
from flowfabric.core.work import Work, WorkingSet
from flowfabric.stores.valkey.native.members import Members

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.contracts.ids import LeaseFence
    from flowfabric.core.events import Family
    from flowfabric.core.indexes import IndexRow
    from flowfabric.core.records import Key, Record
    from flowfabric.core.work import Envelope, Frame, Remembered
    from flowfabric.stores.base import Change
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.members import Member

Argument = str | bytes | int


class Asked(msgspec.Struct, frozen=True, gc=False):
    """One command and what travels with it."""

    command: Any
    envelope: Envelope
    namespace: str = ""
    """The caller's namespace; for a caller without bounds that of what the command is about."""
    seen: Mapping[Key, tuple[int, Record | None]] = {}
    """Versions and records as they were right before the call, as far as it was looked."""
    members: Members = Members()
    """What is remembered of members of flows."""
    member: Member | None = None
    """What was remembered of the execution right before the call, if it is a member that was met."""
    place: int = 0
    """How many commands are before it in its call, where these have an order."""
    wanted: bytes = b""
    """What else a function has asked for, when it was asked first."""


class Effects(msgspec.Struct):
    """What a call has done, as far as others are woken by it or owe something for it."""

    now: int
    events: list[Event]
    rows: list[IndexRow]
    frames: list[Frame]
    """Where frames were appended. What is in them wakes nobody and is left out."""
    changes: list[Change]
    """Records besides the subjects that may have changed, with as much in them as wakes somebody."""

    def tell(self, asked: Asked, family: Family, name: str) -> None:
        """Note an event about the execution that a command names."""
        self.events.append(
            Event(
                family=family,
                name=name,
                namespace=asked.namespace,
                execution_id=asked.command.execution_id,
                at_ms=self.now,
            )
        )


class Function(Protocol):
    """How one kind of command is sent to the function that decides it, and what the replies mean."""

    @property
    def name(self) -> str:
        """The name under which it is registered."""

    @property
    def command_type(self) -> type[Command[Any]]:
        """The command that it decides."""

    @property
    def serves(self) -> tuple[type[Command[Any]], ...]:
        """The public operations that come down to it."""

    def subject(self, asked: Asked) -> Key:
        """The record that a command is about, as far as that is known from what was seen before the call."""

    def owner(self, command: Any) -> Key | None:
        """The record in whose namespace a caller without bounds acts; None if the command names one."""

    def relied_on(self, asked: Asked) -> Key | None:
        """The record on which all commands of a call rest, if the function's signature has one."""

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """What commands must have in common to go out in one call; None if the rule must decide."""

    def shared(self, first: Asked) -> Sequence[Argument]:
        """The arguments that all commands of a call have in common, in the signature's order."""

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        """The keys and arguments of one command, in the signature's order."""

    def answer(self, asked: Asked, reply: Any, effects: Effects) -> Any:
        """The outcome of a command that was carried out. Adds to the effects."""


class FurtherFunction(Function, Protocol):
    """A function that goes on where another one has asked for more keys."""

    def foreseen(self, member: Member) -> bytes:
        """What the other one is sure to ask for if a command is about this member."""


@runtime_checkable
class AlongEdges(Protocol):
    """A function that goes on along the edges that leave a member."""

    def edges(self, asked: Asked) -> int:
        """How many these are for one command."""


class OfLeaseHolder:
    """What the functions have in common whose commands come from whoever holds the lease of an execution."""

    def subject(self, asked: Asked) -> Key:
        return key_for(Execution, asked.command.execution_id)

    def owner(self, command: Any) -> Key | None:
        return key_for(Execution, command.execution_id)

    def relied_on(self, asked: Asked) -> Key | None:
        """Nothing but the execution itself."""
        return None

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The namespace. Whoever has no fence, be it for an operator's override, is left to the rule."""
        return asked.namespace if asked.command.fence is not None else None


_encode: Final = msgspec.msgpack.Encoder().encode
_LAST_REQUEST: Final = name_of_pair("last_request")
_RELEASED: Final = name_of_pair("released")
_LIST_OF_3: Final = b"\x93"
_NO_BYTES: Final = _encode(b"")
_ZERO: Final = b"\x00"
_LENGTH: Final = struct.Struct(">I")


def seen_by(asked: Asked, *keys: Key) -> Work:
    """What a rule sees of records that were read before the call.

    It is at an instant before every expiry: the server tells the time.
    """
    working_set = WorkingSet()
    working_set.put_loaded(0, [(key, *asked.seen[key]) for key in keys])
    return Work(working_set, asked.envelope)


def asked_pair(request_id: str) -> bytes:
    """How the last request begins if it was this one."""
    return _LAST_REQUEST + asked_list(request_id)


def asked_list(request_id: str) -> bytes:
    """How what is remembered of a request begins."""
    return _LIST_OF_3 + _encode(request_id)


def last_request_pair(asked: Asked, outcome: bytes) -> bytes:
    """The last request as a part of an execution."""
    request = LastRequest(asked.envelope.request_id, outcome, type(asked.command).__name__)
    return _LAST_REQUEST + _encode(request)


def released_pair(asked: Asked, fence: LeaseFence, outcome: bytes) -> bytes:
    """The fence that was given up as a part of an execution."""
    released = ReleasedLease(
        lease_id=fence.lease_id,
        epoch=fence.lease_epoch,
        attempt_id=fence.attempt_id,
        operation=type(asked.command).__name__,
        outcome=outcome,
    )
    return _RELEASED + _encode(released)


def released_head(asked: Asked, fence: LeaseFence) -> bytes:
    """How the fence that was given up begins, up to the outcome, if only the server knows that."""
    pair = released_pair(asked, fence, b"")
    assert pair.endswith(_NO_BYTES), "the outcome is not the last of what is kept"
    return pair.removesuffix(_NO_BYTES)


def without_zero(encoded: bytes) -> bytes:
    """What ends with the number 0, without it: in its place comes what only the server knows."""
    assert encoded.endswith(_ZERO), "it does not end with the number that the server knows"
    return encoded.removesuffix(_ZERO)


def packed_list(parts: Iterable[bytes]) -> bytes:
    """A list whose length a signature does not say, as one argument: each part behind its length."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)
