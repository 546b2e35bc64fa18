"""The way of events into the log, where a store has several shards.

A commit reaches one shard only, so it puts its events into the outbox there, together with everything
else. From there they are carried into the one log, in the home shard, which numbers them without gaps.
Whoever commits sees to it at once; what a crash left is found by the next look at that outbox.

What a process has committed comes into the log in that order, whichever shards it is in: who does one
thing after the other reads of them so. Only what a server that cannot be reached holds comes later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from flowfabric import errors
from flowfabric.stores.valkey.confirming import require_confirmed, waiting
from flowfabric.stores.valkey.records import entry_number, log_call
from flowfabric.stores.valkey.telling import teller

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flowfabric.stores.valkey.client import Client
    from flowfabric.stores.valkey.keys import Keys, Shards
    from flowfabric.stores.valkey.records import Entry

CARRIED_AT_ONCE: Final = 500
"""How many events of an outbox are read, and how many events one call puts into the log."""

_logger = logging.getLogger("flowfabric.stores")


class Noted(NamedTuple):
    """A commit whose events are in an outbox."""

    keys: Keys
    last: int
    """The number of the last of them there."""


class Outbox(NamedTuple):
    """What was read of an outbox."""

    entries: deque[Entry]
    is_whole: bool
    """Whether this is all that it has."""


class Outboxes:
    """Carries events from the outboxes into the log.

    Args:
        client: the way to the shards.
        shards: the shards of the store.
        origin: who tells others that the log has grown.
    """

    def __init__(self, client: Client, shards: Shards, origin: str) -> None:
        self._client = client
        self._shards = shards
        self._origin = origin
        self._noted: list[Noted] = []
        self._doubtful: dict[int, Keys] = {}
        """The outboxes in which there may be more than this process knows of."""
        self._carrying: asyncio.Task[None] | None = None
        self._rounds = 0
        """How many rounds were begun."""
        self._settling: list[tuple[int, asyncio.Future[None]]] = []
        """Who waits until a round with this number or a later one has left nothing."""
        self._failing = False
        """The last attempt has failed, and it was said."""

    def note(self, keys: Keys, last: int) -> None:
        """Carry what a commit has put into an outbox.

        Args:
            keys: the shard.
            last: the number of the last event there, after the commit.
        """
        if len(self._shards.all) > 1:
            self._noted.append(Noted(keys, last))
            self._start()

    def doubt(self, keys: Iterable[Keys]) -> None:
        """Look into these outboxes, in which anybody may have left something."""
        if len(self._shards.all) > 1:
            self._doubtful.update({one.shard: one for one in keys})
            self._start()

    def _start(self) -> None:
        # Between its end and the callback that tells of it, a task carries nothing any more.
        if self._carrying is None or self._carrying.done():
            self._carrying = asyncio.create_task(self._carry_all(), name="flowfabric outboxes")
            self._carrying.add_done_callback(self._carried)

    async def settle(self) -> None:
        """Wait until everything that was noted by now is in the log.

        Raises:
            StoreError: it could not be carried there. It stays where it is.
        """
        waits = bool(self._noted or self._doubtful)
        if waits:
            self._start()
        if self._carrying is None or self._carrying.done():
            return
        settled = asyncio.get_running_loop().create_future()
        self._settling.append((self._rounds + waits, settled))
        await settled

    def _end_settling(self, number: int | None, fault: BaseException | None = None) -> None:
        """Let go whoever waits for this round or one before; everybody if there is no further one."""
        waiting, self._settling = self._settling, []
        for wanted, settled in waiting:
            if number is not None and number < wanted:
                self._settling.append((wanted, settled))
            elif not settled.done():
                _end(settled, fault)

    async def close(self) -> None:
        """Finish what is under way, as far as the store can be reached."""
        try:
            await self.settle()
        except errors.StoreError:
            pass  # the events are safe where they are, and the next process carries them
        finally:
            if self._carrying is not None:
                self._carrying.cancel()

    async def _carry_all(self) -> None:
        while self._noted or self._doubtful:
            await self._carry_round()

    async def _carry_round(self) -> None:
        """Carry what is noted by now, as far as one read of each outbox reaches.

        What a fault or the end of a page has left stays noted. An outbox that cannot be reached holds up
        nobody else.
        """
        self._rounds += 1
        number = self._rounds
        noted, self._noted = self._noted, []
        doubtful, self._doubtful = self._doubtful, {}
        try:
            outboxes, faults = await self._read({one.keys.shard: one.keys for one in noted} | doubtful)
            carried, left = in_order(noted, outboxes)
            # What was committed meanwhile is carried by the next round, with all that is before it.
            postponed = doubtful.keys() & {one.keys.shard for one in self._noted}
            looked_into = set[int]() if left else doubtful.keys() & outboxes.keys() - postponed
            carried += [(shard, entry) for shard in looked_into for entry in outboxes[shard].entries]
            await self._log(carried)
        except BaseException:
            self._noted[:0] = noted
            self._doubtful |= doubtful
            raise
        done = postponed | {shard for shard in looked_into if outboxes[shard].is_whole}
        still_doubtful = {shard: keys for shard, keys in doubtful.items() if shard not in done}
        has_more = bool(self._noted or self._doubtful)
        self._noted[:0] = left
        self._doubtful |= still_doubtful
        if faults and not has_more:
            raise faults[0]
        if faults:
            self._end_settling(number, faults[0])
        elif not left and not still_doubtful and not postponed:
            self._end_settling(number)

    async def _read(self, wanted: dict[int, Keys]) -> tuple[dict[int, Outbox], list[BaseException]]:
        """The beginnings of outboxes, without those that cannot be reached, and why they cannot."""
        reads = [
            self._client.read(keys.slot, ("XRANGE", keys.outbox, "-", "+", "COUNT", CARRIED_AT_ONCE))
            for keys in wanted.values()
        ]
        answers = await asyncio.gather(*reads, return_exceptions=True)
        found = {
            shard: Outbox(deque(answer[0]), len(answer[0]) < CARRIED_AT_ONCE)
            for shard, answer in zip(wanted, answers, strict=True)
            if not isinstance(answer, BaseException)
        }
        return found, [answer for answer in answers if isinstance(answer, BaseException)]

    async def _log(self, carried: list[tuple[int, Entry]]) -> None:
        """Put events into the log, and remove from the outboxes what is there."""
        home, settings = self._shards.home, self._client.settings
        taken: dict[int, int] = {}
        for start in range(0, len(carried), CARRIED_AT_ONCE):
            part = carried[start : start + CARRIED_AT_ONCE]
            call = log_call(home, part, settings, teller(self._origin, home.shard))
            # What goes from an outbox must be as safe in the log as it was there.
            [numbers, *confirmed] = await self._client.invoke(home.slot, "log", *call, *waiting(settings))
            require_confirmed(confirmed, settings)
            taken.update(zip(dict(part), map(int, numbers), strict=True))
        await asyncio.gather(
            *(
                self._client.write(keys.slot, ("XTRIM", keys.outbox, "MINID", taken[keys.shard] + 1))
                for keys in self._shards.all
                if keys.shard in taken
            )
        )

    def _carried(self, task: asyncio.Task[None]) -> None:
        is_last = self._carrying is task
        if is_last:
            self._carrying = None
        if task.cancelled():
            self._end_settling(None, errors.StoreUnreachable("the store was closed."))
            return
        fault, failed_before = task.exception(), self._failing
        if is_last:
            self._end_settling(None, fault)
        self._failing = fault is not None
        if fault is not None and not failed_before:
            _logger.warning("events wait in their outboxes and are carried to the log later: %s", fault)


def _end(settled: asyncio.Future[None], fault: BaseException | None) -> None:
    if fault is None:
        settled.set_result(None)
    else:
        settled.set_exception(fault)


def in_order(
    noted: Sequence[Noted], outboxes: Mapping[int, Outbox]
) -> tuple[list[tuple[int, Entry]], list[Noted]]:
    """The events of some commits in the order of the commits, each with its shard.

    Args:
        noted: the commits, in their order.
        outboxes: the beginnings of outboxes. What is returned is taken out.

    Returns:
        The events, and the commits some of whose events were not read, or that come behind one whose
        outbox goes on.
    """
    found: list[tuple[int, Entry]] = []
    left: list[Noted] = []
    for place, one in enumerate(noted):
        shard = one.keys.shard
        if shard not in outboxes:
            left.append(one)
            continue
        entries, is_whole = outboxes[shard]
        while entries and entry_number(entries[0]) <= one.last:
            found.append((shard, entries.popleft()))
        if not entries and not is_whole:
            return found, left + list(noted[place:])
    return found, left
