"""Waitpoint tokens: the right to signal one waitpoint.

A token is ``<kid>:<mac>``. The mac is HMAC-SHA-256, in 64 lower-case hexadecimal digits, over the
purpose, the namespace, the execution, the waitpoint's id and key, and when it was created. Every
part is preceded by its length, so no two lists of parts give the same message.

The rules this module keeps:

- A token verifies only for the waitpoint it was made for, under a key that is current or in grace.
- Macs are compared in constant time, and an unknown waitpoint costs as much as a wrong token.
- A waitpoint stores a digest of its mac. The token is computed again from the key when it is read.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final

from flowfabric import errors
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.contracts.states import WaitpointState
from flowfabric.core.records import Waitpoint

if TYPE_CHECKING:
    from flowfabric.core.records import Keyring, SigningKey

PURPOSE: Final = b"flowfabric/waitpoint/1"
_SHAPE: Final = re.compile(r"([^:]{1,256}):([0-9a-f]{64})")
_LENGTH_BYTES: Final = 4
_NOBODYS_WAITPOINT: Final = Waitpoint(
    execution_id="",
    waitpoint_id="",
    waitpoint_key="",
    attempt_index=0,
    state=WaitpointState.CLOSED,
    token_kid="",
    token_digest="",
    created_at=0,
)
"""Stands in for an unknown waitpoint, so that it is told apart by nothing."""


def sign_message(secret: bytes, kid: str, message: bytes) -> str:
    """Sign any message: ``<kid>:<mac>`` with the mac over the kid, a colon and the message.

    This is the form that clients in other languages share, for messages of their own.

    >>> sign_message(b"secret-1", "kid-a", b"hello")[:22]
    'kid-a:d0a1581fa55bac26'
    """
    mac = hmac.new(secret, kid.encode() + b":" + message, hashlib.sha256)
    return f"{kid}:{mac.hexdigest()}"


def verify_message(secret: bytes, kid: str, message: bytes, token: str) -> None:
    """Check a token that ``sign_message`` made.

    Raises:
        InvalidToken: the rule is ``malformed``, ``wrong_kid`` or ``signature_mismatch``.
    """
    shape = _SHAPE.fullmatch(token)
    if shape is None:
        raise errors.InvalidToken(field="token", rule="malformed")
    if shape.group(1) != kid:
        raise errors.InvalidToken(field="token", rule="wrong_kid")
    if not hmac.compare_digest(token.encode(), sign_message(secret, kid, message).encode()):
        raise errors.InvalidToken(field="token", rule="signature_mismatch")


def waitpoint_mac(key: SigningKey, namespace: str, waitpoint: Waitpoint) -> str:
    """The mac that belongs to a waitpoint under a key.

    Raises:
        InvalidSecret: the stored secret is empty.
    """
    if not key.secret:
        raise errors.InvalidSecret(kid=key.kid)
    message = token_message(
        namespace,
        waitpoint.execution_id,
        waitpoint.waitpoint_id,
        waitpoint.waitpoint_key,
        str(waitpoint.created_at),
    )
    return hmac.new(key.secret, message, hashlib.sha256).hexdigest()


def token_message(*parts: str) -> bytes:
    """What is signed: the purpose and the parts, each after its length."""
    encoded = (PURPOSE, *(part.encode() for part in parts))
    return b"".join(len(part).to_bytes(_LENGTH_BYTES, "big") + part for part in encoded)


def mac_digest(mac: str) -> str:
    """What is stored of a mac."""
    return hashlib.sha256(mac.encode()).hexdigest()


def sign_waitpoint(ring: Keyring | None, namespace: str, waitpoint: Waitpoint) -> WaitpointToken:
    """Sign a new waitpoint with the current key, and note key, digest and fingerprint in it.

    Raises:
        HmacSecretNotInitialized: no key is installed.
        InvalidSecret: the key is unusable.
    """
    key = current_key(ring)
    token = WaitpointToken(f"{key.kid}:{waitpoint_mac(key, namespace, waitpoint)}")
    waitpoint.token_kid = key.kid
    waitpoint.token_digest = mac_digest(token.mac)
    waitpoint.token_fingerprint = token.fingerprint
    return token


def token_of(ring: Keyring | None, namespace: str, waitpoint: Waitpoint, now: int) -> WaitpointToken:
    """Compute a waitpoint's token again.

    Raises:
        TokenExpired: its key is past its grace or has been removed, so no token of it is valid.
        HmacSecretNotInitialized, InvalidSecret: see ``sign_waitpoint``.
    """
    current_key(ring)
    key = find_key(ring, waitpoint.token_kid)
    if key is None or not verifies(key, now):
        raise errors.TokenExpired(kid=waitpoint.token_kid)
    return WaitpointToken(f"{key.kid}:{waitpoint_mac(key, namespace, waitpoint)}")


def check_token(
    ring: Keyring | None, namespace: str, waitpoint: Waitpoint | None, token: WaitpointToken, now: int
) -> Waitpoint:
    """Make sure that the token is the waitpoint's; returns the waitpoint.

    An unknown waitpoint is refused like a wrong token, after the same work.

    Raises:
        MissingToken: the token is empty.
        InvalidToken: it is malformed, its key is unknown, or it belongs to something else.
        HmacSecretNotInitialized: no key is installed.
        TokenExpired: its key is past its grace.
        InvalidSecret: its key is unusable.
    """
    if not token.value:
        raise errors.MissingToken
    shape = _SHAPE.fullmatch(token.value)
    if shape is None:
        raise errors.InvalidToken
    current_key(ring)
    kid, mac = shape.groups()
    key = find_key(ring, kid)
    if key is None:
        raise errors.InvalidToken
    if not verifies(key, now):
        raise errors.TokenExpired(kid=kid)
    if not _is_token_of(key, namespace, waitpoint, mac) or waitpoint is None:
        raise errors.InvalidToken
    return waitpoint


def _is_token_of(key: SigningKey, namespace: str, waitpoint: Waitpoint | None, mac: str) -> bool:
    """Compare the signature, and the digest that was stored when the waitpoint was signed."""
    expected = waitpoint_mac(key, namespace, _NOBODYS_WAITPOINT if waitpoint is None else waitpoint)
    stored = mac_digest(expected) if waitpoint is None else waitpoint.token_digest
    same_mac = hmac.compare_digest(expected.encode(), mac.encode())
    same_digest = hmac.compare_digest(stored.encode(), mac_digest(mac).encode())
    return same_mac and same_digest


def current_key(ring: Keyring | None) -> SigningKey:
    """The key that signs.

    Raises:
        HmacSecretNotInitialized: no key is installed.
    """
    key = None if ring is None else find_key(ring, ring.current_kid)
    if key is None:
        raise errors.HmacSecretNotInitialized
    return key


def find_key(ring: Keyring | None, kid: str) -> SigningKey | None:
    """The key with this id, whether or not it still verifies."""
    keys = () if ring is None else ring.keys
    return next((key for key in keys if key.kid == kid), None)


def verifies(key: SigningKey, now: int) -> bool:
    """True for the current key and for those in grace."""
    return key.expires_at is None or now < key.expires_at
