"""OpenTelemetry traces: a span for each request, under its client's trace if it sent one.

Spans carry what metrics carry, for one request (names of OpenTelemetry's conventions for generative
AI), and nothing of prompts and answers. Needs the extra `tracing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from starlette.types import ASGIApp

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter


_UNTRACED = r"/(health|livez|readyz|ping|metrics)$"


class Span(Protocol):
    """What describes a request."""

    def set_attribute(self, key: str, value: str | int | float) -> None:
        """Say something about it."""


class Tracing:
    """Makes spans and sends them.

    Args:
        endpoint: of an OTLP/HTTP collector.
        exporter: sends spans instead; for tests.

    Raises:
        ModuleNotFoundError: the extra is not installed.
    """

    def __init__(self, endpoint: str, exporter: SpanExporter | None = None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "twofour"})
        self.provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        sender = exporter or OTLPSpanExporter(endpoint=endpoint)
        self.provider.add_span_processor(BatchSpanProcessor(sender))

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app`, with a span for each of its requests."""
        from starlette.middleware.opentelemetry import OpenTelemetryMiddleware

        made: ASGIApp = OpenTelemetryMiddleware(
            app, tracer_provider=self.provider, excluded_urls=_UNTRACED
        )
        return made

    def span(self) -> Span:
        """That of the request in whose context this is called."""
        from opentelemetry.trace import get_current_span

        span: Span = get_current_span()
        return span

    def close(self) -> None:
        """Send what is left."""
        self.provider.shutdown()
