"""Spans as OTLP writes them: the only module that needs the extra ``otel``, which brings the messages of OTLP.

https://opentelemetry.io/docs/specs/otlp/; ids are bytes, times are nanoseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, SpanFlags, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

from dispatch import __version__
from dispatch.core.spans import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dispatch.core.spans import Span
    from dispatch.core.trace_ids import Link

_KINDS: Final = {
    Kind.PRODUCER: Message.SPAN_KIND_PRODUCER,
    Kind.CONSUMER: Message.SPAN_KIND_CONSUMER,
    Kind.CLIENT: Message.SPAN_KIND_CLIENT,
    Kind.INTERNAL: Message.SPAN_KIND_INTERNAL,
}
_SAMPLED: Final = 1
_KNOWS_REMOTE: Final = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE: Final = _KNOWS_REMOTE | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


def encode(spans: Iterable[Span], resource: Mapping[str, str | int]) -> bytes:
    """Return the body of one request; ``resource`` says who sends it."""
    scope = ScopeSpans(
        scope=InstrumentationScope(name="dispatch", version=__version__), spans=[_span(span) for span in spans]
    )
    sent = ResourceSpans(resource=Resource(attributes=_attributes(resource)), scope_spans=[scope])
    body: bytes = ExportTraceServiceRequest(resource_spans=[sent]).SerializeToString()
    return body


def _span(span: Span) -> Message:
    began_ns, ended_ns = span.times
    attributes = dict(span.attributes)
    status = None
    if span.error:
        attributes["error.type"] = span.error
        status = Status(code=Status.STATUS_CODE_ERROR, message=span.error)
    return Message(
        trace_id=_trace_id(span.trace.trace_id),
        span_id=_span_id(span.span_id),
        parent_span_id=b"" if span.parent_id is None else _span_id(span.parent_id),
        flags=_SAMPLED | (_REMOTE if span.is_parent_remote else _KNOWS_REMOTE),
        name=_text(span.name),
        kind=_KINDS[span.kind],
        start_time_unix_nano=began_ns,
        # A clock may have been set back meanwhile.
        end_time_unix_nano=max(began_ns, ended_ns),
        attributes=_attributes(attributes),
        links=[_link(link) for link in span.links],
        status=status,
    )


def _link(link: Link) -> Message.Link:
    return Message.Link(
        trace_id=_trace_id(link.trace_id),
        span_id=_span_id(link.span_id),
        flags=_REMOTE | (_SAMPLED if link.is_sampled else 0),
    )


def _attributes(values: Mapping[str, str | int]) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(value)) for name, value in values.items()]


def _value(value: str | int) -> AnyValue:
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=_text(value))


def _text(text: str) -> str:
    # A lone surrogate, which JSON can hold, would be refused with the whole batch.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _trace_id(ident: int) -> bytes:
    return ident.to_bytes(16)


def _span_id(ident: int) -> bytes:
    return ident.to_bytes(8)
