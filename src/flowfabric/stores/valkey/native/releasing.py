"""Taking admissions back on the server: see ``core.rules.quotas``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric import errors
from flowfabric.contracts.quotas import AdmissionReleased, ReleaseAdmissionArgs
from flowfabric.core.commands import AdmissionSettled, GiveAdmissionBackArgs
from flowfabric.core.indexes import DUE_HEADROOM
from flowfabric.core.records import (
    Admission,
    GivenBack,
    QuotaPolicy,
    admission_identity,
    key_for,
    quota_identity,
)
from flowfabric.core.registry import execution_subject
from flowfabric.core.rules.quotas import execution_under, quota_subject
from flowfabric.stores.base import Change
from flowfabric.stores.keys import stored_key
from flowfabric.stores.valkey.native.function import asked_list, seen_by

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from flowfabric.contracts.base import Command
    from flowfabric.core.records import Key
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

_NAME: Final = "release_admission"
_encode: Final = msgspec.msgpack.Encoder().encode


class ReleaseAdmission:
    """Stands in for the rule of ``ReleaseAdmissionArgs``."""

    name: Final = _NAME
    command_type: Final = ReleaseAdmissionArgs
    serves: Final[tuple[type[Command[Any]], ...]] = (ReleaseAdmissionArgs,)

    def subject(self, asked: Asked) -> Key:
        return quota_subject(asked.command)

    def owner(self, command: ReleaseAdmissionArgs) -> Key:
        return quota_subject(command)

    def relied_on(self, asked: Asked) -> None:
        """Nothing but the quota policy and the admission themselves."""

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The quota policy. What the caller may not see is refused by the rule."""
        _, quota = asked.seen.get(self.subject(asked), (0, None))
        if not isinstance(quota, QuotaPolicy) or quota.namespace != asked.namespace:
            return None
        try:
            work = seen_by(asked, execution_subject(asked.command))
            execution_under(work, quota, asked.command.execution_id, observed=True)
        except errors.FlowFabricError:
            return None
        return self.command_type, quota.quota_policy_id

    def shared(self, first: Asked) -> Sequence[Argument]:
        released = _encode(AdmissionReleased())
        return self.subject(first), released, released, type(first.command).__name__

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: ReleaseAdmissionArgs = asked.command
        identity = admission_identity(args.quota_policy_id, args.execution_id)
        item_keys, names = _admission(keys, self.subject(asked), identity)
        return item_keys, (asked_list(asked.envelope.request_id), "", *names)

    def answer(self, asked: Asked, reply: list[bytes], effects: Effects) -> AdmissionReleased:
        args: ReleaseAdmissionArgs = asked.command
        identity = admission_identity(args.quota_policy_id, args.execution_id)
        _note(effects, self.subject(asked), identity, reply)
        return AdmissionReleased()


class GiveAdmissionBack:
    """Stands in for the rule of ``GiveAdmissionBackArgs``.

    The message is in the partition of the execution, and says which quota policy it is for. It is read
    right before the call, as the rule does, which does not rest on it either.
    """

    name: Final = _NAME
    command_type: Final = GiveAdmissionBackArgs
    serves: Final[tuple[type[Command[Any]], ...]] = ()

    def subject(self, asked: Asked) -> Key:
        """The quota policy; the message itself if there is none any more."""
        message = _message(asked)
        if message is None:
            return _message_key(asked.command)
        return key_for(QuotaPolicy, quota_identity(message.quota_policy_id))

    def owner(self, command: GiveAdmissionBackArgs) -> Key:
        return _message_key(command)

    def relied_on(self, asked: Asked) -> None:
        """Nothing but the quota policy and the admission themselves."""

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The quota policy. That there is no message is told by the rule."""
        message = _message(asked)
        return None if message is None else (self.command_type, message.quota_policy_id)

    def shared(self, first: Asked) -> Sequence[Argument]:
        outcomes = (AdmissionSettled(action=action) for action in ("released", "kept"))
        return self.subject(first), *map(_encode, outcomes), type(first.command).__name__

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        message = _message(asked)
        assert message is not None
        identity = admission_identity(message.quota_policy_id, message.execution_id)
        item_keys, names = _admission(keys, self.subject(asked), identity)
        return item_keys, ("", message.round, *names)

    def answer(self, asked: Asked, reply: list[bytes], effects: Effects) -> AdmissionSettled:
        message = _message(asked)
        assert message is not None
        identity = admission_identity(message.quota_policy_id, message.execution_id)
        _note(effects, self.subject(asked), identity, reply)
        return msgspec.msgpack.decode(reply[0], type=AdmissionSettled)


def _message_key(command: GiveAdmissionBackArgs) -> Key:
    return key_for(GivenBack, command.given_back_id)


def _message(asked: Asked) -> GivenBack | None:
    """The message as it was seen before the call."""
    _, message = asked.seen.get(_message_key(asked.command), (0, None))
    assert message is None or isinstance(message, GivenBack)
    return message


def _admission(keys: Keys, quota: Key, identity: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The keys of a quota policy and of an admission, and the names of the latter in sets."""
    admission = key_for(Admission, identity)
    return (keys.record(quota), keys.record(admission)), (identity, stored_key(admission))


def _note(effects: Effects, quota: Key, identity: str, reply: list[bytes]) -> None:
    """What may have changed, and who is looked after."""
    _, waking_at = reply
    effects.changes += [Change(quota, 0, None), Change(key_for(Admission, identity), 0, None)]
    if waking_at:
        effects.rows.append((DUE_HEADROOM, "", int(waking_at), quota))
