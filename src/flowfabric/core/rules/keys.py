"""The key ring that signs waitpoint tokens: one record for the whole store.

The rules this module keeps:

- The current key has no expiry. A key that is rotated out gets one, which no later rotation moves.
- A key id is bound to its secret for good, also after the key was removed.
- Rotating to a key that is in grace makes it current again, and clears its expiry.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from flowfabric import errors
from flowfabric.contracts.keyring import (
    ListWaitpointHmacKidsArgs,
    RotateWaitpointHmacSecretAllArgs,
    RotateWaitpointHmacSecretAllEntry,
    RotateWaitpointHmacSecretAllResult,
    RotateWaitpointHmacSecretArgs,
    RotateWaitpointHmacSecretOutcome,
    SecretAlreadySeeded,
    SecretRotated,
    SecretSeeded,
    SecretUnchanged,
    SeedOutcome,
    SeedWaitpointHmacSecretArgs,
    VerifyingKid,
    WaitpointHmacKids,
)
from flowfabric.contracts.limits import SAFE_INTEGER_MAX
from flowfabric.core.records import KEYRING_ID, Key, Keyring, RetiredKey, SigningKey, key_for
from flowfabric.core.registry import no_subject, rule
from flowfabric.core.rules.acting import log_act
from flowfabric.core.rules.waitpoints import keyring, keyring_key
from flowfabric.core.tokens import find_key, verifies

if TYPE_CHECKING:
    from flowfabric.core.work import Work

RETIRED_MAX: Final = 1_000
"""How many removed key ids are remembered, the newest ones."""


def keyring_subject(args: object) -> Key:
    """The key ring, which the commands of this module are about."""
    return key_for(Keyring, KEYRING_ID)


@rule(SeedWaitpointHmacSecretArgs, subject=keyring_subject)
def seed_secret(work: Work, args: SeedWaitpointHmacSecretArgs) -> SeedOutcome:
    """Install the first key. Harmless at every start, before and after rotations.

    Raises:
        InvalidInput: keys are installed, and this one was never among them.
    """
    secret = bytes.fromhex(args.secret_hex)
    ring = keyring(work)
    if ring is None:
        work.add(_new_ring(args.kid, secret, work.now))
        return SecretSeeded(kid=args.kid)
    same = _has_secret(ring, args.kid, secret)
    if same is None:
        raise errors.InvalidInput(
            field="kid", value=repr(args.kid), rule="another key is installed; rotate to a new one"
        )
    return SecretAlreadySeeded(kid=args.kid, same_secret=same)


@rule(RotateWaitpointHmacSecretArgs, subject=keyring_subject)
def rotate_secret(work: Work, args: RotateWaitpointHmacSecretArgs) -> RotateWaitpointHmacSecretOutcome:
    """Sign with another key from now on. The one before verifies until its grace is over.

    Raises:
        RotationConflict: the key id belongs to another secret.
    """
    return _rotate(work, args.new_kid, args.new_secret_hex, args.grace_ms)


@rule(RotateWaitpointHmacSecretAllArgs, subject=keyring_subject)
def rotate_secret_everywhere(
    work: Work, args: RotateWaitpointHmacSecretAllArgs
) -> RotateWaitpointHmacSecretAllResult:
    """Rotate every key ring there is, which is one. A refusal is in its entry."""
    result: RotateWaitpointHmacSecretOutcome | None = None
    error_code = None
    try:
        result = _rotate(work, args.new_kid, args.new_secret_hex, args.grace_ms)
    except errors.RotationConflict as refusal:
        error_code = refusal.code
    entry = RotateWaitpointHmacSecretAllEntry(partition=0, result=result, error_code=error_code)
    return RotateWaitpointHmacSecretAllResult(entries=(entry,))


@rule(ListWaitpointHmacKidsArgs, subject=no_subject, reads=keyring_key)
def list_kids(work: Work, args: ListWaitpointHmacKidsArgs) -> WaitpointHmacKids:
    """The current key id, and those in grace in the order in which their grace ends."""
    ring = keyring(work)
    if ring is None:
        return WaitpointHmacKids()
    verifying = [
        VerifyingKid(kid=key.kid, expires_at_ms=key.expires_at)
        for key in ring.keys
        if key.expires_at is not None and verifies(key, work.now)
    ]
    verifying.sort(key=lambda kid: (kid.expires_at_ms, kid.kid))
    return WaitpointHmacKids(current_kid=ring.current_kid, verifying=tuple(verifying))


def _rotate(work: Work, kid: str, secret_hex: str, grace_ms: int) -> RotateWaitpointHmacSecretOutcome:
    secret = bytes.fromhex(secret_hex)
    ring = keyring(work)
    if ring is None:
        work.add(_new_ring(kid, secret, work.now))
        log_act(work, "key_rotated", namespace="", new=kid)
        return SecretRotated(new_kid=kid, gc_count=0)
    if _has_secret(ring, kid, secret) is False:
        raise errors.RotationConflict(kid=kid)
    if kid == ring.current_kid:
        return SecretUnchanged(kid=kid)
    ring = work.edit(ring)
    previous_kid = ring.current_kid
    gc_count = _remove_expired(ring, kid, work.now)
    _install(ring, kid, secret, work.now)
    _put_in_grace(ring, previous_kid, min(work.now + grace_ms, SAFE_INTEGER_MAX))
    log_act(work, "key_rotated", namespace="", old=previous_kid, new=kid, grace_ms=grace_ms)
    return SecretRotated(previous_kid=previous_kid, new_kid=kid, gc_count=gc_count)


def _new_ring(kid: str, secret: bytes, now: int) -> Keyring:
    key = SigningKey(kid=kid, secret=secret, installed_at=now)
    return Keyring(current_kid=kid, keys=(key,))


def _has_secret(ring: Keyring, kid: str, secret: bytes) -> bool | None:
    """Whether this key id has this secret; None if the ring has never had the key id."""
    key = find_key(ring, kid)
    if key is not None:
        return hmac.compare_digest(key.secret, secret)
    digests = [retired.secret_digest for retired in ring.retired if retired.kid == kid]
    return hmac.compare_digest(digests[0], _secret_digest(kid, secret)) if digests else None


def _secret_digest(kid: str, secret: bytes) -> bytes:
    return hmac.new(secret, kid.encode(), hashlib.sha256).digest()


def _remove_expired(ring: Keyring, spared_kid: str, now: int) -> int:
    """Remove the keys whose grace is over, but for one. Returns how many."""
    gone = [key for key in ring.keys if key.kid != spared_kid and not verifies(key, now)]
    ring.keys = tuple(key for key in ring.keys if key not in gone)
    retired = [RetiredKey(key.kid, _secret_digest(key.kid, key.secret)) for key in gone]
    ring.retired = (*ring.retired, *retired)[-RETIRED_MAX:]
    return len(gone)


def _install(ring: Keyring, kid: str, secret: bytes, now: int) -> None:
    """Make a key the current one: an old one again, or a new one."""
    known = find_key(ring, kid)
    others = tuple(key for key in ring.keys if key.kid != kid)
    if known is None:
        known = SigningKey(kid=kid, secret=secret, installed_at=now)
    ring.keys = (*others, replace(known, expires_at=None))
    ring.retired = tuple(retired for retired in ring.retired if retired.kid != kid)
    ring.current_kid = kid


def _put_in_grace(ring: Keyring, kid: str, expires_at: int) -> None:
    ring.keys = tuple(replace(key, expires_at=expires_at) if key.kid == kid else key for key in ring.keys)
