"""Admitting claims under quota policies on the server: see ``core.rules.quotas``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric import errors
from flowfabric.contracts.quotas import (
    AdmissionConcurrencyExceeded,
    AdmissionGranted,
    AdmissionRateExceeded,
    AlreadyAdmitted,
    CheckAdmissionArgs,
    CheckAdmissionResult,
)
from flowfabric.core.indexes import DUE_ADMISSION, DUE_HEADROOM
from flowfabric.core.records import Admission, QuotaPolicy, QuotaWindow, encode_record
from flowfabric.core.registry import execution_subject
from flowfabric.core.rules.quotas import (
    ADMISSION_GRACE_MS,
    INSTANTS_PER_PIECE,
    quota_subject,
    round_to_admit,
)
from flowfabric.stores.base import Change
from flowfabric.stores.keys import stored_key
from flowfabric.stores.valkey.native.function import asked_list, seen_by, without_zero

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from flowfabric.core.records import Key
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

_encode: Final = msgspec.msgpack.Encoder().encode
_DECODER: Final[msgspec.msgpack.Decoder[CheckAdmissionResult]] = msgspec.msgpack.Decoder(CheckAdmissionResult)
_SETTLED_AT_ZERO: Final = b"\x00" + _encode("settle_at")
"""How an admission ends whose instants are 0, without the last of them."""


class CheckAdmission:
    """Stands in for the rule of ``CheckAdmissionArgs``.

    The quota policy's partition has the counters, the ring of instants and the admissions. The execution
    lives in another one, so it is looked at right before the call. If both are in one shard, the function
    makes sure that nothing has become of it since.
    """

    name: Final = "check_admission_and_record"
    command_type: Final = CheckAdmissionArgs
    serves: Final = (CheckAdmissionArgs,)

    def subject(self, asked: Asked) -> Key:
        return quota_subject(asked.command)

    def owner(self, command: CheckAdmissionArgs) -> Key:
        return quota_subject(command)

    def relied_on(self, asked: Asked) -> None:
        """Nothing that all commands have in common but the quota policy itself."""

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The quota policy. The rule refuses who cannot be admitted at all, or believes in other limits."""
        args: CheckAdmissionArgs = asked.command
        quota = _quota(asked)
        names_limits = (args.window_seconds, args.rate_limit, args.concurrency_cap) != (None, None, None)
        if quota is None or quota.namespace != asked.namespace or names_limits or _round(asked) is None:
            return None
        return quota.quota_policy_id

    def shared(self, first: Asked) -> Sequence[Argument]:
        quota = _quota(first)
        assert quota is not None
        return (
            quota.key,
            *_piece_arguments(quota, ahead=0),
            *_piece_arguments(quota, ahead=1),
            ADMISSION_GRACE_MS,
            _encode(AdmissionGranted()),
            _encode(AlreadyAdmitted()),
            without_zero(_encode(AdmissionRateExceeded(retry_after_ms=0))),
            _encode(AdmissionConcurrencyExceeded()),
            type(first.command).__name__,
        )

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: CheckAdmissionArgs = asked.command
        quota, claim_round = _quota(asked), _round(asked)
        assert quota is not None
        assert claim_round is not None
        admission = _admission(asked, claim_round)
        execution_key = execution_subject(args)
        is_here = keys.has(execution_key)
        version, _ = asked.seen[execution_key]
        return (
            keys.record(quota.key),
            keys.record(admission.key),
            keys.record(execution_key) if is_here else keys.state,
            keys.record(_window(quota, ahead=0).key),
            keys.record(_window(quota, ahead=1).key),
        ), (
            asked_list(asked.envelope.request_id),
            version if is_here else "",
            claim_round,
            round(asked.envelope.random * (args.jitter_ms or 0)),
            without_zero(encode_record(admission)).removesuffix(_SETTLED_AT_ZERO),
            admission.identity,
            stored_key(admission.key),
        )

    def answer(self, asked: Asked, reply: list[bytes], effects: Effects) -> CheckAdmissionResult:
        outcome, waking_at = reply
        answer = _DECODER.decode(outcome)
        if isinstance(answer, AdmissionGranted):
            admission = _admission(asked, 0)
            effects.changes.append(Change(admission.key, 0, None))
            effects.rows.append((DUE_ADMISSION, "", effects.now + ADMISSION_GRACE_MS, admission.identity))
        elif waking_at:
            effects.rows.append((DUE_HEADROOM, "", int(waking_at), quota_subject(asked.command)))
        return answer


def _quota(asked: Asked) -> QuotaPolicy | None:
    """The quota policy as it was seen before the call."""
    _, quota = asked.seen.get(quota_subject(asked.command), (0, None))
    assert quota is None or isinstance(quota, QuotaPolicy)
    return quota


def _round(asked: Asked) -> int | None:
    """Which claim the admission is for; None if there is none that it could be for."""
    quota = _quota(asked)
    assert quota is not None
    try:
        work = seen_by(asked, execution_subject(asked.command))
        return round_to_admit(work, quota, asked.command.execution_id)
    except errors.FlowFabricError:
        return None


def _admission(asked: Asked, claim_round: int) -> Admission:
    args: CheckAdmissionArgs = asked.command
    return Admission(
        quota_policy_id=args.quota_policy_id,
        namespace=asked.namespace,
        admitted_id=args.execution_id,
        round=claim_round,
        admitted_at=0,
        settle_at=0,
    )


def _window(quota: QuotaPolicy, *, ahead: int) -> QuotaWindow:
    """A new piece of the ring, where the next admission belongs or ``ahead`` pieces behind it."""
    pieces = max(1, -(-quota.requests_max // INSTANTS_PER_PIECE))
    place = quota.admitted % quota.requests_max if quota.requests_max else 0
    piece = (place // INSTANTS_PER_PIECE + ahead) % pieces
    return QuotaWindow(quota_policy_id=quota.quota_policy_id, namespace=quota.namespace, piece=piece)


def _piece_arguments(quota: QuotaPolicy, *, ahead: int) -> tuple[Argument, ...]:
    window = _window(quota, ahead=ahead)
    return window.piece, encode_record(window), stored_key(window.key)
