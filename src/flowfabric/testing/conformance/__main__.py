"""Print the table of expectations as the memory store answers."""

import asyncio

from flowfabric.testing.conformance.expectations import render, table_of_memory

if __name__ == "__main__":
    print(render(asyncio.run(table_of_memory())), end="")  # noqa: T201 - printing is what this is for
