"""Metrics as Prometheus reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from flowfabric.server.calls import refused
from flowfabric.server.routes.table import PlainText, route

if TYPE_CHECKING:
    from flowfabric.server.calls import Call

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@route("GET", "/metrics", statuses={200: PlainText})
async def read_metrics(call: Call) -> Response:
    """Tell what this process has counted, and what its store holds, if the server has metrics on."""
    watched = call.service.watched
    if watched is None or not call.service.options.metrics:
        raise refused(404, "not found: this server has no metrics; FF_METRICS=on serves them")
    return Response(await watched.render(), headers={"Content-Type": CONTENT_TYPE})
