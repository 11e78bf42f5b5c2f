"""OpenTelemetry traces, a span a request; nothing is sent unless the operator says where."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from specplug.types import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from specplug.serving.logs import Record
    from specplug.serving.settings import ServerSettings

_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_LAST_SPANS = 3.0  # seconds


class Tracer:
    """Makes spans of records, and sends them on a thread of its own.

    Args:
        endpoint: base address of an OTLP collector; None: the standard variables say.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str | None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise MissingExtraError(
                "traces need OpenTelemetry: pip install 'specplug[tracing]'"
            ) from None
        where = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
        name = os.environ.get("OTEL_SERVICE_NAME", "specplug")
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=where)))
        self._tracer = self._provider.get_tracer("specplug.serving")

    def span(self, record: Record, route: str, headers: Mapping[str, str]) -> None:
        """The span of a request that has ended, child of its ``traceparent`` if it has one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        began = int(record.began * 1e9)
        span = self._tracer.start_span(
            f"{record.method} {route}",
            context=TraceContextTextMapPropagator().extract(dict(headers)),
            kind=SpanKind.SERVER,
            start_time=began,
            attributes={
                "http.request.method": record.method,
                "http.route": route,
                "http.response.status_code": record.status,
                "specplug.request_id": record.id,
                "specplug.outcome": record.outcome,
                **{f"specplug.{name}": value for name, value in record.answer.items()},
            },
        )
        if record.first_token is not None:
            first = began + int((record.first_token - record.started) * 1e9)
            span.add_event("first token", timestamp=first)
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(began + int(record.seconds * 1e9))

    def close(self) -> None:
        """Send what is left, for three seconds at most: a collector may not answer."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_LAST_SPANS)


def tracer_for(settings: ServerSettings) -> Tracer | None:
    """The operator's tracer; None: nobody asked for traces."""
    if settings.otlp_endpoint is None and not any(map(os.environ.get, _VARIABLES)):
        return None
    return Tracer(settings.otlp_endpoint)
