"""What an engine remembers of the records it has just written, so that they need not be loaded again.

What happens to an execution comes in quick succession, mostly from one process: it is created,
claimed, completed. So the record that a command needs is most often the one that an earlier commit of
the same engine has written.

The rules this module keeps:

- A record is remembered with the version that its commit gave it. A commit that rests on it compares
  the version, so one that somebody else has changed meanwhile is a conflict and is loaded.
- Whatever commits nothing, a refusal above all, is never decided by what is remembered (see
  ``deciding``): nothing would notice that it is outdated. The entries of a journal are read from it all
  the same, since they are written once (see ``journal``).
- Records that others write too are not remembered for a while, or each command would be a conflict.
- What an execution waits for is forgotten with it: whoever has ended a wait has changed its records too.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric.core.records import Execution, Suspension, Waitpoint, key_for
from flowfabric.engine.sizes import payload_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowfabric.core.records import Key, Record
    from flowfabric.stores.base import Commit

RECORDS_MAX: Final = 8_192
DATA_BYTES_MAX: Final = 8_192
"""Payloads that are larger are not remembered: all of them together would take much memory."""
SHARED_S: Final = 5.0
"""How long a record is loaded each time after somebody else has changed it."""


class RecentRecords:
    """The records that were written last, the oldest of them forgotten first."""

    def __init__(self) -> None:
        # Unlike a plain dictionary it does not walk over gaps to find its oldest entry.
        self._records: OrderedDict[Key, tuple[int, Record]] = OrderedDict()
        self._shared: dict[Key, float] = {}
        """Records that others have changed, and until when they are not remembered."""

    def recall(self, key: Key) -> tuple[int, Record] | None:
        """The version and the record as it was last written here, or None."""
        found = self._records.get(key)
        return None if found is None else (found[0], _detached(found[1]))

    def keep(self, commit: Commit, version: int | None) -> None:
        """Remember what was committed, with the version it has now, if the store tells."""
        records = self._records
        for change in commit.changes:
            # What is written again becomes the youngest.
            records.pop(change.key, None)
            if change.record is not None and version is not None and self._is_kept(change.key, change.record):
                records[change.key] = version, _detached(change.record)
        while len(records) > RECORDS_MAX:
            records.popitem(last=False)

    def _is_kept(self, key: Key, record: Record) -> bool:
        if record.LARGE and payload_bytes(record) > DATA_BYTES_MAX:
            return False
        return not self._shared or self._shared.get(key, 0.0) <= time.monotonic()

    def forget(self, keys: Iterable[Key]) -> None:
        """Take note that these records may not be what they were."""
        for key in keys:
            self._drop(key)

    def _drop(self, key: Key) -> bool:
        """Forget a record, and with an execution its wait. Returns whether it was remembered."""
        found = self._records.pop(key, None)
        if found is not None and isinstance(found[1], Execution):
            for part in _wait_of(found[1]):
                self._records.pop(part, None)
        return found is not None

    def share(self, keys: Iterable[Key]) -> None:
        """Take note that somebody else has changed these records, and may do so again."""
        now = time.monotonic()
        if len(self._shared) > RECORDS_MAX:
            self._shared = {key: until for key, until in self._shared.items() if until > now}
        for key in keys:
            if self._drop(key):
                self._shared[key] = now + SHARED_S

    def learn(self, rows: Iterable[tuple[Key, int, Record | None]]) -> None:
        """Compare what was loaded for any purpose, and forget what is newer than what is remembered."""
        records = self._records
        for key, version, _ in rows:
            found = records.get(key)
            if found is not None and found[0] < version:
                # Not taken for a sign of others: it may be a commit of our own that is not answered yet.
                self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._records.clear()
        self._shared.clear()


def _wait_of(execution: Execution) -> list[Key]:
    """The records of what an execution waits for."""
    waitpoints = [
        key_for(Waitpoint, f"{execution.execution_id}/{found}") for found in execution.open_waitpoint_ids
    ]
    if execution.suspension_id is None:
        return waitpoints
    return [key_for(Suspension, f"{execution.execution_id}/{execution.suspension_id}"), *waitpoints]


def _detached(record: Record) -> Record:
    """The record, or a copy if it has parts that whoever holds them could change in place."""
    filled = [name for name in _dict_fields(type(record)) if getattr(record, name)]
    if not filled:
        return record
    detached = copy.copy(record)
    for name in filled:
        setattr(detached, name, dict(getattr(record, name)))
    return detached


@cache
def _dict_fields(record_type: type[Record]) -> tuple[str, ...]:
    found: Any = msgspec.inspect.type_info(record_type)
    return tuple(
        field.encode_name for field in found.fields if isinstance(field.type, msgspec.inspect.DictType)
    )
