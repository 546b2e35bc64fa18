"""Reading the journal of an execution."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.contracts.journal import JournalEntry, JournalPage, ReadJournalArgs
from flowfabric.core.indexes import JOURNAL, scope_of
from flowfabric.core.records import Execution, JournalRecord, key_for
from flowfabric.core.rules.journal import journal_entry
from flowfabric.engine.operations import operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.core.records import Record
    from flowfabric.core.work import Envelope
    from flowfabric.engine.engine import Engine

PAGE_ENTRIES: Final = 256


@operation(ReadJournalArgs)
async def read_journal(engine: Engine, args: ReadJournalArgs, envelope: Envelope) -> JournalPage:
    """All entries of the current generation, in the order in which they were recorded.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    # The generation stands in the execution. Nearly always it is the first one.
    first = scope_of(args.execution_id, "0")
    loaded, rows = await asyncio.gather(
        engine.store.load([key_for(Execution, args.execution_id)]),
        engine.store.read_index(JOURNAL, first, limit=PAGE_ENTRIES),
    )
    execution = loaded.rows[0][2]
    if not isinstance(execution, Execution) or envelope.namespace not in (None, execution.namespace):
        raise errors.ExecutionNotFound(execution_id=args.execution_id)
    scope = scope_of(execution.execution_id, str(execution.journal_generation))
    if scope != first:
        rows = await engine.store.read_index(JOURNAL, scope, limit=PAGE_ENTRIES)
    entries: list[JournalEntry] = []
    while rows:
        entries += await _entries(engine, rows)
        if len(rows) < PAGE_ENTRIES:
            break
        rows = await engine.store.read_index(JOURNAL, scope, after=rows[-1], limit=PAGE_ENTRIES)
    return JournalPage(entries=tuple(entries), generation=execution.journal_generation)


async def _entries(engine: Engine, rows: Sequence[tuple[int, str]]) -> list[JournalEntry]:
    """The entries that some rows of the index lead to. Those that were written here need not be loaded."""
    records = {
        key_for(JournalRecord, identity): _remembered(engine, recorded_at, identity)
        for recorded_at, identity in rows
    }
    wanted = [key for key, record in records.items() if record is None]
    if wanted:
        records.update((key, record) for key, _, record in (await engine.store.load(wanted)).rows)
    return [journal_entry(record) for record in records.values() if isinstance(record, JournalRecord)]


def _remembered(engine: Engine, recorded_at: int, identity: str) -> Record | None:
    """An entry as it was written here; None if that is not known.

    An entry is written once, and the index says when, so what is remembered is what is stored.
    """
    found = engine.recent.recall(key_for(JournalRecord, identity))
    if found is None or not isinstance(found[1], JournalRecord) or found[1].recorded_at != recorded_at:
        return None
    return found[1]
