"""One URL to one store. This is the only module that names a store.

``sqlite:///work.db`` is a file relative to the current folder, ``sqlite:////var/lib/work.db`` an
absolute path; ``?synchronous=NORMAL`` trades power-loss safety for speed. ``sqlite://:memory:``
and ``memory://`` keep everything in this process and lose it with it.

``postgresql://user@host/database`` is a PostgreSQL database; ``?schema=name`` chooses the schema in
it, ``?pooler=on&direct_url=…`` goes through a pooler, ``?listen=off`` does without LISTEN.

``valkey://user:password@host:6379/0`` is a database of a Valkey server, ``valkeys://`` the same over
TLS, with ``?ca_file=`` for an authority of your own and ``?cert_file=&key_file=`` for a server that asks
who you are; ``?prefix=name`` sets a store apart from others in it, ``?durability=D2`` asks for more than the
usual D1, ``?replicas=1`` waits for a replica after every commit. ``valkey+cluster://host:6379`` is a
cluster, of which any server may be named; ``?seeds=other:6379`` names more.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from flowfabric.errors import InvalidInput, StoreUnreachable, StoreUnusable, UnusableConnection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flowfabric.stores.base import Borrowed, Store
    from flowfabric.stores.postgres import PostgresStore
    from flowfabric.stores.postgres.schema import Migration as PostgresMigration
    from flowfabric.stores.sqlite.schema import Migration as SqliteMigration
    from flowfabric.stores.valkey import ValkeyStore

DEFAULT_URL: Final = "sqlite:///flowfabric.db"
MEMORY: Final = ":memory:"
POSTGRES_SCHEMES: Final = ("postgresql", "postgres")
POSTGRES_OPTIONS: Final = ("connections", "direct_url", "listen", "pooler", "schema", "timeout_ms")
"""Options of ours."""
POSTGRES_DRIVER_OPTIONS: Final = (
    "database", "dbname", "gsslib", "host", "krbsrvname", "passfile", "password", "port", "sslcert",
    "sslcrl", "sslkey", "sslmode", "sslnegotiation", "sslrootcert", "target_session_attrs", "user",
)  # fmt: skip
"""Options that the driver understands. Any other it would take for a setting of the server."""

VALKEY_SCHEMES: Final = ("valkey", "valkeys", "valkey+cluster", "valkeys+cluster")
VALKEY_OPTIONS: Final = (
    "ca_file", "cert_file", "durability", "key_file", "prefix", "replicas", "seeds", "shards", "socket",
    "timeout_ms",
)  # fmt: skip
DURABILITY_LEVELS: Final = ("D0", "D1", "D2")

_PREFIX: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")
_SCHEMA: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,47}")


def store_for(url: str) -> Store:
    """Make the store that a URL names. Nothing is opened yet.

    Raises:
        InvalidInput: the URL names no store, or an option that the store does not have.
        StoreUnusable: the store's driver is not installed.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise _refused(url, "must look like sqlite:///work.db")
    if scheme == "memory":
        from flowfabric.stores.memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite":
        return _sqlite_store(url, rest)
    if scheme in POSTGRES_SCHEMES:
        return _postgres_store(url)
    if scheme in VALKEY_SCHEMES:
        return _valkey_store(url)
    raise _refused(url, "the scheme must be sqlite, postgresql, valkey or memory")


def borrow_store(store: Store, connection: object) -> Borrowed:
    """The store inside a transaction that somebody else holds open on this connection.

    Raises:
        UnusableConnection: transactions of such a connection cannot reach the store.
    """
    borrow = getattr(store, "borrow", None)
    borrowed: Borrowed | None = None if borrow is None else borrow(connection)
    if borrowed is None:
        kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
        raise UnusableConnection(
            f"a {type(store).__name__} cannot be reached through a {kind}. Use a connection of sqlite3 or "
            "apsw to a SQLite file, or one of asyncpg or psycopg to a PostgreSQL database."
        )
    return borrowed


def is_server(url: str) -> bool:
    """Whether a URL names a server rather than a store.

    >>> is_server("https://flows.example")
    True
    """
    return url.partition("://")[0] in ("http", "https")


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
    store = store_for(url)
    if _is_postgres(url):
        from flowfabric.stores import postgres

        return _names(asyncio.run(postgres.pending(cast("PostgresStore", store).settings)))
    if _is_valkey(url):
        from flowfabric.stores import valkey

        return asyncio.run(valkey.pending(cast("ValkeyStore", store).settings))
    path = _file_of(url)
    if path is None:
        return ()
    require_store(url)
    from flowfabric.stores.sqlite import pending

    return _names(pending(path))


def apply_migrations(url: str) -> tuple[str, ...]:
    """Bring the store's schema up to date. Returns the changes that were made, oldest first.

    Raises:
        InvalidInput: the URL names no store.
        StoreError: the store cannot be written, or is newer than this program.
    """
    store = store_for(url)
    if _is_postgres(url):
        from flowfabric.stores import postgres

        return _names(asyncio.run(postgres.migrate(cast("PostgresStore", store).settings)))
    if _is_valkey(url):
        from flowfabric.stores import valkey

        return asyncio.run(valkey.migrate(cast("ValkeyStore", store).settings))
    path = _file_of(url)
    if path is None:
        return ()
    from flowfabric.stores.sqlite import migrate

    return _names(migrate(path))


def _names(migrations: Sequence[SqliteMigration] | Sequence[PostgresMigration]) -> tuple[str, ...]:
    return tuple(f"{migration.number} {migration.name}" for migration in migrations)


def _is_postgres(url: str) -> bool:
    return url.partition("://")[0] in POSTGRES_SCHEMES


def _is_valkey(url: str) -> bool:
    return url.partition("://")[0] in VALKEY_SCHEMES


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


def _postgres_store(url: str) -> Store:
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = given.keys() - {*POSTGRES_OPTIONS, *POSTGRES_DRIVER_OPTIONS}
    if unknown:
        raise _refused(url, f"unknown option {min(unknown)!r}; known: {', '.join(POSTGRES_OPTIONS)}")
    schema = given.get("schema", "flowfabric")
    if not _SCHEMA.fullmatch(schema):
        raise _refused(url, "schema must be 1 to 48 small letters, digits and underscores, and no pg_ name")
    try:
        from flowfabric.stores.postgres import PostgresStore
    except ModuleNotFoundError as missing:
        raise StoreUnusable(
            f"{missing.name} is not installed. Install flowfabric[postgres] to use PostgreSQL."
        ) from missing
    driver_options = {name: value for name, value in given.items() if name in POSTGRES_DRIVER_OPTIONS}
    return PostgresStore(
        urlunsplit(parts._replace(scheme="postgresql", query=urlencode(driver_options))),
        direct_url=given.get("direct_url"),
        schema=schema,
        connections_max=_whole_number(url, given, "connections", 8),
        timeout_ms=_whole_number(url, given, "timeout_ms", 30_000),
        pooler=_switch(url, given, "pooler", "off"),
        listen=_switch(url, given, "listen", "on"),
    )


def _valkey_store(url: str) -> Store:
    try:
        from flowfabric.stores.valkey import Settings, ValkeyStore
    except ModuleNotFoundError as missing:
        raise StoreUnusable(
            f"{missing.name} is not installed. Install flowfabric[valkey] to use Valkey."
        ) from missing
    parts = urlsplit(url)
    options = _valkey_options(url)
    return ValkeyStore(
        Settings(
            host=parts.hostname or "localhost",
            port=_port(url, 6379),
            socket=options.get("socket"),
            database=_database(url),
            username=unquote(parts.username) if parts.username else None,
            password=None if parts.password is None else unquote(parts.password),
            cluster=parts.scheme.endswith("+cluster"),
            seeds=tuple(_seeds(url, options.get("seeds"))),
            shards=_whole_number(url, options, "shards", 0) or None,
            tls=parts.scheme.startswith("valkeys"),
            ca_file=options.get("ca_file"),
            cert_file=options.get("cert_file"),
            key_file=options.get("key_file"),
            prefix=options.get("prefix", "ff"),
            timeout_ms=_whole_number(url, options, "timeout_ms", 30_000),
            durability=options.get("durability", "D1"),
            replicas=_whole_number(url, options, "replicas", 0),
        )
    )


def _valkey_options(url: str) -> dict[str, str]:
    given = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    unknown = given.keys() - set(VALKEY_OPTIONS)
    if unknown:
        raise _refused(url, f"unknown option {min(unknown)!r}; known: {', '.join(VALKEY_OPTIONS)}")
    if not _PREFIX.fullmatch(given.get("prefix", "ff")):
        raise _refused(url, "prefix must be 1 to 48 small letters, digits and underscores")
    if given.get("durability", "D1") not in DURABILITY_LEVELS:
        raise _refused(url, f"durability must be one of {', '.join(DURABILITY_LEVELS)}")
    return given


def _seeds(url: str, text: str | None) -> Iterator[tuple[str, int]]:
    for seed in text.split(",") if text else ():
        host, _, port = seed.rpartition(":")
        if not (host and port.isascii() and port.isdigit()):
            raise _refused(url, "seeds must look like host:6379,other:6379")
        yield host, int(port)


def _database(url: str) -> int:
    name = urlsplit(url).path.removeprefix("/") or "0"
    if not (name.isascii() and name.isdigit()):
        raise _refused(url, "the database must be a number, as in valkey://localhost:6379/0")
    return int(name)


def _port(url: str, default: int) -> int:
    try:
        return urlsplit(url).port or default
    except ValueError:
        raise _refused(url, "the port must be a number up to 65535") from None


def _whole_number(url: str, options: dict[str, str], name: str, default: int) -> int:
    text = options.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise _refused(url, f"{name} must be a whole number above 0")
    return int(text)


def _switch(url: str, options: dict[str, str], name: str, default: str) -> bool:
    text = options.get(name, default)
    if text not in ("on", "off"):
        raise _refused(url, f"{name} must be on or off")
    return text == "on"


def _refused(url: str, rule: str) -> InvalidInput:
    shown = urlsplit(url)
    host = shown.netloc.rpartition("@")[2]
    return InvalidInput(field="url", value=repr(f"{shown.scheme}://{host}{shown.path}"), rule=rule)
