"""The keys that sign waitpoint tokens, and the token itself, which never prints itself."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from flowfabric.contracts.base import Command, Outcome, Value
from flowfabric.contracts.ids import Amount, TimestampMs
from flowfabric.contracts.limits import NAME_CHARS_MAX, SAFE_INTEGER_MAX
from flowfabric.contracts.partitions import PartitionIndex
from flowfabric.errors import InvalidGraceMs, InvalidKid, InvalidSecretHex

_HEX_PAIRS = re.compile(r"(?:[0-9a-fA-F]{2})+")
_SEED_HEX_DIGITS = 64
_TOKEN_CHARS_MAX = 1024
_FINGERPRINT_DIGITS = 16


class Secret:
    """Marks a field whose value must not appear in a message."""


SecretHex: TypeAlias = Annotated[str, Secret]


class WaitpointToken(msgspec.Struct, frozen=True):
    """The right to signal one waitpoint: ``<kid>:<hex>``. Printing it hides the digits.

    >>> WaitpointToken("k1:0123456789abcdef0123")
    WaitpointToken(k1:<REDACTED:len=20>)
    """

    value: Annotated[str, Meta(max_length=_TOKEN_CHARS_MAX), Secret]

    def __str__(self) -> str:
        return f"{self.kid}:<REDACTED:len={len(self.mac)}>"

    def __repr__(self) -> str:
        return f"WaitpointToken({self})"

    @property
    def kid(self) -> str:
        """Which key signed the token."""
        head, colon, _ = self.value.partition(":")
        return head if colon else ""

    @property
    def mac(self) -> str:
        """The signature in hexadecimal digits; everything when there is no key id."""
        return self.value.rpartition(":")[2] if self.kid else self.value

    @property
    def fingerprint(self) -> str:
        """The first 16 digits, safe to show and to log."""
        return self.mac[:_FINGERPRINT_DIGITS]


class SecretRotated(Outcome, tag="Rotated"):
    """The new key signs from now on. ``gc_count`` old keys were removed."""

    previous_kid: str | None = None
    new_kid: str
    gc_count: Amount


class SecretUnchanged(Outcome, tag="Noop"):
    """The same key with the same secret was installed already."""

    kid: str


RotateWaitpointHmacSecretOutcome: TypeAlias = SecretRotated | SecretUnchanged


class RotateWaitpointHmacSecretArgs(Command[RotateWaitpointHmacSecretOutcome]):
    """Install a new signing key; the old one verifies for ``grace_ms`` more."""

    new_kid: str
    new_secret_hex: SecretHex
    grace_ms: int

    def validate(self) -> None:
        """Check the key id, the secret and the grace, in this order."""
        _check_rotation(self.new_kid, self.new_secret_hex, self.grace_ms)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(new_kid={self.new_kid!r}, grace_ms={self.grace_ms})"


class RotateWaitpointHmacSecretAllEntry(Value):
    """What the rotation did in one partition; an error code when it failed there."""

    partition: PartitionIndex
    result: RotateWaitpointHmacSecretOutcome | None = None
    error_code: str | None = None


class RotateWaitpointHmacSecretAllResult(Value):
    """One entry per key ring; there is one, of partition 0."""

    entries: tuple[RotateWaitpointHmacSecretAllEntry, ...]


class RotateWaitpointHmacSecretAllArgs(Command[RotateWaitpointHmacSecretAllResult]):
    """Install a new signing key everywhere; the old one verifies for ``grace_ms`` more."""

    new_kid: str
    new_secret_hex: SecretHex
    grace_ms: int

    def validate(self) -> None:
        """Check the key id, the secret and the grace, in this order."""
        _check_rotation(self.new_kid, self.new_secret_hex, self.grace_ms)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(new_kid={self.new_kid!r}, grace_ms={self.grace_ms})"


class SecretSeeded(Outcome, tag="Seeded"):
    """The first key is installed."""

    kid: str


class SecretAlreadySeeded(Outcome, tag="AlreadySeeded"):
    """A key was there before. ``same_secret`` says whether it has the secret that was given."""

    kid: str
    same_secret: bool


SeedOutcome: TypeAlias = SecretSeeded | SecretAlreadySeeded


class SeedWaitpointHmacSecretArgs(Command[SeedOutcome]):
    """Install the first signing key; harmless when repeated."""

    kid: str
    secret_hex: SecretHex

    def validate(self) -> None:
        """Check the key id, and that the secret has 64 digits."""
        _check_kid(self.kid, "kid")
        _check_secret(self.secret_hex, "secret_hex")
        if len(self.secret_hex) != _SEED_HEX_DIGITS:
            raise InvalidSecretHex(field="secret_hex", rule="exactly 64 hexadecimal digits")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kid={self.kid!r})"


class VerifyingKid(Value):
    """An old key that still verifies, and until when."""

    kid: str
    expires_at_ms: TimestampMs


class WaitpointHmacKids(Value):
    """Which keys exist; their secrets are never read."""

    current_kid: str | None = None
    verifying: tuple[VerifyingKid, ...] = ()


class ListWaitpointHmacKidsArgs(Command[WaitpointHmacKids]):
    """List the key ids."""


def _check_rotation(kid: str, secret_hex: str, grace_ms: int) -> None:
    _check_kid(kid, "new_kid")
    _check_secret(secret_hex, "new_secret_hex")
    if not 0 <= grace_ms <= SAFE_INTEGER_MAX:
        raise InvalidGraceMs(field="grace_ms", value=grace_ms, rule="0 to 2**53-1")


def _check_kid(kid: str, field: str) -> None:
    if not kid or ":" in kid or len(kid) > NAME_CHARS_MAX or not kid.isprintable():
        raise InvalidKid(field=field, value=repr(kid[:64]), rule="1 to 256 printable characters, no colon")


def _check_secret(secret_hex: str, field: str) -> None:
    if not _HEX_PAIRS.fullmatch(secret_hex):
        raise InvalidSecretHex(field=field, rule="pairs of hexadecimal digits, at least one")
