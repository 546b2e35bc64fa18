"""Who may do what: roles, tokens and the principal behind a request.

- A token is kept as the SHA-256 digest of its bytes; what was handed out is never stored.
- A token is bound to one namespace, or to none, which is for operators of the whole deployment.
- What no role is named for, nobody may do.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tomllib
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from flowfabric.errors import InvalidInput, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TOKEN_PREFIX: Final = "ff_"  # noqa: S105 - the beginning of every token, which is no secret
TOKEN_BYTES: Final = 32
TOKEN_CHARS_MAX: Final = 512
TOKENS_MAX: Final = 1_000
BEARER: Final = b"Bearer "


class Role(StrEnum):
    """What a request needs, and what a token gives."""

    READ = "read"
    SUBMIT = "submit"
    WORKER = "worker"
    SIGNAL = "signal"
    OPERATOR = "operator"
    ADMIN = "admin"


GIVES: Final[dict[Role, frozenset[Role]]] = {
    Role.READ: frozenset({Role.READ}),
    Role.SUBMIT: frozenset({Role.SUBMIT, Role.READ}),
    Role.WORKER: frozenset({Role.WORKER, Role.READ}),
    Role.SIGNAL: frozenset({Role.SIGNAL}),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.SUBMIT, Role.SIGNAL, Role.READ}),
    Role.ADMIN: frozenset(Role),
}
"""Whoever submits or works may also look; a token that only signals may do nothing else."""


class Principal(msgspec.Struct, frozen=True):
    """Who asks: the name for the record, the bounds, and the roles."""

    name: str
    namespace: str | None
    roles: frozenset[Role]

    def may(self, needed: frozenset[Role]) -> bool:
        """Whether what this principal holds gives one of the roles that are needed."""
        return any(not needed.isdisjoint(GIVES[held]) for held in self.roles)


ANYONE: Final = Principal("anonymous", None, frozenset({Role.ADMIN}))
"""Everybody, where no tokens are set."""
NOBODY: Final = Principal("nobody", None, frozenset())
"""Whoever comes without a token where tokens are set; open routes answer, and nothing else does."""


def role_missing(needed: frozenset[Role]) -> Unauthorized:
    """The refusal of whoever has none of the roles that are needed."""
    return Unauthorized(f"This needs a token with the role {' or '.join(sorted(needed))}.")


class TokenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token of the tokens file."""

    name: str
    sha256: str
    roles: tuple[Role, ...] = (Role.READ,)
    namespace: str | None = None
    expires_at: int | None = None
    """Milliseconds since the epoch."""


class Tokens:
    """The tokens that are let in."""

    def __init__(self, entries: Iterable[TokenEntry]) -> None:
        self._entries = [(bytes.fromhex(entry.sha256), entry) for entry in entries]

    def __bool__(self) -> bool:
        return bool(self._entries)

    def principal_of(self, authorization: list[bytes], now_ms: int) -> Principal | None:
        """Who sent these ``Authorization`` headers; None if it is nobody known.

        Every entry is compared, in constant time, whatever the token is.
        """
        if len(authorization) != 1 or not authorization[0].startswith(BEARER):
            return None
        token = authorization[0].removeprefix(BEARER)
        digest = hashlib.sha256(token[:TOKEN_CHARS_MAX]).digest()
        found = [entry for known, entry in self._entries if hmac.compare_digest(known, digest)]
        if not found or len(token) > TOKEN_CHARS_MAX:
            return None
        entry = found[0]
        if entry.expires_at is not None and entry.expires_at <= now_ms:
            return None
        return Principal(entry.name, entry.namespace, frozenset(entry.roles))


def new_token() -> str:
    """Make a token of 256 random bits. It is shown once and then known to its holder only."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def entry_for(
    token: str, name: str, roles: Iterable[Role], namespace: str | None, expires_at: int | None = None
) -> TokenEntry:
    """What the tokens file keeps of a token."""
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    return TokenEntry(
        name=name, sha256=digest, roles=tuple(roles), namespace=namespace, expires_at=expires_at
    )


class _File(msgspec.Struct, forbid_unknown_fields=True):
    token: list[TokenEntry] = []


def read_tokens(path: Path) -> list[TokenEntry]:
    """Read a tokens file: one ``[[token]]`` table for each token.

    Raises:
        InvalidInput: the file is not there, is no TOML, or says something unknown.
    """
    try:
        entries = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File).token
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeError) as error:
        raise InvalidInput(
            field="tokens file", value=str(path), rule=f"a readable list of tokens ({error})"
        ) from error
    for entry in entries:
        _check(entry, path)
    if len({entry.sha256 for entry in entries}) < len(entries) or len(entries) > TOKENS_MAX:
        raise InvalidInput(
            field="tokens file", value=str(path), rule=f"at most {TOKENS_MAX} tokens, none twice"
        )
    return entries


def _check(entry: TokenEntry, path: Path) -> None:
    digits = entry.sha256.lower()
    if len(digits) != hashlib.sha256().digest_size * 2 or set(digits) - set("0123456789abcdef"):
        raise InvalidInput(
            field=f"tokens file {path}, token {entry.name!r}", rule="sha256: 64 hexadecimal digits"
        )
    if not entry.roles:
        raise InvalidInput(field=f"tokens file {path}, token {entry.name!r}", rule="roles: at least one")
