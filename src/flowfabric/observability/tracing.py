"""OpenTelemetry traces: one span for each command, handler and request, in the trace of who asked.

``Tracing`` goes where commands, handlers and requests pass::

    ff = FlowFabric("postgresql://…", tracing=Tracing())

The trace of a submitter is stored with the execution, as W3C trace context in two tags, and a
handler runs in it, whoever runs it and whenever that is.

The rules this module keeps:

- An attribute names things by their ids. None holds a payload, a path as it was asked for, or a secret.
- An exception has words of users and of stores in it, so a span tells its code only.
- Where no provider is configured, spans come to nothing, and everything else goes on.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flowfabric.contracts.executions import TRACE_TAGS
from flowfabric.contracts.limits import TAG_VALUE_CHARS_MAX
from flowfabric.engine.layers import Traced, outcome_of
from flowfabric.version import installed_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.trace import Span

    from flowfabric.contracts.leases import ClaimedWork
    from flowfabric.engine.layers import Door

SERVICE: Final = "flowfabric"
LINKS_MAX: Final = 32
"""How many callers of one request with many commands are linked to it."""
SERVER_ERRORS: Final = 500
EXPORT_S: Final = 2.0
"""How long a collector is tried for one batch of spans: so much longer an end takes without it."""
EXPORT_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")

_W3C: Final = TraceContextTextMapPropagator()


class Tracing:
    """Opens spans and carries trace context.

    Args:
        provider: where spans go; the one that is configured for the process when absent.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self.backend: str | None = None
        """The kind of the store, once it is known."""
        self._tracer = trace.get_tracer(SERVICE, installed_version(), provider)

    @classmethod
    def exporting(cls) -> Tracing:
        """Send spans as the variables of OpenTelemetry say, unless a provider is configured already.

        ``OTEL_EXPORTER_OTLP_ENDPOINT`` names the collector, ``OTEL_SERVICE_NAME`` the service.
        """
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - heavy
                OTLPSpanExporter,
            )

            resource = Resource.create({"service.version": installed_version()})
            if resource.attributes.get("service.name", "unknown_service") == "unknown_service":
                resource = resource.merge(Resource({"service.name": SERVICE}))
            provider = TracerProvider(resource=resource)
            provider.add_span_processor(
                BatchSpanProcessor(OTLPSpanExporter(timeout=export_timeout_s(os.environ)))
            )
            trace.set_tracer_provider(provider)
        return cls()

    # Commands

    def layer(self, inner: Door) -> Door:
        """Wrap a door so that every command that passes it has a span."""
        return Traced(inner, self)

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, str | int]) -> Iterator[Span]:
        """A span that is open for as long as the context is, and sees exceptions pass."""
        told: dict[str, str | int] = dict(attributes)
        if self.backend is not None:
            told["backend"] = self.backend
        with self._tracer.start_as_current_span(
            name, attributes=told, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except Exception as error:
                span.set_attribute("error.type", outcome_of(error))
                span.set_status(Status(StatusCode.ERROR, outcome_of(error)))
                raise

    # From the submitter to the handler

    def carried(self) -> dict[str, str]:
        """The trace in which we are, as tags for what is submitted now; none outside a trace."""
        headers = self.headers()
        return {
            tag: headers[header]
            for header, tag in TRACE_TAGS.items()
            if header in headers and len(headers[header]) <= TAG_VALUE_CHARS_MAX
        }

    @contextmanager
    def running(self, claim: ClaimedWork, worker_instance_id: str) -> Iterator[Callable[[str], None]]:
        """The span of a handler's run, in the trace of who submitted the execution.

        Yields what to call with a category if the attempt fails.
        """
        stored = {header: claim.tags[tag] for header, tag in TRACE_TAGS.items() if tag in claim.tags}
        attributes: dict[str, str | int] = {
            "execution_id": claim.execution_id,
            "execution_kind": claim.execution_kind,
            "lane": claim.lane_id,
            "attempt_id": claim.attempt_id,
            "attempt_index": claim.attempt_index,
            "lease_id": claim.lease_id,
            "lease_epoch": claim.lease_epoch,
            "worker_instance_id": worker_instance_id,
        }
        with self._tracer.start_as_current_span(
            f"ff.run {claim.execution_kind}",
            context=_W3C.extract(stored),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield lambda category: span.set_status(Status(StatusCode.ERROR, category))

    # HTTP

    def headers(self) -> dict[str, str]:
        """The trace in which we are, as headers of a request."""
        found: dict[str, str] = {}
        _W3C.inject(found)
        return found

    def caller(self) -> SpanContext:
        """The span in which we are, to be linked to a request that carries its command."""
        return trace.get_current_span().get_span_context()

    @contextmanager
    def asking(self, method: str, route: str, callers: Iterable[SpanContext]) -> Iterator[dict[str, str]]:
        """The span of a request to a server. Yields the headers that carry it there.

        It belongs to the trace of the first caller; the others are linked to it.
        """
        known = list({caller.span_id: caller for caller in callers if caller.is_valid}.values())
        parent = trace.set_span_in_context(trace.NonRecordingSpan(known[0])) if known else None
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            context=parent,
            kind=SpanKind.CLIENT,
            attributes={"http.request.method": method, "http.route": route},
            links=[Link(caller) for caller in known[1 : LINKS_MAX + 1]],
            record_exception=False,
        ):
            yield self.headers()

    @contextmanager
    def serving(
        self, method: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> Iterator[Callable[[str | None, int, str], None]]:
        """The span of a request to us, in the trace of the client. Yields what to call with its end."""
        stored = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if name in (b"traceparent", b"tracestate")
        }
        with self._tracer.start_as_current_span(
            method,
            context=_W3C.extract(stored),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield lambda route, status, request_id: _end_request(span, method, route, status, request_id)


def export_timeout_s(environment: Mapping[str, str]) -> float | None:
    """How long a collector is tried for one batch; None where the variables of OpenTelemetry say it.

    >>> export_timeout_s({}), export_timeout_s({"OTEL_EXPORTER_OTLP_TIMEOUT": "10"})
    (2.0, None)
    """
    return None if any(environment.get(name) for name in EXPORT_VARIABLES) else EXPORT_S


def _end_request(span: Span, method: str, route: str | None, status: int, request_id: str) -> None:
    """Name a request's span after its route, and say what came of it."""
    attributes: dict[str, Any] = {"http.response.status_code": status, "request_id": request_id}
    if route is not None:
        span.update_name(f"{method} {route}")
        attributes["http.route"] = route
    span.set_attributes(attributes)
    if status >= SERVER_ERRORS:
        span.set_status(Status(StatusCode.ERROR, str(status)))
