"""A shop takes an order and submits its delivery in one transaction: ``python demo.py``."""

import asyncio
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import apsw

from flowfabric import FlowFabric
from flowfabric.audit import audit

PATIENCE_S = 10.0


class Declined(Exception):
    """The payment failed after everything else was done."""


def charge(customer: str, *, declined: bool) -> None:
    """Take the customer's money."""
    if declined:
        raise Declined(customer)


class Shop:
    """Orders in a table of the shop's own, in the file that FlowFabric keeps its work in."""

    def __init__(self, path: str) -> None:
        self.ff = FlowFabric(f"sqlite:///{path}")
        self.connection = apsw.Connection(path)
        self.connection.set_busy_timeout(5_000)
        self.connection.execute("CREATE TABLE IF NOT EXISTS orders (customer TEXT PRIMARY KEY)")

    def order(self, customer: str, *, declined: bool = False, killed: bool = False) -> str:
        """Take an order. Returns the execution that delivers it."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            self.connection.execute("INSERT INTO orders VALUES (?)", (customer,))
            run = self.ff.within(self.connection).submit("deliver", customer)
            if killed:
                os._exit(1)
            charge(customer, declined=declined)
            self.connection.execute("COMMIT")
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        return run.execution_id

    def customers(self) -> list[str]:
        """Whose orders were taken."""
        return [customer for (customer,) in self.connection.execute("SELECT customer FROM orders")]


def order_and_die(path: str, customer: str) -> None:
    """Be killed between the submission and the commit."""
    Shop(path).order(customer, killed=True)


async def main(path: str) -> bool:
    """Serve four customers; returns whether exactly the committed orders were delivered."""
    ff, delivered = FlowFabric(f"sqlite:///{path}"), []

    @ff.handler
    def deliver(customer: str) -> str:
        delivered.append(customer)
        return f"delivered to {customer}"

    async with ff:
        shop = Shop(path)
        worker = asyncio.create_task(ff.run_worker())
        first = shop.order("Ada")
        try:
            shop.order("Bob", declined=True)
        except Declined:
            print("Bob's payment was declined: rolled back")
        await killed_shop(path, "Cleo")
        print(await ff.run(first).result(timeout=PATIENCE_S))
        last = shop.order("Dora")
        print(await ff.run(last).result(timeout=PATIENCE_S))
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        report = await audit(ff.engine)
    print(f"orders: {shop.customers()}, deliveries: {delivered}, audit: {len(report.violations)} violations")
    return shop.customers() == delivered == ["Ada", "Dora"] and not report.violations


async def killed_shop(path: str, customer: str) -> None:
    """Let a shop in a process of its own die half-way."""
    process = multiprocessing.get_context("spawn").Process(target=order_and_die, args=(path, customer))
    process.start()
    await asyncio.to_thread(process.join)
    print(f"{customer}'s shop was killed before its commit")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not asyncio.run(main(str(Path(folder) / "shop.db"))))
