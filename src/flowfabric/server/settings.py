"""What a server was told, checked: the settings that concern it, and whom they let in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from flowfabric.addresses import is_loopback
from flowfabric.errors import InvalidInput
from flowfabric.server.access import Role, TokenEntry, entry_for, read_tokens
from flowfabric.server.service import ServerOptions
from flowfabric.settings import COMMON, DUTIES, SERVER, intervals_of, read_file, read_values

SETTINGS: Final = (*COMMON, *SERVER, *DUTIES)
"""Everything that a server can be told."""

OPTIONS: Final = (
    "access_log",
    "body_timeout_ms",
    "cors_origins",
    "heartbeat_ms",
    "hmac_grace_ms",
    "live_max",
    "metrics",
    "requests_per_namespace_max",
    "send_timeout_ms",
    "streams_max",
    "waits_per_namespace_max",
)
"""The settings that each request may need to know."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a server was told, checked."""

    host: str
    port: int
    options: ServerOptions
    metrics_listen: str | None
    connections_max: int
    head_timeout_ms: int
    idle_timeout_ms: int
    shutdown_timeout_ms: int
    log_format: str
    log_level: str
    traces: bool
    intervals: dict[str, int | None]
    """The longest pauses of duties that were set; None turns a duty off."""


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> Settings:
    """Bring flags, environment and file together, and check them.

    Raises:
        InvalidInput: a value breaks a rule; where it came from is named.
    """
    found = read_values(SETTINGS, flags, environment, read_file(file))
    tokens = _tokens_of(found["tokens"], found["api_token"])
    _require_origins(found["cors_origins"])
    host, _, port = found["listen"].rpartition(":")
    host = host.strip("[]")
    insecure = not tokens and not is_loopback(host)
    if insecure and not found["insecure"]:
        raise InvalidInput(
            field="listen",
            value=found["listen"],
            rule="a loopback address while no token is set; set tokens, or say --insecure",
        )
    options = ServerOptions(tokens=tokens, insecure=insecure, **{name: found[name] for name in OPTIONS})
    rest = set(Settings.__struct_fields__) - {"host", "port", "options", "intervals"}
    return Settings(
        host=host,
        port=int(port),
        options=options,
        intervals=intervals_of(found),
        **{name: found[name] for name in rest},
    )


def _tokens_of(path: str | None, api_token: str | None) -> tuple[TokenEntry, ...]:
    entries = [] if path is None else read_tokens(Path(path))
    if api_token:
        entries.append(entry_for(api_token, "api-token", (Role.ADMIN,), None))
    return tuple(entries)


def _require_origins(origins: tuple[str, ...]) -> None:
    wrong = [origin for origin in origins if origin != "*" and not _is_origin(origin)]
    if wrong:
        raise InvalidInput(
            field="FF_CORS_ORIGINS", value=wrong[0], rule="origins such as https://app.example"
        )


def _is_origin(text: str) -> bool:
    scheme, separator, rest = text.partition("://")
    return scheme in ("http", "https") and bool(separator) and bool(rest) and not set(rest) & set("/?#@ ")
