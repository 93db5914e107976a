"""A collector that takes OTLP over HTTP on loopback and keeps the spans; it can be rude."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Seen:
    """One span as it came, its values as Python has them."""

    process: str
    """``service.name`` of the process that sent it."""
    resource: dict[str, Any]
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    is_error: bool
    message: str


class Collector:
    """Listens from the beginning to the end of a ``with``. ``status`` is what it answers, ``hold`` makes it wait."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.bodies: list[bytes] = []
        """Every request as it came, headers and all."""
        self.status = 200
        self.hold = threading.Event()
        """While it is not set no request is answered."""
        self.hold.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="collector")

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def named(self, name: str) -> list[Seen]:
        """Return the spans whose name begins with this word, in the order of their beginnings."""
        return sorted((s for s in self.spans if s.name.partition(" ")[0] == name), key=lambda s: s.start_ns)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.bodies.append(str(self.headers).encode() + body)
                collector.hold.wait(30)
                if collector.status == 200 and self.path == "/v1/traces":
                    collector.spans += _spans_in(body)
                self.send_response(collector.status if self.path == "/v1/traces" else 404)
                if collector.status in range(300, 400):
                    self.send_header("Location", "/v1/traces")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


def _plain(values: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in values}


def _spans_in(body: bytes) -> list[Seen]:
    found = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _plain(group.resource.attributes)
        for scope in group.scope_spans:
            found += [
                Seen(
                    resource["service.name"],
                    resource,
                    span.name,
                    span.kind,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _plain(span.attributes),
                    tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    span.status.message,
                )
                for span in scope.spans
            ]
    return found
