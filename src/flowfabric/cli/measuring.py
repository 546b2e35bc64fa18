"""Metrics and traces of the processes that the command line starts: a server, a worker."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from flowfabric.cli.exits import UsageError
from flowfabric.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flowfabric.engine.engine import Engine
    from flowfabric.engine.scanners.duties import Duty
    from flowfabric.observability.exposing import Exposed
    from flowfabric.observability.metrics import Metrics
    from flowfabric.observability.tracing import Tracing


def make_metrics() -> Metrics:
    """Make the metrics of this process, which is ours alone.

    Raises:
        UsageError: the library for it is not installed.
    """
    try:
        from prometheus_client import disable_created_metrics

        from flowfabric.observability.metrics import Metrics
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"{missing.name} is not installed. Install flowfabric[metrics] to serve metrics."
        ) from missing
    disable_created_metrics()  # type: ignore[no-untyped-call]
    metrics = Metrics()
    metrics.observe_process()
    return metrics


def make_tracing() -> Tracing:
    """Send the traces of this process to where the variables of OpenTelemetry say.

    Raises:
        UsageError: the library for it is not installed.
    """
    try:
        from flowfabric.observability.tracing import Tracing

        return Tracing.exporting()
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"{missing.name} is not installed. Install flowfabric[otel] to send traces."
        ) from missing


@contextmanager
def exposing(
    metrics: Metrics | None, engine: Engine | None, duties: Iterable[Duty], listen: str | None
) -> Iterator[Exposed | None]:
    """Serve the metrics at an address of their own, if there are any and an address is given.

    Yields what a server may serve as well; None without metrics.

    Raises:
        UsageError: nobody can listen there.
    """
    if metrics is None:
        yield None
        return
    from flowfabric.observability.exposing import Exposed, exposed_at

    exposed = Exposed(metrics, engine, duties)
    with ExitStack() as open_until_the_end:
        if listen is not None:
            try:
                open_until_the_end.enter_context(exposed_at(listen, exposed))
            except InvalidInput as error:
                raise UsageError(str(error)) from error
        yield exposed
