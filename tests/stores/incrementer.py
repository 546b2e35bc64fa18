"""A process that increments one counter in a file, and says so after each commit.

Run as ``python incrementer.py FILE KEY TIMES``; it writes one ``+`` per acknowledged increment.
"""

import asyncio
import os
import sys

from flowfabric.core.records import StreamMeta
from flowfabric.stores.base import Change, Commit, Conflict
from flowfabric.stores.sqlite import SqliteStore


async def increment(store: SqliteStore, key: str) -> None:
    while True:
        ((_, version, found),) = (await store.load([key])).rows
        assert isinstance(found, StreamMeta)
        found.frame_count += 1
        changes = [Change(key, version, found)]
        try:
            await store.commit(
                Commit(
                    now=1,
                    changes=changes,
                    relied_on=[],
                    rows_removed=[("count", "", found.frame_count - 1, key)],
                    rows_added=[("count", "", found.frame_count, key)],
                    events=[],
                    appends=[],
                    trims=[],
                )
            )
        except Conflict:
            continue
        return


async def main(path: str, key: str, times: int) -> None:
    store = SqliteStore(path, wal_pages_max=50)
    await store.open()
    for _ in range(times):
        await increment(store, key)
        os.write(1, b"+")
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
