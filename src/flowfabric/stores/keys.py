"""How SQL stores spell keys in their tables: in the order of ``key_order``.

A key is ``<kind>/<identity>``, and most identities begin with an execution id, ``{fp:7}:<uuid>``.
Stored as they are, the keys of new records would be scattered over the whole index: by kind, then
by partition. Stored as ``<uuid>…``, tag and kind last, they follow the time in the uuid, so the
rows of one commit land beside each other and few pages change.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from flowfabric.stores.base import key_order, split_tag

SEPARATOR: Final = "\x1f"
"""Refused in every name, and sorts before everything that a name may hold."""

_NAMES_CACHED: Final = 8_192
"""A key is spelled several times in one batch and again in the next."""

_SURROGATES: Final = range(0xD800, 0xE000)
_LAST_CHARACTER: Final = 0x10FFFF


@lru_cache(_NAMES_CACHED)
def stored_name(name: str) -> str:
    """An execution id, or what begins with one, with its partition tag at the end."""
    return SEPARATOR.join(split_tag(name))


@lru_cache(_NAMES_CACHED)
def stored_key(key: str) -> str:
    """A record's key, with partition tag and kind at the end."""
    return SEPARATOR.join(key_order(key))


def restored_key(stored: str) -> str:
    """The inverse of ``stored_key``."""
    rest, tag, kind = stored.rsplit(SEPARATOR, 2)
    return f"{kind}/{tag}{rest}"


def prefix_bounds(prefix: str) -> tuple[str, str | None]:
    """The half-open range of all texts that begin with ``prefix``; without an end if that is None."""
    for place in range(len(prefix) - 1, -1, -1):
        following = ord(prefix[place]) + 1
        if following in _SURROGATES:
            following = _SURROGATES.stop
        if following <= _LAST_CHARACTER:
            return prefix, prefix[:place] + chr(following)
    return prefix, None


def owned_bounds(identity: str) -> tuple[str, str]:
    """A range of stored keys that holds all that ``is_owned`` by an identity, and hardly any others."""
    rest, _ = split_tag(identity)
    low, high = prefix_bounds(rest)
    assert high is not None, "an identity that ends with the last character there is"
    return low, high


def stored_prefix_bounds(prefix: str) -> tuple[str, str | None]:
    """A range of stored keys that holds all keys that begin with ``prefix``, and perhaps others."""
    _, _, identity = prefix.partition("/")
    rest, tag = split_tag(identity)
    if not tag and identity[:1] == "{":
        # The tag is not complete: any identity may follow it.
        return prefix_bounds("")
    return prefix_bounds(rest)


def stored_suffix(prefix: str) -> str:
    """What all stored keys end with whose keys begin with ``prefix``; as much as is certain."""
    kind, slash, identity = prefix.partition("/")
    if not slash:
        return ""
    _, tag = split_tag(identity)
    return f"{SEPARATOR}{tag}{SEPARATOR}{kind}" if tag else f"{SEPARATOR}{kind}"
