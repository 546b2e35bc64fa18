"""What an engine tells whoever watches it: its commits, its sweeps, how far its readers are behind.

The rule this module keeps: an observer only counts. It is called on the event loop, between two
steps of the engine, so it must be quick, must not wait and must not raise. Where nobody observes,
nothing is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flowfabric.stores.base import Durability


class Observer(Protocol):
    """Is told what an engine does besides answering commands."""

    def committed(self, commands: int, elapsed_s: float) -> None:
        """A commit that carried so many commands was acknowledged by the store."""

    def conflicted(self, commands: int, elapsed_s: float) -> None:
        """A commit changed nothing, because other writers had changed what it rests on."""

    def swept(self, duty: str, entries: int, elapsed_s: float) -> None:
        """A duty has looked once, and so many entries were due."""

    def sweep_failed(self, duty: str) -> None:
        """A duty could not look, or broke; it tries again."""

    def tailed(self, events_behind: int) -> None:
        """A reader of the log of events got a page that ends so many events before the log's end."""

    def attested(self, durability: Durability) -> None:
        """The store has said what an acknowledged commit survives."""
