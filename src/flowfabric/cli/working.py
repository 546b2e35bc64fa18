"""``worker``: run an app's handlers until told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from flowfabric.app import FlowFabric
from flowfabric.cli.configuring import warn_of_unread_variables, worker_settings
from flowfabric.cli.exits import INTERRUPTED, OK, UsageError
from flowfabric.cli.measuring import exposing, make_metrics, make_tracing
from flowfabric.cli.output import print_json
from flowfabric.cli.session import run
from flowfabric.cli.signals import stop_on_signals
from flowfabric.contracts.ids import Namespace as NamespaceName
from flowfabric.engine.engine import Engine
from flowfabric.engine.scanners.duties import DUTIES
from flowfabric.observability.logs import configure_logging

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from flowfabric.worker import Worker

SURVIVES: Final = {
    "D0": "nothing survives this process",
    "D1": "survives a killed process",
    "D2": "survives power loss",
    "D3": "survives the loss of this host",
}

THREADS: Final = "flowfabric-handler"
"""How the names of the threads begin in which handlers and their steps run."""
THREADS_PATIENCE_S: Final = 1.0

log = logging.getLogger("flowfabric.cli")


def work(arguments: Namespace) -> int:
    """Carry out ``worker``."""
    settings = worker_settings(arguments)
    configure_logging(settings["log_format"], settings["log_level"])
    warn_of_unread_variables()
    app = load_app(arguments.app)
    gc.freeze()  # what was imported stays, so the garbage collector need not walk over it
    if arguments.url_given:
        app.url = arguments.url_given
    if arguments.namespace_given:
        app.namespace = NamespaceName(arguments.namespace_given)
    try:
        run(_serve(app, arguments, settings))
    except asyncio.CancelledError:
        return INTERRUPTED
    return OK


def _leave_hung_threads_behind(code: int) -> None:
    """End the process if a handler hangs in a thread, which nothing can end from outside.

    Everything else is closed by now. Without this the interpreter would wait for the thread.
    """
    deadline = time.monotonic() + THREADS_PATIENCE_S
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    hung = [thread.name for thread in threads if thread.is_alive()]
    if hung:
        log.warning("leaving although handlers hang in %d thread(s)", len(hung))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)


def load_app(name: str) -> FlowFabric:
    """Import the FlowFabric that ``module:attribute`` names; the current folder is searched first.

    Raises:
        UsageError: there is none. What the module itself raises passes through.
    """
    module_name, separator, attribute = name.partition(":")
    if not (module_name and separator and attribute):
        raise UsageError(f"{name!r} does not name an app; write module:attribute, such as app:ff.")
    if (folder := str(os.getcwd())) not in sys.path:  # noqa: PTH109 - sys.path holds text
        sys.path.insert(0, folder)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"there is no module {error.name!r} here. Run this in its folder, or set PYTHONPATH."
        ) from error
    app = getattr(module, attribute, None)
    if not isinstance(app, FlowFabric):
        raise UsageError(
            f"{attribute!r} in module {module_name!r} is {type(app).__name__}, not a FlowFabric."
        )
    return app


async def _serve(app: FlowFabric, arguments: Namespace, settings: dict[str, Any]) -> None:
    steps = ThreadPoolExecutor(thread_name_prefix=f"{THREADS}-step")
    asyncio.get_running_loop().set_default_executor(steps)
    code = INTERRUPTED
    listen = settings["metrics_listen"]
    if listen and app.metrics is None:
        app.metrics = make_metrics()
    if settings["traces"] and app.tracing is None:
        app.tracing = make_tracing()
    try:
        async with app:
            engine = app.engine if isinstance(app.engine, Engine) else None
            with exposing(app.metrics, engine, DUTIES, listen):
                await _run_worker(app, settings, as_json=arguments.json)
        code = OK
    finally:
        steps.shutdown(wait=False, cancel_futures=True)
        _leave_hung_threads_behind(code)


async def _run_worker(app: FlowFabric, settings: dict[str, Any], *, as_json: bool) -> None:
    worker = app.worker(**worker_options(settings))
    stopped = stop_on_signals(worker.stop)
    _announce(app, worker, as_json=as_json)
    await worker.run()
    log.info("worker %s stopped%s", worker.instance_id, f" by {stopped[0].name}" if stopped else "")
    if as_json:
        print_json({"stopped": {"worker_instance_id": worker.instance_id}})


def worker_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were set; all others keep their defaults."""
    drain_ms = settings["drain_timeout"]
    options = {
        "lanes": settings["lanes"],
        "concurrency": settings["concurrency"],
        "capabilities": frozenset(settings["capabilities"] or ()),
        "worker_id": settings["worker_id"],
        "lease_ttl_ms": settings["lease_ttl"],
        "drain_timeout_s": None if drain_ms is None else drain_ms / 1_000,
    }
    return {name: value for name, value in options.items() if value is not None}


def _announce(app: FlowFabric, worker: Worker, *, as_json: bool) -> None:
    """Say once where this worker works and what an acknowledged command survives there."""
    durability = app.engine.durability
    assert durability is not None
    options = worker.options
    log.info(
        "worker %s on %s %s, durability %s (%s); namespace %s, lanes %s, concurrency %d; handlers: %s",
        worker.instance_id,
        durability.store,
        durability.settings.get("path", ""),
        durability.level,
        SURVIVES[durability.level],
        app.namespace,
        ",".join(options.lanes),
        options.concurrency,
        ", ".join(sorted(app.handlers)) or "none",
    )
    if as_json:
        started = {
            "worker_instance_id": worker.instance_id,
            "namespace": app.namespace,
            "lanes": list(options.lanes),
            "concurrency": options.concurrency,
            "handlers": sorted(app.handlers),
            "durability": durability,
        }
        print_json({"started": started})
