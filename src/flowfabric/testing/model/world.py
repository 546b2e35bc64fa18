"""What there is, as the generators see it: the records that the model's commits have left."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from flowfabric.contracts.ids import LeaseFence
from flowfabric.core.records import AnyRecord, Execution, Key, Record, key_for
from flowfabric.core.state import situation_of

if TYPE_CHECKING:
    from flowfabric.core.state import Situation
    from flowfabric.stores.base import Commit


class World:
    """The records of the model, kept up to date by its commits."""

    def __init__(self) -> None:
        self.records: dict[Key, Record] = {}
        self.fences: dict[str, list[LeaseFence]] = defaultdict(list)
        """Every fence that each execution has had, the latest last."""
        self.events_trimmed = 0
        """Up to which place the log was trimmed."""
        self.transitions: Counter[tuple[Situation | None, Situation | None]] = Counter()
        """How often an execution went from one situation to another; from None when it was created."""

    def absorb(self, commit: Commit) -> None:
        """Take in what a commit has changed."""
        for change in commit.changes:
            before = self.records.pop(change.key, None)
            if change.record is None:
                continue
            self.records[change.key] = change.record
            if isinstance(change.record, Execution):
                self._note(before, change.record)

    def _note(self, before: Record | None, after: Execution) -> None:
        earlier = situation_of(before) if isinstance(before, Execution) else None
        self.transitions[earlier, situation_of(after)] += 1
        if after.lease is None or after.attempt is None:
            return
        fence = LeaseFence(
            lease_id=after.lease.lease_id,
            lease_epoch=after.lease.epoch,
            attempt_id=after.attempt.attempt_id,
        )
        known = self.fences[after.execution_id]
        if known[-1:] != [fence]:
            known.append(fence)

    def all(self, record_type: type[AnyRecord]) -> list[AnyRecord]:
        """Every record of one type, in the order of its last change."""
        return [record for record in self.records.values() if isinstance(record, record_type)]

    def find(self, record_type: type[AnyRecord], identity: str) -> AnyRecord | None:
        """The record, or None."""
        record = self.records.get(key_for(record_type, identity))
        assert record is None or isinstance(record, record_type)
        return record
