"""Posts spans to an OTLP collector over HTTP: one connection, short deadlines, no redirects, no proxy.

https://opentelemetry.io/docs/specs/otlp/#otlphttp. Only the settings decide what
is sent where: OpenTelemetry's own exporter would add the headers that stand in
OTEL_EXPORTER_OTLP_HEADERS, which may be the secret of another collector.
"""

from __future__ import annotations

import http.client
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from dispatch.errors import ConfigurationError, DispatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

PATH: Final = "/v1/traces"
DEADLINE_S: Final = 3.0
"""For connecting, and for each silence of the collector."""
_ANSWER_BYTES_MAX: Final = 65_536


class NotTakenError(DispatchError):
    """The collector did not take the spans; the sentence says why, without its URL."""


def headers_of(text: str) -> dict[str, str]:
    """Read ``name=value,name=value``, percent-encoded where a comma or a blank is meant, as OTEL_..._HEADERS have it.

    Raises ConfigurationError, which does not show the text.
    """
    found = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        name, value = name.strip(), unquote(value.strip())
        is_good = equals and name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not is_good or not value.isprintable() or not value.isascii():
            raise ConfigurationError(
                "DISPATCH_TRACES_HEADERS must be name=value, comma-separated, with printable values."
            )
        found[name] = value
    return found


class Sender:
    """Sends bodies one after the other, from one thread."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._parts = urlsplit(url)
        self._headers = {**headers, "Content-Type": "application/x-protobuf", "User-Agent": "dispatch"}
        self._connection: http.client.HTTPConnection | None = None

    def send(self, body: bytes) -> None:
        """Post one body. Raises NotTakenError."""
        is_kept = self._connection is not None
        try:
            try:
                self._post(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close()
                if not is_kept:
                    raise
                # The collector closed a connection that had been idle; nothing of it is lost.
                self._post(body)
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise NotTakenError(_why(exc)) from exc

    def close(self) -> None:
        """Close the connection; the next body opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, body: bytes) -> None:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request("POST", self._parts.path + PATH, body, self._headers)
        with self._connection.getresponse() as answer:
            status, said = answer.status, answer.read(_ANSWER_BYTES_MAX + 1)
        if len(said) > _ANSWER_BYTES_MAX:
            self.close()
        if not 200 <= status < 300:
            raise NotTakenError(f"it answered with status {status}")

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=DEADLINE_S, context=context)
        return http.client.HTTPConnection(host, port, timeout=DEADLINE_S)


def _why(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return "the time was up"
    said = exc.strerror if isinstance(exc, OSError) else None
    return (said or str(exc) or type(exc).__name__).lower()
