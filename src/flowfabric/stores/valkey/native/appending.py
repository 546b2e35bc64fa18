"""Appending frames on the server: see ``core.rules.streaming``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.contracts.limits import FRAME_BYTES_MAX
from flowfabric.contracts.streams import AppendFrameArgs, DurableMode, FrameAppended
from flowfabric.core.frames import DURABLE, encode_frame, entry_id, stream_key
from flowfabric.core.records import Execution, StreamMeta, key_for
from flowfabric.core.rules.streaming import frame_fields, stream_identity
from flowfabric.core.work import Frame
from flowfabric.stores.keys import stored_key
from flowfabric.stores.valkey.native.function import asked_list

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from flowfabric.core.records import Key
    from flowfabric.core.work import Remembered
    from flowfabric.stores.valkey.keys import Keys
    from flowfabric.stores.valkey.native.function import Argument, Asked, Effects

_encode: Final = msgspec.msgpack.Encoder().encode
_NO_TEXT, _NO_BYTES, _PAYLOAD = _encode(""), _encode(b""), _encode("payload")
_SOME: Final = 0
_OUTCOME_HEAD, _OUTCOME_TAIL = _encode(FrameAppended(entry_id="", frame_count=_SOME)).split(
    _NO_TEXT + _encode("frame_count") + _encode(_SOME)
)
"""How an outcome begins and ends. Only the server knows what is between."""


class AppendFrame:
    """Stands in for the rule of ``AppendFrameArgs``."""

    name: Final = "append_frame"
    command_type: Final = AppendFrameArgs
    serves: Final = (AppendFrameArgs,)

    def subject(self, asked: Asked) -> Key:
        return key_for(StreamMeta, stream_identity(asked.command.execution_id, asked.command.attempt_index))

    def owner(self, command: AppendFrameArgs) -> Key:
        return key_for(Execution, command.execution_id)

    def relied_on(self, asked: Asked) -> None:
        """Nothing but the execution and the stream themselves."""

    def sharing(self, asked: Asked, remembered: Remembered) -> Hashable | None:
        """The namespace. Frames that are not durable, or are too long, are left to the rule."""
        args: AppendFrameArgs = asked.command
        cap = FRAME_BYTES_MAX if args.max_payload_bytes is None else args.max_payload_bytes
        usual = isinstance(args.mode, DurableMode) and len(args.payload) <= cap
        return asked.namespace if usual else None

    def shared(self, first: Asked) -> Sequence[Argument]:
        return (_OUTCOME_HEAD, _OUTCOME_TAIL, type(first.command).__name__)

    def item(self, keys: Keys, asked: Asked) -> tuple[Sequence[str], Sequence[Argument]]:
        args: AppendFrameArgs = asked.command
        stream = self.subject(asked)
        frame_head, frame_tail = _frame_around_instant(args)
        return (
            keys.record(stream),
            keys.record(key_for(Execution, args.execution_id)),
            keys.frames(_frames_of(args)),
        ), (
            args.execution_id,
            args.lease_id,
            args.lease_epoch,
            args.attempt_id,
            args.attempt_index,
            asked_list(asked.envelope.request_id),
            stored_key(stream),
            "" if args.retention_maxlen is None else args.retention_maxlen,
            len(args.payload),
            "" if args.timestamp is None else args.timestamp,
            frame_head,
            frame_tail,
        )

    def answer(self, asked: Asked, reply: list[bytes], effects: Effects) -> FrameAppended:
        ms, sequence, count = map(int, reply)
        effects.frames.append(Frame(_frames_of(asked.command), ms, sequence, b""))
        return FrameAppended(entry_id=entry_id((ms, sequence)), frame_count=count)


def _frames_of(args: AppendFrameArgs) -> str:
    return stream_key(args.execution_id, args.attempt_index, DURABLE)


def _frame_around_instant(args: AppendFrameArgs) -> tuple[bytes, bytes]:
    """A frame as it is stored, in front of its instant and behind it. The server may know the instant."""
    empty = encode_frame("", (0, 0), frame_fields(args, ""), b"").data
    behind = _NO_TEXT + _PAYLOAD + _NO_BYTES
    assert empty.endswith(behind), "the instant is not the last of the fields"
    return empty.removesuffix(behind), _PAYLOAD + _encode(args.payload)
