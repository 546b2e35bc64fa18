"""Everything that servers and workers can be told: by flag, by variable, or in a file; in this order.

The settings are data. The command line, the reference page and the checks are made from them. One
file may serve all processes of a deployment: each takes from it what concerns it, and refuses what
concerns none.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric.contracts.durations import parse_duration_ms
from flowfabric.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping
    from pathlib import Path

PORT_MAX: Final = 65_535
DIGITS_MAX: Final = 15
UNSET: Final = msgspec.UNSET
"""The value of what was not set, where None means something."""
INTERVAL_MS_MIN: Final = 100
"""The shortest interval of a background duty."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be set."""

    name: str
    """In the file; with hyphens it is the flag, if it has one."""
    variable: str
    summary: str
    read: Callable[[str], Any]
    """Makes a value of a text, or raises ``ValueError`` that says what it must be."""
    default: Any = None
    default_shown: str | None = None
    """What the reference page says where the default is no plain value."""
    alias: str | None = None
    """Another variable of the same meaning; the first one wins."""
    has_flag: bool = False
    may_be_empty: bool = False
    """Whether an empty text is a value, and not the same as none."""

    @property
    def flag(self) -> str:
        """How it is given on the command line."""
        return f"--{self.name.replace('_', '-')}"


# Readers


def whole_number(text: str) -> int:
    """A whole number above 0."""
    if not (text.isascii() and text.isdigit()) or len(text) > DIGITS_MAX or int(text) == 0:
        raise ValueError("a whole number above 0")
    return int(text)


def switch(text: str) -> bool:
    """On or off."""
    words = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
    if text.lower() not in words:
        raise ValueError("on or off")
    return words[text.lower()]


def address(text: str) -> str:
    """A host and a port."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 <= int(port) <= PORT_MAX):
        raise ValueError("an address such as 127.0.0.1:9090")
    return text


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise ValueError("at least one name; separate several with commas")
    return found


def duration_ms(text: str) -> int:
    """A length of time, such as 30s."""
    try:
        return parse_duration_ms(text)
    except ValueError:
        raise ValueError("a duration such as 500ms, 30s, 5m or 1h30m") from None


def retention_ms(text: str) -> int | None:
    """A length of time, or off."""
    return None if text == "off" else duration_ms(text)


def secret_hex(text: str) -> str:
    """An even number of hexadecimal digits. The message does not repeat them."""
    if len(text) % 2 or set(text.lower()) - set("0123456789abcdef"):
        raise ValueError("an even number of hexadecimal digits, best 64: `openssl rand -hex 32` makes them")
    return text


def one_of(*words: str) -> Callable[[str], str]:
    """One of some words."""

    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text.lower()

    return read


def interval_ms(unit_ms: int) -> Callable[[str], int | None]:
    """The interval of a background duty in a unit; 0 turns the duty off."""

    def read(text: str) -> int | None:
        if not (text.isascii() and text.isdigit()) or len(text) > DIGITS_MAX:
            raise ValueError("a whole number; 0 turns the duty off")
        return max(int(text) * unit_ms, INTERVAL_MS_MIN) if int(text) else None

    return read


# What can be set


COMMON: Final = (
    Setting(
        name="url",
        variable="FF_URL",
        read=str,
        default_shown="sqlite:///flowfabric.db",
        summary="the store, such as `sqlite:///work.db`, `postgresql://user@host/database` or "
        "`valkey://host:6379/0`; for workers and clients also a server, such as `https://flows.example`",
        has_flag=True,
    ),
    Setting(
        name="namespace",
        variable="FF_NAMESPACE",
        read=str,
        default_shown="default",
        summary="the namespace of workers and of the command line",
        has_flag=True,
    ),
    Setting(
        name="token",
        variable="FF_TOKEN",
        read=str,
        summary="what a server knows workers and clients by, when the URL names one",
    ),
    Setting(
        name="public_url",
        variable="FF_PUBLIC_URL",
        read=str,
        summary="where outsiders reach the server, for links that answer waitpoints",
    ),
    Setting(
        name="retention",
        variable="FF_RETENTION",
        read=retention_ms,
        default_shown="1d",
        summary="how long ended executions and flows, and the log of events, are kept; `7d`, or `off`",
    ),
    Setting(
        name="waitpoint_hmac_secret",
        variable="FF_WAITPOINT_HMAC_SECRET",
        read=secret_hex,
        default_shown="a random one, kept in the store",
        summary="the first key that signs waitpoint tokens, 64 hexadecimal digits",
    ),
    Setting(
        name="log_format",
        variable="FF_LOG_FORMAT",
        read=one_of("text", "json"),
        default="text",
        summary="how lines are logged: `text` or `json`",
        has_flag=True,
    ),
    Setting(
        name="log_level",
        variable="FF_LOG_LEVEL",
        read=one_of("debug", "info", "warning", "error"),
        default="info",
        summary="the least severe lines that are logged: `debug`, `info`, `warning` or `error`",
        has_flag=True,
    ),
    Setting(
        name="traces",
        variable="FF_TRACES",
        read=switch,
        default=False,
        summary="send OpenTelemetry traces, to where `OTEL_EXPORTER_OTLP_ENDPOINT` says",
    ),
    Setting(
        name="metrics_listen",
        variable="FF_METRICS_LISTEN_ADDR",
        read=address,
        default_shown="nowhere",
        summary="answer `GET /metrics` at an address of its own, such as `127.0.0.1:9464`",
        has_flag=True,
    ),
)
"""What servers and workers both can be told."""

SERVER: Final = (
    Setting(
        name="listen",
        variable="FF_LISTEN_ADDR",
        default="127.0.0.1:9090",
        read=address,
        summary="where to listen",
        has_flag=True,
    ),
    Setting(
        name="tokens",
        variable="FF_TOKENS_FILE",
        read=str,
        summary="a file with the tokens that are let in",
        has_flag=True,
    ),
    Setting(
        name="api_token",
        variable="FF_API_TOKEN",
        read=str,
        summary="one more token, for everything; better in the environment than on a command line",
    ),
    Setting(
        name="insecure",
        variable="FF_INSECURE",
        default=False,
        read=switch,
        summary="listen to other machines although no token is set",
        has_flag=True,
    ),
    Setting(
        name="cors_origins",
        variable="FF_CORS_ORIGINS",
        default=(),
        read=names,
        summary="web pages that may call the server, separated by commas",
        may_be_empty=True,
    ),
    Setting(
        name="streams_max",
        variable="FF_MAX_CONCURRENT_STREAM_OPS",
        alias="FF_MAX_CONCURRENT_TAIL",
        default=64,
        read=whole_number,
        summary="stream reads and tails at once",
    ),
    Setting(
        name="live_max",
        variable="FF_MAX_LIVE_STREAMS",
        default=256,
        read=whole_number,
        summary="clients that follow what happens at once",
    ),
    Setting(
        name="requests_per_namespace_max",
        variable="FF_MAX_REQUESTS_PER_NAMESPACE",
        default=256,
        read=whole_number,
        summary="requests of one namespace, or of one token that is bound to none, at once",
    ),
    Setting(
        name="waits_per_namespace_max",
        variable="FF_MAX_WAITS_PER_NAMESPACE",
        default=512,
        read=whole_number,
        summary="requests of one such party that wait or follow what happens at once",
    ),
    Setting(
        name="heartbeat_ms",
        variable="FF_HEARTBEAT_MS",
        default=15_000,
        read=whole_number,
        summary="how long such a client hears nothing at most",
    ),
    Setting(
        name="send_timeout_ms",
        variable="FF_SEND_TIMEOUT_MS",
        default=30_000,
        read=whole_number,
        summary="how long such a client may take to receive a message",
    ),
    Setting(
        name="connections_max",
        variable="FF_MAX_CONNECTIONS",
        default=1_000,
        read=whole_number,
        summary="connections and requests at once",
    ),
    Setting(
        name="metrics",
        variable="FF_METRICS",
        default=False,
        read=switch,
        summary="answer `GET /metrics`, to everybody who reaches the server",
    ),
    Setting(
        name="access_log",
        variable="FF_ACCESS_LOG",
        default=False,
        read=switch,
        summary="log a line for each request",
    ),
    Setting(
        name="head_timeout_ms",
        variable="FF_HEAD_TIMEOUT_MS",
        default=10_000,
        read=whole_number,
        summary="how long a request's head may take to arrive",
    ),
    Setting(
        name="body_timeout_ms",
        variable="FF_BODY_TIMEOUT_MS",
        default=30_000,
        read=whole_number,
        summary="how long a request's body may take to arrive",
    ),
    Setting(
        name="idle_timeout_ms",
        variable="FF_IDLE_TIMEOUT_MS",
        default=60_000,
        read=whole_number,
        summary="how long a connection may stay open between requests",
    ),
    Setting(
        name="shutdown_timeout_ms",
        variable="FF_SHUTDOWN_TIMEOUT_MS",
        default=15_000,
        read=whole_number,
        summary="how long requests may take to end when the server stops",
    ),
    Setting(
        name="hmac_grace_ms",
        variable="FF_WAITPOINT_HMAC_GRACE_MS",
        default=86_400_000,
        read=whole_number,
        summary="how long a signing key that was rotated out still verifies tokens",
    ),
)
"""What only servers can be told."""

WORKER: Final = (
    Setting(
        name="lanes",
        variable="FF_WORKER_LANES",
        read=names,
        default_shown="those of the handlers",
        summary="lanes to claim from, separated by commas",
        has_flag=True,
    ),
    Setting(
        name="concurrency",
        variable="FF_WORKER_CONCURRENCY",
        read=whole_number,
        default_shown="16",
        summary="handlers that run at the same time",
        has_flag=True,
    ),
    Setting(
        name="capabilities",
        variable="FF_WORKER_CAPABILITIES",
        read=names,
        summary="what this worker offers, separated by commas",
        has_flag=True,
    ),
    Setting(
        name="worker_id",
        variable="FF_WORKER_ID",
        read=str,
        default_shown="worker",
        summary="the logical name, shared by workers that are alike",
        has_flag=True,
    ),
    Setting(
        name="lease_ttl",
        variable="FF_LEASE_TTL",
        read=duration_ms,
        default_shown="30s",
        summary="how long a silent worker keeps its work",
        has_flag=True,
    ),
    Setting(
        name="drain_timeout",
        variable="FF_DRAIN_TIMEOUT",
        read=duration_ms,
        default_shown="30s",
        summary="how long handlers may take to finish when the worker is told to stop",
        has_flag=True,
    ),
)
"""What only workers can be told."""

MS: Final = 1
SECOND: Final = 1_000

INTERVALS: Final = {
    "FF_LEASE_EXPIRY_INTERVAL_MS": (MS, ("lease_expiry",)),
    "FF_DELAYED_PROMOTER_INTERVAL_MS": (MS, ("delayed_promoter",)),
    "FF_ATTEMPT_TIMEOUT_INTERVAL_S": (SECOND, ("attempt_timeout",)),
    "FF_EXECUTION_DEADLINE_INTERVAL_S": (SECOND, ("execution_deadline",)),
    "FF_SUSPENSION_TIMEOUT_INTERVAL_S": (SECOND, ("suspension_timeout",)),
    "FF_PENDING_WP_EXPIRY_INTERVAL_S": (SECOND, ("pending_wp_expiry",)),
    "FF_RETENTION_TRIMMER_INTERVAL_S": (
        SECOND,
        ("retention_trimmer", "retention_trimmer_own_date", "retention_trimmer_flows", "event_log_trimmer"),
    ),
    "FF_BUDGET_RESET_INTERVAL_S": (SECOND, ("budget_reset",)),
    "FF_QUOTA_RECONCILER_INTERVAL_S": (SECOND, ("quota_reconciler",)),
    "FF_UNBLOCK_INTERVAL_S": (SECOND, ("unblock",)),
    "FF_DEPENDENCY_RECONCILER_INTERVAL_S": (SECOND, ("message_delivery",)),
    "FF_CANCEL_RECONCILER_INTERVAL_S": (SECOND, ("flow_cancellation",)),
}
"""The longest pause of background duties: the variable, its unit, and the duties it sets."""


def _duty_settings() -> tuple[Setting, ...]:
    return tuple(
        Setting(
            name=variable.removeprefix("FF_").lower(),
            variable=variable,
            read=interval_ms(unit_ms),
            default=UNSET,
            default_shown="see below",
            summary=f"the longest pause of {', '.join(f'`{duty}`' for duty in duties)}; 0 turns it off",
        )
        for variable, (unit_ms, duties) in INTERVALS.items()
    )


DUTIES: Final = _duty_settings()
"""How often servers look at what is due."""

EVERYTHING: Final = (*COMMON, *SERVER, *WORKER, *DUTIES)

OTHERS: Final = {
    "FF_CONFIG": "The file with settings, unless `--config` names it.",
    "FF_DEBUG": "`1` shows a traceback with every error of the command line.",
    "FF_BENCH_DIR": "Where benchmarks make their databases. Default: the folder for temporary files.",
}
"""Variables that are no settings of servers and workers."""

_ONE_URL: Final = "Say it in `FF_URL`, which names every store in one line."
_NO_DRIFT: Final = (
    "Not needed: it is derived from the records in the commit that changes them, so it cannot drift."
)

_BY_MESSAGE: Final = "Cancelling is a message; see `FF_DEPENDENCY_RECONCILER_INTERVAL_S`."

REPLACED: Final = {
    "FF_BACKEND": _ONE_URL,
    "FF_HOST": _ONE_URL,
    "FF_PORT": _ONE_URL,
    "FF_TLS": "Write `valkeys://` or `?sslmode=verify-full` in `FF_URL`.",
    "FF_CLUSTER": "Write `valkey+cluster://` in `FF_URL`.",
    "FF_POSTGRES_URL": _ONE_URL,
    "FF_POSTGRES_POOL_SIZE": "Write `?connections=10` in `FF_URL`.",
    "FF_SQLITE_PATH": _ONE_URL,
    "FF_SQLITE_POOL_SIZE": "Not needed: one connection writes, and commands share its commits.",
    "FF_DEV_MODE": "Not needed: SQLite keeps every promise that the other stores keep.",
    "FF_LANES": "Not needed: duties look after every lane. `FF_WORKER_LANES` says what a worker claims.",
    "FF_FLOW_PARTITIONS": "Fixed at 256: ids carry their partition, and only Valkey uses it.",
    "FF_BUDGET_PARTITIONS": "Fixed: a budget's partition follows from its id.",
    "FF_QUOTA_PARTITIONS": "Fixed: a quota policy's partition follows from its id.",
    "FF_FORCE_LUA_RELOAD": "Not needed: the function library is loaded again whenever it differs.",
    "FF_SENTRY_DSN": "Log with `FF_LOG_FORMAT=json` and let your collector forward errors.",
    "FF_SENTRY_ENVIRONMENT": "See `FF_SENTRY_DSN`.",
    "FF_SENTRY_RELEASE": "See `FF_SENTRY_DSN`.",
    "FF_BACKEND_ACCEPT_UNREADY": "Not offered: a server that cannot reach its store does not start.",
    "FF_ENV": "Not needed: nothing depends on it.",
    "RUST_LOG": "Say it in `FF_LOG_LEVEL`.",
    "FF_INDEX_RECONCILER_INTERVAL_S": _NO_DRIFT,
    "FF_BUDGET_RECONCILER_INTERVAL_S": _NO_DRIFT,
    "FF_FLOW_PROJECTOR_INTERVAL_S": _NO_DRIFT,
    "FF_EDGE_CANCEL_DISPATCHER_INTERVAL_S": _BY_MESSAGE,
    "FF_EDGE_CANCEL_RECONCILER_INTERVAL_S": _BY_MESSAGE,
}
"""Variables of engines like this one that are not read here, and what to do instead."""

CHOOSES_THE_STORE: Final = ("FF_BACKEND", "FF_HOST", "FF_POSTGRES_URL", "FF_SQLITE_PATH")
"""Whoever sets one of these and no URL means another store than the default one."""


# Reading


def read_values(
    settings: Iterable[Setting],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    told: Mapping[str, str],
) -> dict[str, Any]:
    """The value of every setting: of the flag, else of the variable, else of the file, else its default.

    Args:
        settings: what to look for.
        flags: what the command line says, by the names of settings; what is no text is taken as it is.
        environment: the variables.
        told: what a file says; see ``read_file``.

    Raises:
        InvalidInput: a value breaks a rule; where it came from is named.
    """
    return {setting.name: _value_of(setting, flags, environment, told) for setting in settings}


def _value_of(
    setting: Setting, flags: Mapping[str, Any], environment: Mapping[str, str], told: Mapping[str, str]
) -> Any:
    given = flags.get(setting.name)
    if given is not None and not isinstance(given, str):
        return given
    for source, text in (
        (setting.flag, given),
        (setting.variable, environment.get(setting.variable)),
        (setting.alias or "", environment.get(setting.alias or "")),
        (f"{setting.name} in the settings file", told.get(setting.name)),
    ):
        if text or (text is not None and setting.may_be_empty):
            return _read(setting, source, text)
    return setting.default


def _read(setting: Setting, source: str, text: str) -> Any:
    try:
        return setting.read(text)
    except ValueError as error:
        shown = None if setting.read is secret_hex else repr(text)
        raise InvalidInput(field=source, value=shown, rule=f"must be {error}") from error


def read_file(path: Path | None) -> dict[str, str]:
    """What a TOML file says, as texts, by the names of settings; nothing without a file.

    Raises:
        InvalidInput: it is not there, is no TOML, or has a key that is no setting.
    """
    if path is None:
        return {}
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeError) as error:
        raise InvalidInput(field="config", value=str(path), rule=f"a readable TOML file ({error})") from error
    known = {setting.name for setting in EVERYTHING}
    unknown = sorted(told.keys() - known)
    if unknown:
        meant = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {meant[0]}?" if meant else "; see docs/reference/configuration.md"
        raise InvalidInput(field=f"config {path}", value=unknown[0], rule=f"a setting that exists{hint}")
    return {name: _as_text(value) for name, value in told.items()}


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def fill_environment(told: Mapping[str, str], environment: MutableMapping[str, str]) -> None:
    """Let a file speak where the environment is silent, for whoever reads the environment only."""
    for setting in EVERYTHING:
        if setting.name in told and not environment.get(setting.variable):
            environment[setting.variable] = told[setting.name]


def require_chosen_store(environment: Mapping[str, str], url: str | None) -> None:
    """Refuse variables that mean another store than the default one, where nothing names a store.

    Raises:
        InvalidInput: there is such a variable.
    """
    for name in CHOOSES_THE_STORE:
        if environment.get(name) and not url:
            raise InvalidInput(field=name, rule=f"a variable that is read. {REPLACED[name]}")


def unread_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that look like settings and are none, each with what to do about it."""
    known = {setting.variable for setting in EVERYTHING} | OTHERS.keys()
    known |= {setting.alias for setting in EVERYTHING if setting.alias is not None}
    found = {}
    for name in sorted(environment):
        if name in REPLACED:
            found[name] = REPLACED[name]
        elif name.startswith("FF_") and name not in known:
            meant = difflib.get_close_matches(name, known, n=1)
            found[name] = f"Did you mean {meant[0]}?" if meant else "There is no such setting."
    return found


def intervals_of(values: Mapping[str, Any]) -> dict[str, int | None]:
    """The intervals that were set, by the names of duties; None for a duty that is turned off."""
    return {
        duty: value
        for variable, (_, duties) in INTERVALS.items()
        for value in [values[variable.removeprefix("FF_").lower()]]
        for duty in duties
        if value is not UNSET
    }
