"""Receiving signals on the server: see ``core.rules.signalling``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric import errors
from flowfabric.contracts.signals import DeliverSignalArgs, SignalAccepted, SignalEffect
from flowfabric.contracts.states import WaitpointState
from flowfabric.core.events import Family
from flowfabric.core.indexes import DUE_DEDUP, DUE_DELAY, ELIGIBLE, claim_order, eligible_scope
from flowfabric.core.records import (
    KEYRING_ID,
    Dedup,
    Execution,
    Keyring,
    Signal,
    Suspension,
    Waitpoint,
    encode_record,
    key_for,
)
from flowfabric.core.rules.signalling import (
    BY_SIGNAL,
    incoming_of,
    key_window_ms,
    received_by_id,
    received_by_key,
    signal_cap,
    signal_of,
)
from flowfabric.core.rules.suspending import RESUMED
from flowfabric.core.tokens import check_token, find_key, mac_digest
from flowfabric.stores.keys import SEPARATOR, stored_key
from flowfabric.stores.valkey.native.function import asked_pair, without_zero
from flowfabric.stores.valkey.native.signatures import SIGNAL_KEYS

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from flowfabric.contracts.ids import SignalId
    from flowfabric.core.indexes import IndexRow
    from flowfabric.core.records import AnyRecord, Key
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

_encode: Final = msgspec.msgpack.Encoder().encode
_KEYRING: Final = key_for(Keyring, KEYRING_ID)
_BEFORE_ALL: Final = 0
"""An instant before every expiry: the server tells the time."""
_KNOWN: Final = {
    field.name: field.default
    for field in msgspec.structs.fields(Signal)
    if field.name not in {"sequence", "accepted_at", "effect", "last_request", "earlier_requests"}
}
"""The fields of a signal that are known before the call, and what is left out where it is usual."""
_SOME: Final = SignalEffect.NO_OP


class DeliverSignal:
    """Stands in for the rule of ``DeliverSignalArgs``.

    The token is checked here, against what was read right before the call. What that rests on is compared
    by the function: the version of the key ring, and what the waitpoint keeps of its token.
    """

    name: Final = "deliver_signal"
    command_type: Final = DeliverSignalArgs
    serves: Final = (DeliverSignalArgs,)

    def subject(self, asked: Asked) -> Key:
        return key_for(Execution, asked.command.execution_id)

    def owner(self, command: DeliverSignalArgs) -> Key:
        return key_for(Execution, command.execution_id)

    def relied_on(self, asked: Asked) -> Key:
        """The key ring."""
        return _KEYRING

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The execution. What no suspension waits for, and whoever may not signal, is left to the rule."""
        args: DeliverSignalArgs = asked.command
        waitpoint = self._waitpoint(asked)
        if (
            waitpoint is None
            or self._execution(asked) is None
            or waitpoint.state != WaitpointState.ACTIVE
            or waitpoint.suspension_id is None
        ):
            return None
        try:
            check_token(
                self._keyring(asked),
                asked.namespace,
                waitpoint,
                args.waitpoint_token,
                _BEFORE_ALL,
            )
        except errors.FlowFabricError:
            return None
        return asked.namespace, args.execution_id

    def shared(self, first: Asked) -> Sequence[Argument]:
        args: DeliverSignalArgs = first.command
        listed_head, separator, listed_tail = stored_key(_signals_of(args)).partition(SEPARATOR)
        return (
            self._first_sequence(first),
            listed_head,
            separator + listed_tail,
            RESUMED,
            BY_SIGNAL,
            type(args).__name__,
        )

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: DeliverSignalArgs = asked.command
        execution, waitpoint = self._execution(asked), self._waitpoint(asked)
        assert execution is not None
        assert waitpoint is not None
        assert waitpoint.suspension_id is not None
        incoming = incoming_of(args)
        by_id, by_key = received_by_id(waitpoint, incoming), received_by_key(waitpoint, incoming, 0)
        signals = keys.record(_signals_of(args))
        first = self._first_sequence(asked) + asked.place * SIGNAL_KEYS
        return (
            keys.record(self.subject(asked)),
            keys.told(args.execution_id),
            keys.record(waitpoint.key),
            keys.record(key_for(Suspension, f"{args.execution_id}/{waitpoint.suspension_id}")),
            keys.record(by_id.key),
            keys.record((by_key or by_id).key),
            *(f"{signals}{sequence}" for sequence in range(first, first + SIGNAL_KEYS)),
        ), (
            args.execution_id,
            args.waitpoint_id,
            waitpoint.suspension_id,
            args.waitpoint_token.kid,
            mac_digest(args.waitpoint_token.mac),
            self._token_until(asked),
            signal_cap(execution, args.max_signals_per_execution),
            "" if args.resume_delay_ms is None else args.resume_delay_ms,
            asked_pair(asked.envelope.request_id),
            _accepted_head(args.signal_id),
            args.signal_id,
            args.signal_name,
            args.source_type,
            args.source_identity,
            signals,
            _known_of(signal_of(waitpoint, incoming, sequence=0, accepted_at=0, effect=_SOME)),
            encode_record(by_id),
            by_id.identity,
            stored_key(by_id.key),
            *_remembered_by_key(by_key, key_window_ms(incoming)),
        )

    def answer(self, asked: Asked, reply: list[bytes], effects: Effects) -> SignalAccepted:
        args: DeliverSignalArgs = asked.command
        effect, from_ms = reply
        outcome = SignalAccepted(signal_id=args.signal_id, effect=SignalEffect(effect.decode()))
        effects.tell(asked, Family.SIGNAL, "delivered")
        if outcome.effect is SignalEffect.RESUME_CONDITION_SATISFIED:
            effects.tell(asked, Family.EXECUTION, "resumed")
            effects.rows.append(self._runnable_row(asked, int(from_ms), effects.now))
        incoming, waitpoint = incoming_of(args), self._waitpoint(asked)
        assert waitpoint is not None
        by_key = received_by_key(waitpoint, incoming, effects.now)
        if by_key is not None:
            effects.rows.append((DUE_DEDUP, "", by_key.expires_at, by_key.identity))
        return outcome

    def _runnable_row(self, asked: Asked, from_ms: int, now: int) -> IndexRow:
        """Where the execution is found by workers, or by who lets it go when its delay is over."""
        execution = self._execution(asked)
        assert execution is not None
        if from_ms > now:
            return DUE_DELAY, "", from_ms, execution.execution_id
        order = claim_order(execution.priority, now, returns=True)
        return ELIGIBLE, eligible_scope(execution), order, execution.execution_id

    # What was seen before the call

    def _execution(self, asked: Asked) -> Execution | None:
        return _seen(asked, Execution, self.subject(asked))

    def _waitpoint(self, asked: Asked) -> Waitpoint | None:
        args: DeliverSignalArgs = asked.command
        return _seen(asked, Waitpoint, key_for(Waitpoint, f"{args.execution_id}/{args.waitpoint_id}"))

    def _keyring(self, asked: Asked) -> Keyring | None:
        return _seen(asked, Keyring, _KEYRING)

    def _first_sequence(self, asked: Asked) -> int:
        """The number of the next signal, if none has come since."""
        execution = self._execution(asked)
        assert execution is not None
        return execution.signal_count + 1

    def _token_until(self, asked: Asked) -> Argument:
        """When the key of the token is past its grace; '' if that is not known yet."""
        args: DeliverSignalArgs = asked.command
        key = find_key(self._keyring(asked), args.waitpoint_token.kid)
        assert key is not None, "its token would not have been taken"
        return "" if key.expires_at is None else key.expires_at


def _seen(asked: Asked, record_type: type[AnyRecord], key: Key) -> AnyRecord | None:
    _, record = asked.seen.get(key, (0, None))
    assert record is None or isinstance(record, record_type)
    return record


def _signals_of(args: DeliverSignalArgs) -> Key:
    """How the keys of all signals of an execution begin, before their numbers."""
    return key_for(Signal, f"{args.execution_id}/")


def _accepted_head(signal_id: SignalId) -> bytes:
    """How the outcome begins, before the effect, which only the server knows."""
    return _encode(SignalAccepted(signal_id=signal_id, effect=_SOME)).removesuffix(_encode(_SOME))


def _known_of(signal: Signal) -> bytes:
    """A signal as it is stored, but for what only the server knows."""
    return _encode(
        {name: value for name, usual in _KNOWN.items() if (value := getattr(signal, name)) is not usual}
    )


def _remembered_by_key(received: Dedup | None, window_ms: int) -> tuple[Argument, ...]:
    """What is remembered by the sender's key, if there is one. It expires when the window is over."""
    if received is None:
        return "", "", "", ""
    packed = without_zero(encode_record(msgspec.structs.replace(received, expires_at=0)))
    return packed, received.identity, stored_key(received.key), window_ms
