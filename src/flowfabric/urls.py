"""One URL to one store. This is the only module that names a store.

``sqlite:///work.db`` is a file relative to the current folder, ``sqlite:////var/lib/work.db`` an
absolute path; ``?synchronous=NORMAL`` trades power-loss safety for speed. ``sqlite://:memory:``
and ``memory://`` keep everything in this process and lose it with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast
from urllib.parse import parse_qsl, urlsplit

from flowfabric.errors import InvalidInput, StoreUnreachable

if TYPE_CHECKING:
    from flowfabric.stores.base import Store

DEFAULT_URL: Final = "sqlite:///flowfabric.db"
MEMORY: Final = ":memory:"


def store_for(url: str) -> Store:
    """Make the store that a URL names. Nothing is opened yet.

    Raises:
        InvalidInput: the URL names no store, or an option that the store does not have.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise _refused(url, "must look like sqlite:///work.db")
    if scheme == "memory":
        from flowfabric.stores.memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite":
        return _sqlite_store(url, rest)
    raise _refused(url, "the scheme must be sqlite or memory")


def require_store(url: str) -> None:
    """Refuse a URL that names a file which is not there; for those who only want to look.

    Raises:
        InvalidInput: the URL names no store.
        StoreUnreachable: there is no such file.
    """
    path = _file_of(url)
    if path is not None and not Path(path).exists():
        raise StoreUnreachable(
            f"there is no file {path}. Check the URL and the current folder, or submit something to make it."
        )


def pending_migrations(url: str) -> tuple[str, ...]:
    """The schema changes that the store still lacks, oldest first. Nothing is changed.

    Raises:
        InvalidInput: the URL names no store.
        StoreError: the store cannot be read, or is newer than this program.
    """
    path = _file_of(url)
    if path is None:
        return ()
    require_store(url)
    from flowfabric.stores.sqlite import pending

    return tuple(f"{migration.number} {migration.name}" for migration in pending(path))


def apply_migrations(url: str) -> tuple[str, ...]:
    """Bring the store's schema up to date. Returns the changes that were made, oldest first.

    Raises:
        InvalidInput: the URL names no store.
        StoreError: the store cannot be written, or is newer than this program.
    """
    path = _file_of(url)
    if path is None:
        return ()
    from flowfabric.stores.sqlite import migrate

    return tuple(f"{migration.number} {migration.name}" for migration in migrate(path))


def _file_of(url: str) -> str | None:
    """The file that a URL names; None for a store in memory."""
    path: str = getattr(store_for(url), "path", MEMORY)
    return None if path == MEMORY else path


def _sqlite_store(url: str, rest: str) -> Store:
    from flowfabric.stores.sqlite import SqliteStore

    path, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "FULL").upper()
    if options:
        raise _refused(url, f"unknown option {min(options)!r}; known: synchronous")
    if synchronous not in ("FULL", "NORMAL"):
        raise _refused(url, "synchronous must be FULL or NORMAL")
    level = cast('Literal["FULL", "NORMAL"]', synchronous)
    if path != MEMORY:
        if not path.startswith("/") or len(path) == 1:
            raise _refused(url, "name a file, as in sqlite:///work.db")
        path = path[1:]
    return SqliteStore(path, synchronous=level)


def _refused(url: str, rule: str) -> InvalidInput:
    shown = urlsplit(url)
    host = shown.netloc.rpartition("@")[2]
    return InvalidInput(field="url", value=repr(f"{shown.scheme}://{host}{shown.path}"), rule=rule)
