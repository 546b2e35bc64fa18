"""A process of its own: ``python -m tests.transactions.clerk PART DRIVER FOLDER URL``.

``work`` runs a worker. ``submit`` writes an order and submits in one transaction, and waits to be
killed before it commits.
"""

import asyncio
import sys
from pathlib import Path

from flowfabric import FlowFabric
from flowfabric.stores.postgres import PostgresStore
from tests.transactions.parties import SCHEMA, Place


def app_for(place: Place, url: str) -> FlowFabric:
    """An app on the same database; the server is the parent's, not one of this process."""
    store = place.store() if place.is_file else PostgresStore(url, schema=SCHEMA, required_level="D1")
    return FlowFabric(store=store, namespace=place.namespace)


async def work(place: Place, url: str) -> None:
    app = app_for(place, url)

    @app.handler
    async def double(number: int) -> int:
        return 2 * number

    async with app:
        print("ready", flush=True)
        await app.run_worker(handle_signals=True)


async def submit(place: Place, url: str) -> None:
    place.url = url
    party = await place.party(app_for(place, url))
    await party.begin()
    await party.order(7)
    run = await party.submit("double", 7, idempotency_key="order-7")
    print(run.execution_id, flush=True)
    await asyncio.sleep(60)


if __name__ == "__main__":
    part, driver, folder, url = sys.argv[1:]
    asyncio.run({"work": work, "submit": submit}[part](Place(driver, Path(folder)), url))
