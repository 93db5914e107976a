"""From spans to the collector, with OpenTelemetry's SDK: the only module that needs the extra ``otel``.

The SDK batches in a thread of its own; its queue is bounded and drops what does
not fit. What a collector does not take is dropped too: traces are for looking
at, and a task never waits for them.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from dispatch import __version__
from dispatch.core.spans import Kind
from dispatch.traces.sending import NotTakenError, Sender

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from dispatch.core.spans import Span

QUEUE_MAX: Final = 2_048
_BATCH_MAX: Final = 512
_EVERY_MS: Final = 1_000
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_KINDS: Final = {
    Kind.PRODUCER: SpanKind.PRODUCER,
    Kind.CONSUMER: SpanKind.CONSUMER,
    Kind.CLIENT: SpanKind.CLIENT,
    Kind.INTERNAL: SpanKind.INTERNAL,
}


class Exporter:
    """Takes spans of one process and sends them in the background. ``add`` from one thread at a time."""

    def __init__(self, process: str, sender: Sender, log: Any) -> None:
        # A full queue or a collector that is away is told of once, by us.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        resource = Resource.create(
            {
                "service.name": f"dispatch-{process}",
                "service.namespace": "dispatch",
                "service.version": __version__,
                "host.name": socket.gethostname(),
                "process.pid": os.getpid(),
            }
        )
        self._ids = _GivenIds()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                _ToCollector(sender, log),
                max_queue_size=QUEUE_MAX,
                schedule_delay_millis=_EVERY_MS,
                max_export_batch_size=_BATCH_MAX,
                export_timeout_millis=_EVERY_MS,
            )
        )
        self._tracer = self._provider.get_tracer("dispatch", __version__)

    def add(self, span: Span) -> None:
        """Queue a span that is over; its ids are its own."""
        self._ids.trace_id, self._ids.span_id = span.trace.trace_id, span.span_id
        began_ns, ended_ns = span.times
        # An empty context, or the span would become the child of whatever is current here.
        context = Context()
        if span.parent_id is not None:
            parent = SpanContext(span.trace.trace_id, span.parent_id, span.is_parent_remote, _SAMPLED)
            context = set_span_in_context(NonRecordingSpan(parent), context)
        made = self._tracer.start_span(
            span.name,
            context,
            _KINDS[span.kind],
            dict(span.attributes),
            [_link(link.trace_id, link.span_id, is_sampled=link.is_sampled) for link in span.links],
            began_ns,
        )
        if span.error:
            made.set_attribute("error.type", span.error)
            made.set_status(Status(StatusCode.ERROR, span.error))
        # A clock may have been set back meanwhile.
        made.end(max(began_ns, ended_ns))

    def close(self, patience_s: float) -> None:
        """Send what is left, for so long at most."""
        thread = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        thread.start()
        thread.join(patience_s)


def _link(trace_id: int, span_id: int, *, is_sampled: bool) -> Link:
    return Link(SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(int(is_sampled))))


class _GivenIds(IdGenerator):
    """Gives the SDK the ids of the span that is made next, instead of random ones."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class _ToCollector(SpanExporter):
    """Sends batches; what is not taken is lost, and said once until something is taken again."""

    def __init__(self, sender: Sender, log: Any) -> None:
        self._sender = sender
        self._log = log
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            self._sender.send(encode_spans(spans).SerializeToString())
        except NotTakenError as exc:
            if not self._lost:
                self._log.warning("traces_not_sent", reason=str(exc))
            self._lost += len(spans)
            return SpanExportResult.FAILURE
        if self._lost:
            self._log.info("traces_sent_again", lost=self._lost)
            self._lost = 0
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Keep the connection for what the thread still sends; it ends with the process."""
