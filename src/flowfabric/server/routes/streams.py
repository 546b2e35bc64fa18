"""Attempt streams: read a range of frames, or wait for the next ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric import errors
from flowfabric.contracts.cursors import StreamCursor
from flowfabric.contracts.limits import TAIL_BLOCK_MS_MAX, U32_MAX
from flowfabric.contracts.streams import ReadFramesArgs, StreamFrames, TailFramesArgs
from flowfabric.contracts.wire import to_wire
from flowfabric.server.access import Role
from flowfabric.server.calls import refused, unreadable, whole
from flowfabric.server.routes.executions import EXECUTION, execution_id_of
from flowfabric.server.routes.table import route, text, whole_number

if TYPE_CHECKING:
    from starlette.responses import Response

    from flowfabric.server.calls import Call

STREAM = f"{EXECUTION}/attempts/{{attempt_index}}/stream"
ROWS_MAX = 1_000


def attempt_index_of(call: Call) -> int:
    """The attempt that the path names.

    Raises:
        Refused: it is no attempt index.
    """
    index = whole(call.path("attempt_index"), U32_MAX)
    if index is None:
        raise unreadable("attempt index must be a whole number", call.route)
    return index


def cursor_of(call: Call, name: str, default: str) -> StreamCursor:
    """A place in a stream that the query names.

    Raises:
        Refused: it is no cursor.
    """
    try:
        return StreamCursor(value=call.query(name) or default)
    except errors.InvalidInput as error:
        raise refused(400, f"invalid {name}: {error.rule}") from error


def rows_of(call: Call, default: int) -> int:
    """How many frames are wanted.

    Raises:
        Refused: none, or too many.
    """
    limit = call.query_number("limit", default)
    if not 1 <= limit <= ROWS_MAX:
        raise refused(400, f"limit must be in 1..={ROWS_MAX}")
    return limit


@route(
    "GET",
    STREAM,
    Role.READ,
    statuses={200: StreamFrames},
    query={
        "from": text("the first frame, or start"),
        "to": text("the last frame, or end"),
        "limit": whole_number("how many frames", 1, ROWS_MAX),
    },
)
async def read_stream(call: Call) -> Response:
    """Read frames of an attempt."""
    command = ReadFramesArgs(
        execution_id=execution_id_of(call),
        attempt_index=attempt_index_of(call),
        from_id=cursor_of(call, "from", "start"),
        to_id=cursor_of(call, "to", "end"),
        count_limit=rows_of(call, 100),
    )
    with call.service.stream_permit(call.place.party):
        return _answer(call, await call.execute(command))


@route(
    "GET",
    f"{STREAM}/tail",
    Role.READ,
    statuses={200: StreamFrames},
    query={
        "after": text("the last frame that was seen"),
        "block_ms": whole_number("how long to wait for frames", 0, TAIL_BLOCK_MS_MAX),
        "limit": whole_number("how many frames", 1, ROWS_MAX),
    },
)
async def tail_stream(call: Call) -> Response:
    """Wait for the next frames of an attempt."""
    block_ms = call.query_number("block_ms", 0)
    if block_ms > TAIL_BLOCK_MS_MAX:
        raise refused(400, f"block_ms must be in 0..={TAIL_BLOCK_MS_MAX}")
    command = TailFramesArgs(
        execution_id=execution_id_of(call),
        attempt_index=attempt_index_of(call),
        after=cursor_of(call, "after", "0-0"),
        block_ms=block_ms,
        count_limit=rows_of(call, 50),
    )
    with call.service.stream_permit(call.place.party):
        return _answer(call, await call.wait_for(call.execute(command)))


def _answer(call: Call, found: StreamFrames) -> Response:
    """The frames, with how many they are."""
    return call.answer({**to_wire(found), "count": len(found.frames)})
