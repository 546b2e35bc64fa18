"""What a server can be told: by flag, by environment variable, or in a file; in this order.

The settings are data. The command line, the reference page and the checks are made from them.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from flowfabric.errors import InvalidInput
from flowfabric.server.access import Role, TokenEntry, entry_for, read_tokens
from flowfabric.server.service import HEARTBEAT_MS, LIVE_MAX, SEND_TIMEOUT_MS, STREAMS_MAX, ServerOptions

LISTEN: Final = "127.0.0.1:9090"
PORT_MAX: Final = 65_535


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be set."""

    name: str
    """In the file; with hyphens it is the flag."""
    variable: str
    default: Any
    summary: str
    read: Callable[[str], Any]

    @property
    def flag(self) -> str:
        """How it is given on the command line."""
        return f"--{self.name.replace('_', '-')}"


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > _DIGITS_MAX or int(text) == 0:
        raise ValueError("a whole number above 0")
    return int(text)


def _switch(text: str) -> bool:
    words = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False, "": False}
    if text.lower() not in words:
        raise ValueError("on or off")
    return words[text.lower()]


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 <= int(port) <= PORT_MAX):
        raise ValueError("an address such as 127.0.0.1:9090")
    return text


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.strip() for part in text.split(",") if part.strip())
    if not origins:
        raise ValueError("origins such as https://app.example, separated by commas; leave it unset for none")
    wrong = [origin for origin in origins if origin != "*" and not _is_origin(origin)]
    if wrong:
        raise ValueError(f"origins such as https://app.example, not {wrong[0]!r}")
    return origins


def _is_origin(text: str) -> bool:
    scheme, separator, rest = text.partition("://")
    return scheme in ("http", "https") and bool(separator) and bool(rest) and not set(rest) & set("/?#@ ")


_DIGITS_MAX: Final = 15

SETTINGS: Final = (
    Setting(
        name="listen", variable="FF_LISTEN_ADDR", default=LISTEN, read=_address, summary="where to listen"
    ),
    Setting(
        name="tokens",
        variable="FF_TOKENS_FILE",
        default=None,
        read=Path,
        summary="a file with the tokens that are let in",
    ),
    Setting(
        name="api_token",
        variable="FF_API_TOKEN",
        default=None,
        read=str,
        summary="one more token, for everything; better in the environment than on a command line",
    ),
    Setting(
        name="insecure",
        variable="FF_INSECURE",
        default=False,
        read=_switch,
        summary="listen to other machines although no token is set",
    ),
    Setting(
        name="cors_origins",
        variable="FF_CORS_ORIGINS",
        default=(),
        read=_origins,
        summary="web pages that may call the server, separated by commas",
    ),
    Setting(
        name="streams_max",
        variable="FF_MAX_CONCURRENT_STREAM_OPS",
        default=STREAMS_MAX,
        read=_whole_number,
        summary="stream reads and tails at once",
    ),
    Setting(
        name="live_max",
        variable="FF_MAX_LIVE_STREAMS",
        default=LIVE_MAX,
        read=_whole_number,
        summary="clients that follow what happens at once",
    ),
    Setting(
        name="heartbeat_ms",
        variable="FF_HEARTBEAT_MS",
        default=HEARTBEAT_MS,
        read=_whole_number,
        summary="how long such a client hears nothing at most",
    ),
    Setting(
        name="send_timeout_ms",
        variable="FF_SEND_TIMEOUT_MS",
        default=SEND_TIMEOUT_MS,
        read=_whole_number,
        summary="how long such a client may take to receive a message",
    ),
    Setting(
        name="connections_max",
        variable="FF_MAX_CONNECTIONS",
        default=1_000,
        read=_whole_number,
        summary="connections and requests at once",
    ),
    Setting(
        name="metrics",
        variable="FF_METRICS",
        default=False,
        read=_switch,
        summary="answer GET /metrics, to everybody who reaches the server",
    ),
    Setting(
        name="metrics_listen",
        variable="FF_METRICS_LISTEN_ADDR",
        default=None,
        read=_address,
        summary="answer GET /metrics at an address of its own",
    ),
    Setting(
        name="access_log",
        variable="FF_ACCESS_LOG",
        default=False,
        read=_switch,
        summary="log a line for each request",
    ),
    Setting(
        name="head_timeout_ms",
        variable="FF_HEAD_TIMEOUT_MS",
        default=10_000,
        read=_whole_number,
        summary="how long a request's head may take to arrive",
    ),
    Setting(
        name="body_timeout_ms",
        variable="FF_BODY_TIMEOUT_MS",
        default=30_000,
        read=_whole_number,
        summary="how long a request's body may take to arrive",
    ),
    Setting(
        name="idle_timeout_ms",
        variable="FF_IDLE_TIMEOUT_MS",
        default=60_000,
        read=_whole_number,
        summary="how long a connection may stay open between requests",
    ),
    Setting(
        name="shutdown_timeout_ms",
        variable="FF_SHUTDOWN_TIMEOUT_MS",
        default=15_000,
        read=_whole_number,
        summary="how long requests may take to end when the server stops",
    ),
    Setting(
        name="hmac_grace_ms",
        variable="FF_WAITPOINT_HMAC_GRACE_MS",
        default=86_400_000,
        read=_whole_number,
        summary="how long a signing key that was rotated out still verifies tokens",
    ),
)


_OPTIONS: Final = (
    "access_log",
    "body_timeout_ms",
    "cors_origins",
    "heartbeat_ms",
    "hmac_grace_ms",
    "live_max",
    "metrics",
    "send_timeout_ms",
    "streams_max",
)

FLAGS: Final = ("listen", "tokens", "insecure")
"""What can be said on the command line; the rest belongs in a file or in the environment."""


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


def read_settings(
    flags: Mapping[str, str | None], environment: Mapping[str, str], file: Path | None
) -> Settings:
    """Bring flags, environment and file together, and check them.

    Raises:
        InvalidInput: a value breaks a rule; where it came from is named.
    """
    told = _read_file(file) if file is not None else {}
    found = {setting.name: _value_of(setting, flags, environment, told) for setting in SETTINGS}
    tokens = _tokens_of(found["tokens"], found["api_token"])
    host, _, port = found["listen"].rpartition(":")
    host = host.strip("[]")
    insecure = not tokens and not _is_loopback(host)
    if insecure and not found["insecure"]:
        raise InvalidInput(
            field="listen",
            value=found["listen"],
            rule="a loopback address while no token is set; set tokens, or say --insecure",
        )
    options = ServerOptions(
        tokens=tokens,
        insecure=insecure,
        **{name: found[name] for name in _OPTIONS},
    )
    rest = (
        "metrics_listen",
        "connections_max",
        "head_timeout_ms",
        "idle_timeout_ms",
        "shutdown_timeout_ms",
    )
    return Settings(host=host, port=int(port), options=options, **{name: found[name] for name in rest})


def _value_of(
    setting: Setting, flags: Mapping[str, str | None], environment: Mapping[str, str], told: Mapping[str, str]
) -> Any:
    """The first that was given. An empty variable counts as absent, but for origins."""
    for source, text in (
        (setting.flag, flags.get(setting.name)),
        (setting.variable, environment.get(setting.variable)),
        (setting.name, told.get(setting.name)),
    ):
        if text is None or (not text and setting.read is not _origins):
            continue
        try:
            return setting.read(text)
        except ValueError as error:
            raise InvalidInput(field=source, value=repr(text), rule=f"must be {error}") from error
    return setting.default


def _read_file(path: Path) -> dict[str, str]:
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeError) as error:
        raise InvalidInput(field="config", value=str(path), rule=f"a readable TOML file ({error})") from error
    unknown = told.keys() - {setting.name for setting in SETTINGS}
    if unknown:
        raise InvalidInput(field=f"config {path}", value=min(unknown), rule="a setting that exists")
    return {name: _as_text(value) for name, value in told.items()}


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _tokens_of(path: Path | None, api_token: str | None) -> tuple[TokenEntry, ...]:
    entries = [] if path is None else read_tokens(path)
    if api_token:
        entries.append(entry_for(api_token, "api-token", (Role.ADMIN,), None))
    return tuple(entries)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
