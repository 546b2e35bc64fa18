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
        entries += await _load_entries(engine, [identity for _, identity in rows])
        if len(rows) < PAGE_ENTRIES:
            break
        rows = await engine.store.read_index(JOURNAL, scope, after=rows[-1], limit=PAGE_ENTRIES)
    return JournalPage(entries=tuple(entries), generation=execution.journal_generation)


async def _load_entries(engine: Engine, identities: list[str]) -> list[JournalEntry]:
    loaded = await engine.store.load([key_for(JournalRecord, identity) for identity in identities])
    records = {key: record for key, _, record in loaded.rows}
    found = (records[key_for(JournalRecord, identity)] for identity in identities)
    return [journal_entry(record) for record in found if isinstance(record, JournalRecord)]
