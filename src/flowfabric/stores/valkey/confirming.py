"""Waiting until replicas have what was written, where the settings ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowfabric.stores.valkey.connection import Command
    from flowfabric.stores.valkey.settings import Settings


def waiting(settings: Settings) -> tuple[Command, ...]:
    """What is sent behind a write, over the same connection, to wait until replicas have it."""
    if not settings.replicas:
        return ()
    # Half of the time, so that the answer comes before the connection is given up.
    return (("WAIT", settings.replicas, max(1, settings.timeout_ms // 2)),)


def require_confirmed(confirmed: Sequence[int], settings: Settings) -> None:
    """Refuse to call a write safe that too few replicas have.

    Args:
        confirmed: the answers to ``waiting``.
        settings: how many there have to be.

    Raises:
        StoreTimeout: too few have confirmed it in time. It was written nevertheless.
    """
    if confirmed and confirmed[0] < settings.replicas:
        raise errors.StoreTimeout(
            f"{settings.place} has committed, but only {confirmed[0]} of {settings.replicas} "
            "replicas have confirmed it in time: repeat with the same request id."
        )
