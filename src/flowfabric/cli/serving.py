"""``server``: serve a store over HTTP until told to stop. ``tokens``: make a token for it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from typing import TYPE_CHECKING

from flowfabric.app import retention_ms_of, seed_signing_key
from flowfabric.cli.configuring import settings_file, settings_flags, warn_of_unread_variables
from flowfabric.cli.exits import INTERRUPTED, OK, UsageError
from flowfabric.cli.measuring import exposing, make_metrics, make_tracing
from flowfabric.cli.output import print_json
from flowfabric.cli.session import run
from flowfabric.cli.signals import stop_on_signals
from flowfabric.cli.working import SURVIVES
from flowfabric.engine.engine import Engine
from flowfabric.engine.scanners import Scanners
from flowfabric.engine.scanners.duties import duties, with_intervals
from flowfabric.errors import InvalidInput
from flowfabric.observability.logs import configure_logging
from flowfabric.settings import fill_environment, read_file, require_chosen_store
from flowfabric.urls import DEFAULT_URL, store_for

if TYPE_CHECKING:
    from argparse import Namespace

    from flowfabric.observability.metrics import Metrics
    from flowfabric.server.access import TokenEntry
    from flowfabric.server.settings import Settings

log = logging.getLogger("flowfabric.cli")


def serve(arguments: Namespace) -> int:
    """Carry out ``server``."""
    settings = _settings_of(arguments)
    configure_logging(settings.log_format, settings.log_level)
    try:
        kept_ms = retention_ms_of(None)
    except ValueError as error:
        raise UsageError(f"FF_RETENTION: {error}.") from error
    try:
        run(_serve(arguments, settings, kept_ms))
    except asyncio.CancelledError:
        return INTERRUPTED
    return OK


def make_token(arguments: Namespace) -> int:
    """Carry out ``new-token``: the token is shown this once, its digest goes into the tokens file."""
    from flowfabric.server.access import Role, entry_for, new_token

    token = new_token()
    namespace = None if arguments.everywhere else arguments.namespace
    entry = entry_for(token, arguments.name, [Role(word) for word in arguments.roles], namespace)
    if arguments.json:
        print_json({"token": token, "entry": entry})
        return OK
    print(token)
    print("\n".join(_toml_of(entry)), file=sys.stderr)
    return OK


def _toml_of(entry: TokenEntry) -> list[str]:
    """The entry as a table of the tokens file. A JSON string is a TOML string too."""
    fields = {"name": entry.name, "sha256": entry.sha256, "roles": entry.roles, "namespace": entry.namespace}
    told = {name: json.dumps(value) for name, value in fields.items() if value is not None}
    return ["[[token]]", *(f"{name} = {text}" for name, text in told.items())]


def _settings_of(arguments: Namespace) -> Settings:
    try:
        from flowfabric.server.settings import read_settings
    except ModuleNotFoundError as missing:
        raise UsageError(f"{missing.name} is not installed. Install flowfabric[server].") from missing
    file = settings_file(arguments)
    try:
        settings = read_settings(settings_flags(arguments), os.environ, file)
        fill_environment(read_file(file), os.environ)
        require_chosen_store(os.environ, arguments.url_given or os.environ.get("FF_URL"))
    except InvalidInput as error:
        raise UsageError(str(error)) from error
    return settings


async def _serve(arguments: Namespace, settings: Settings, kept_ms: int | None) -> None:
    from flowfabric.server.serving import make_server

    warn_of_unread_variables()
    url = arguments.url_given or os.environ.get("FF_URL") or DEFAULT_URL
    metrics = make_metrics() if settings.options.metrics or settings.metrics_listen else None
    tracing = make_tracing() if settings.traces else None
    layers = [one.layer for one in (metrics, tracing) if one is not None]
    async with Engine(store_for(url), layers=layers, observer=metrics) as engine:
        await seed_signing_key(engine)
        if tracing is not None and engine.durability is not None:
            tracing.backend = engine.durability.store
        done = with_intervals(duties(retention_ms=kept_ms), settings.intervals)
        scanners = Scanners(engine, done)
        scanners.start()
        with exposing(metrics, engine, done, settings.metrics_listen) as exposed:
            try:
                server = make_server(engine, settings, scanners, exposed, tracing)
                stopped = stop_on_signals(server.stop)
                _announce(engine, settings, as_json=arguments.json)
                await server.serve()
            finally:
                await _stop(scanners, settings.shutdown_timeout_ms, metrics)
    log.info("the server stopped%s", f" by {stopped[0].name}" if stopped else "")


async def _stop(scanners: Scanners, patience_ms: int, metrics: Metrics | None) -> None:
    """Stop the duties after the commands in flight, or without them if those take too long.

    What was cut off is done again by the duties of another process, or of the next one.
    """
    try:
        async with asyncio.timeout(patience_ms / 1_000):
            await scanners.stop()
    except TimeoutError:
        log.exception("background duties were cut off, because they did not end in time")
        if metrics is not None:
            metrics.ended_late()


def _announce(engine: Engine, settings: Settings, *, as_json: bool) -> None:
    durability = engine.durability
    assert durability is not None
    who = f"{len(settings.options.tokens)} token(s)" if settings.options.tokens else "everybody"
    log.info(
        "serving %s, durability %s (%s), on %s:%d for %s",
        durability.store,
        durability.level,
        SURVIVES[durability.level],
        settings.host,
        settings.port,
        who,
    )
    if settings.options.insecure:
        log.warning("everybody who reaches this address may do everything; set tokens")
    if as_json:
        print_json({"started": {"host": settings.host, "port": settings.port, "durability": durability}})
