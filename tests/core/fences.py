"""What every command under a fence refuses, so that each is tested for all of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.ids import ExecutionId, LeaseFence
from flowfabric.contracts.policy import TimeoutPolicy
from tests.core import requests
from tests.core.harness import TTL_MS, Rulebook, new_execution_id, new_id

Refused = tuple[ExecutionId, LeaseFence, type[Exception]]


def ended(book: Rulebook) -> Refused:
    execution_id, fence = book.start(execution_deadline_at=book.now)
    book.run(requests.deadline(execution_id))
    return execution_id, fence, errors.ExecutionNotActive


def waiting(book: Rulebook) -> Refused:
    """Its attempt timed out, and a retry is due."""
    policy = requests.retries(1, timeout_policy=TimeoutPolicy(attempt_timeout_ms=1))
    execution_id, fence = book.start(policy=policy)
    book.advance(1)
    book.run(requests.timeout(execution_id))
    return execution_id, fence, errors.ExecutionNotActive


def revoked(book: Rulebook) -> Refused:
    """Also past its expiry: revocation is looked at first."""
    execution_id, fence = book.start()
    book.run(requests.revoke(execution_id))
    book.advance(TTL_MS)
    return execution_id, fence, errors.LeaseRevoked


def past_expiry(book: Rulebook) -> Refused:
    """With a foreign fence too: expiry is looked at before identity."""
    execution_id, fence = book.start()
    book.advance(TTL_MS)
    return execution_id, replace(fence, lease_id=new_id()), errors.LeaseExpired


def marked_expired(book: Rulebook) -> Refused:
    execution_id, fence = book.start()
    book.advance(TTL_MS)
    book.run(requests.mark_expired(execution_id))
    return execution_id, fence, errors.LeaseExpired


def other_lease(book: Rulebook) -> Refused:
    execution_id, fence = book.start()
    return execution_id, replace(fence, lease_id=new_id()), errors.StaleLease


def other_epoch(book: Rulebook) -> Refused:
    execution_id, fence = book.start()
    return execution_id, replace(fence, lease_epoch=fence.lease_epoch + 1), errors.StaleLease


def other_attempt(book: Rulebook) -> Refused:
    execution_id, fence = book.start()
    return execution_id, replace(fence, attempt_id=new_id()), errors.StaleLease


def reclaimed(book: Rulebook) -> Refused:
    execution_id, fence, _ = marked_expired(book)
    book.claim(execution_id)
    return execution_id, fence, errors.StaleLease


def unknown(book: Rulebook) -> Refused:
    _, fence = book.start()
    return new_execution_id(), fence, errors.ExecutionNotFound


SITUATIONS: tuple[Callable[[Rulebook], Refused], ...] = (
    ended,
    waiting,
    revoked,
    past_expiry,
    marked_expired,
    other_lease,
    other_epoch,
    other_attempt,
    reclaimed,
    unknown,
)

refused_fences = pytest.mark.parametrize("situation", SITUATIONS, ids=lambda make: make.__name__)
"""Runs a test once for each reason to refuse a fence."""
