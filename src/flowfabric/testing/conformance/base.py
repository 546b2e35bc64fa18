"""How the suite gets its stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from flowfabric.testing.bed import Bed
from flowfabric.testing.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from flowfabric.testing.clock import ClockedStore


@pytest.mark.asyncio
class StoreSuite(ABC):
    """Base of all parts of the suite."""

    @abstractmethod
    def make_store(self, path: Path) -> ClockedStore:
        """A store that is not open yet; what it keeps lives below ``path``, an empty folder."""

    def make_bed(self, store: ClockedStore, **options: Any) -> Bed:
        """An engine over a store; one that is reached in another way overrides this."""
        return Bed(store, **options)

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The clock of the test's stores."""
        return ManualClock()

    @pytest_asyncio.fixture
    async def store(self, tmp_path: Path, clock: ManualClock) -> AsyncIterator[ClockedStore]:
        """An open store."""
        store = self.make_store(tmp_path)
        clock.attach(store)
        await store.open()
        yield store
        await store.close()

    @pytest_asyncio.fixture
    async def bed(self, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Bed]:
        """An engine over a store; after the test, every invariant holds."""
        async with self.make_bed(self.make_store(tmp_path), clock=clock) as bed:
            yield bed
            await bed.check()
