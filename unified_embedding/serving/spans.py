"""A model's own spans, in the trace that its request brings.

Triton traces a call and each of its steps; what happens inside a step only the step can tell.
"""

import json
import os
import threading
from collections.abc import Mapping
from typing import Any, Final

_SERVICE: Final = "triton-inference-server"  # Triton's own name for it
_PARTING_S: Final = 2.0


def collector(environment: Mapping[str, str]) -> str:
    """Where traces go, by OpenTelemetry's own variables; empty for nowhere.

    OpenTelemetry protocol exporter: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is the whole address,
    OTEL_EXPORTER_OTLP_ENDPOINT is without v1/traces.
    """
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    whole = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    return whole or (f"{base.rstrip('/')}/v1/traces" if base else "")


class Spans:
    """Sends spans to the collector, where there is one and OpenTelemetry's SDK is installed."""

    def __init__(self, model: str) -> None:
        """`model` is the name of the model, which each span bears."""
        self._model = model
        where = collector(os.environ)
        self._provider: Any = _provider(where) if where else None

    def context(self, request: Any) -> Any:
        """Where a request's spans belong; None when nobody traces it."""
        if self._provider is None:
            return None
        told = request.trace().get_context()
        return json.loads(told) if told else None

    def add(self, context: Any, *spans: tuple[str, int, int]) -> None:
        """Spans under what `context` returned: name, begin and end in nanoseconds since 1970."""
        if context is None:
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(context)
        tracer = self._provider.get_tracer(__name__)
        for name, began, ended in spans:
            attributes = {"triton.model_name": self._model}
            span = tracer.start_span(name, parent, attributes=attributes, start_time=began)
            span.end(ended)

    def close(self) -> None:
        """Send what has not been sent; a collector that does not answer in time misses it."""
        if self._provider is not None:
            parting = threading.Thread(target=self._provider.shutdown, daemon=True)
            parting.start()
            parting.join(_PARTING_S)


def _provider(where: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", _SERVICE)
    resource = Resource.create({"service.name": name})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(where)))
    return provider
