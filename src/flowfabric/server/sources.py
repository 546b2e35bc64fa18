"""What can be followed live: the log of events, one attempt's frames, an execution, a flow.

A source is asked for the next messages and keeps its place, nothing else. It looks again when a
commit has woken it, so it tells of a change as soon as it is there.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.cursors import BEGINNING, StreamCursor
from flowfabric.contracts.events import (
    FROM_NOW,
    Family,
    TailEventsArgs,
    family_of,
)
from flowfabric.contracts.flows import DescribeFlowArgs, FlowSnapshot
from flowfabric.contracts.runs import ReadRunArgs, RunView
from flowfabric.contracts.streams import StreamFrame, TailFramesArgs
from flowfabric.contracts.wire import to_wire
from flowfabric.engine.notifier import EVENTS, execution_topic, feed_topic, flow_topic
from flowfabric.run import ENDED
from flowfabric.server.live import END, Message

if TYPE_CHECKING:
    from flowfabric.server.calls import Call

PAGE_ROWS: Final = 100
FRAME_ROWS: Final = 16
"""Frames may be large, and a client holds as many of them in our memory as one page has."""
ENDED_FLOWS: Final = frozenset({"completed", "failed", "cancelled"})


class EventSource:
    """The log of events, from a cursor on. It is never over."""

    def __init__(self, call: Call, asked: TailEventsArgs) -> None:
        self._call = call
        self._asked = replace(asked, limit=PAGE_ROWS)
        self.place = asked.after
        self.over = False

    async def look(self, block_ms: int) -> list[Message]:
        """The next events.

        Raises:
            InvalidEventCursor: the place is damaged, or of another store.
            EventsTrimmed: what follows it was removed before it was read.
        """
        page = await self._call.execute(replace(self._asked, after=self.place, block_ms=block_ms))
        self.place = page.next_cursor
        return [Message(family_of(event), event, event.cursor) for event in page.events]


class FrameSource:
    """The frames of one attempt. It is over when the attempt's stream is closed and read."""

    def __init__(self, call: Call, execution_id: str, attempt_index: int, after: StreamCursor) -> None:
        self._call = call
        self._execution_id = execution_id
        self._attempt_index = attempt_index
        self._after = after
        self.over = False

    @property
    def place(self) -> str:
        """The id of the last frame."""
        return self._after.value

    async def look(self, block_ms: int) -> list[Message]:
        """The next frames, or that there are no more.

        Raises:
            ExecutionNotFound: there is no such execution.
        """
        page = await self._call.execute(
            TailFramesArgs(
                execution_id=self._execution_id,
                attempt_index=self._attempt_index,
                after=self._after,
                block_ms=block_ms,
                count_limit=FRAME_ROWS,
            )
        )
        if page.frames:
            self._after = StreamCursor(page.frames[-1].id)
            return [_frame_message(frame, self._attempt_index, frame.id) for frame in page.frames]
        if page.is_closed:
            self.over = True
            closed = {"closed_at": page.closed_at, "closed_reason": page.closed_reason}
            return [Message("closed", closed, END)]
        return await self._if_it_never_ran()

    async def _if_it_never_ran(self) -> list[Message]:
        """An execution that ends before this attempt begins closes no stream."""
        view = await self._call.execute(ReadRunArgs(execution_id=self._execution_id))
        if view.public_state not in ENDED or self._attempt_index < view.total_attempt_count:
            return []
        self.over = True
        return [Message("closed", {"closed_at": view.completed_at, "closed_reason": None}, END)]


def _frame_message(frame: StreamFrame, attempt_index: int, place: str) -> Message:
    return Message("frame", {**to_wire(frame), "attempt_index": attempt_index}, place)


class ExecutionPlace:
    """A place in an execution's life: in the log, and in the frames of one of its attempts.

    >>> str(ExecutionPlace.parse("0200.1.1700-0"))
    '0200.1.1700-0'
    """

    _FORM: Final = re.compile(r"([0-9a-f]*|start)\.(\d{1,9})\.(\d{1,18}-\d{1,18})")

    def __init__(self, events: str, attempt_index: int = 0, frames: str = BEGINNING.value) -> None:
        self.events = events
        self.attempt_index = attempt_index
        self.frames = frames

    @classmethod
    def parse(cls, text: str) -> ExecutionPlace:
        """The place that a client sends back.

        Raises:
            InvalidEventCursor: it is none.
        """
        found = cls._FORM.fullmatch(text)
        if found is None:
            raise errors.InvalidEventCursor(
                field="cursor", value=repr(text[:64]), rule="a place that this stream has told"
            )
        return cls(found[1], int(found[2]), found[3])

    def __str__(self) -> str:
        return f"{self.events}.{self.attempt_index}.{self.frames}"


class ExecutionSource:
    """An execution's life: its state and progress, its events, and the frames of all its attempts.

    It is over when the execution has ended and everything that led there was told.
    """

    def __init__(
        self, call: Call, execution_id: str, place: ExecutionPlace, families: frozenset[Family]
    ) -> None:
        self._call = call
        self._execution_id = execution_id
        self._place = place
        self._families = families
        self._state: Any = None
        self._progress: Any = None
        self.over = False

    @property
    def place(self) -> str:
        """In the log and in the frames."""
        return str(self._place)

    async def look(self, block_ms: int) -> list[Message]:
        """What has changed, and what was written.

        Raises:
            ExecutionNotFound: there is no such execution.
            InvalidEventCursor, EventsTrimmed: see ``EventSource``.
        """
        with self._call.engine.notifier.subscribe(execution_topic(self._execution_id)) as changes:
            messages = await self._look_once()
            if not messages and not self.over and await changes.wait(block_ms):
                messages = await self._look_once()
            return messages

    async def _look_once(self) -> list[Message]:
        """The state is read first, so that an end is told after all that came before it."""
        view = await self._call.execute(ReadRunArgs(execution_id=self._execution_id))
        events = await self._events()
        frames = await self._frames(view)
        told = [*events, *frames]
        state, progress = _state_of(view), _progress_of(view)
        if progress != self._progress and progress is not None:
            told.append(Message("progress", progress, self.place))
        if state != self._state:
            told.append(Message("state", state, self.place))
        self._state, self._progress = state, progress
        if view.public_state in ENDED and not events and not frames:
            self.over = True
            told.append(Message("ended", state, END))
        return told

    async def _events(self) -> list[Message]:
        asked = TailEventsArgs(
            families=self._families,
            after=self._place.events,
            execution_id=self._execution_id,
            limit=PAGE_ROWS,
        )
        page = await self._call.execute(asked)
        messages = []
        for event in page.events:
            self._place.events = event.cursor
            messages.append(Message(family_of(event), event, self.place))
        self._place.events = page.next_cursor
        return messages

    async def _frames(self, view: RunView) -> list[Message]:
        """The next frames, of the next attempt if this one's stream is closed."""
        place = self._place
        while True:
            page = await self._call.execute(
                TailFramesArgs(
                    execution_id=self._execution_id,
                    attempt_index=place.attempt_index,
                    after=StreamCursor(place.frames),
                    count_limit=FRAME_ROWS,
                )
            )
            if page.frames or not page.is_closed or place.attempt_index + 1 >= view.total_attempt_count:
                break
            place.attempt_index, place.frames = place.attempt_index + 1, BEGINNING.value
        messages = []
        for frame in page.frames:
            place.frames = frame.id
            messages.append(_frame_message(frame, place.attempt_index, self.place))
        return messages


def _state_of(view: RunView) -> dict[str, Any]:
    return {
        "execution_id": view.execution_id,
        "public_state": view.public_state,
        "current_attempt_index": view.current_attempt_index,
        "total_attempt_count": view.total_attempt_count,
        "generation": view.generation,
        "failure_reason": view.failure_reason,
        "failure_category": view.failure_category,
        "cancellation_reason": view.cancellation_reason,
        "completed_at": view.completed_at,
    }


def _progress_of(view: RunView) -> dict[str, Any] | None:
    if view.progress_pct is None and view.progress_message is None:
        return None
    return {"progress_pct": view.progress_pct, "progress_message": view.progress_message}


class FlowSource:
    """A flow: its state, and the events of the flow and of its members.

    It is over when the flow has ended and everything that led there was told.
    """

    def __init__(self, call: Call, flow_id: str, asked: TailEventsArgs) -> None:
        self._call = call
        self._flow_id = flow_id
        self._asked = replace(asked, flow_id=flow_id, limit=PAGE_ROWS)
        self._state: Any = None
        self.place = asked.after
        self.over = False

    async def look(self, block_ms: int) -> list[Message]:
        """What has changed.

        Raises:
            FlowNotFound: there is no such flow.
            InvalidEventCursor, EventsTrimmed: see ``EventSource``.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + block_ms / 1_000
        with self._call.engine.notifier.subscribe(*self._topics()) as changes:
            while True:
                messages = await self._look_once()
                remaining_ms = (deadline - loop.time()) * 1_000
                if messages or self.over or remaining_ms <= 0:
                    return messages
                await changes.wait(remaining_ms)

    def _topics(self) -> list[str]:
        namespace = self._call.namespace
        feeds = (
            [EVENTS] if namespace is None else [feed_topic(one, namespace) for one in self._asked.families]
        )
        return [flow_topic(self._flow_id), *feeds]

    async def _look_once(self) -> list[Message]:
        if self.place == FROM_NOW:
            self.place = (await self._call.execute(self._asked)).next_cursor
        flow = await self._flow()
        page = await self._call.execute(replace(self._asked, after=self.place))
        told = [Message(family_of(event), event, event.cursor) for event in page.events]
        self.place = page.next_cursor
        state = _flow_state_of(flow)
        if state != self._state:
            told.append(Message("state", state, self.place))
        self._state = state
        if flow.public_flow_state in ENDED_FLOWS and not page.events:
            self.over = True
            told.append(Message("ended", state, END))
        return told

    async def _flow(self) -> FlowSnapshot:
        flow = await self._call.execute(DescribeFlowArgs(flow_id=self._flow_id))
        if flow is None:
            raise errors.FlowNotFound(flow_id=self._flow_id)
        return flow


def _flow_state_of(flow: FlowSnapshot) -> dict[str, Any]:
    return {
        "flow_id": flow.flow_id,
        "flow_kind": flow.flow_kind,
        "public_flow_state": flow.public_flow_state,
        "node_count": flow.node_count,
        "edge_count": flow.edge_count,
        "outcomes": flow.outcomes,
    }
