"""Answers that are remembered where many callers may send the same thing.

A remembered answer belongs to a scope, which begins with the execution id, and to the digest of
the request. It counts until its window is over, whether or not it has been removed by then.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from flowfabric import errors
from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.core.records import Dedup

if TYPE_CHECKING:
    from flowfabric.core.work import Work

_encode_sorted = msgspec.msgpack.Encoder(order="deterministic").encode


def content_digest(content: Any) -> bytes:
    """What tells one request from another under the same key."""
    return hashlib.sha256(_encode_sorted(content)).digest()


def recall(work: Work, scope: str, dedup_key: str, digest: bytes | None = None) -> bytes | None:
    """The remembered answer, or None.

    Raises:
        IdempotencyConflict: the key was used with other content. Without a digest nothing is compared.
    """
    dedup = work.read(Dedup, f"{scope}/{dedup_key}")
    if dedup is None or dedup.expires_at <= work.now:
        return None
    if digest is not None and dedup.digest != digest:
        raise errors.IdempotencyConflict(idempotency_key=dedup_key)
    return dedup.value


def remember(
    work: Work, scope: str, dedup_key: str, value: bytes, window_ms: int, *, digest: bytes = b""
) -> None:
    """Remember an answer. The rule must have asked for it with ``recall`` before."""
    work.add(
        Dedup(
            scope=scope,
            dedup_key=dedup_key,
            digest=digest,
            value=value,
            expires_at=min(work.now + window_ms, SAFE_INTEGER_MAX),
        )
    )
