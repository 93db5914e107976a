"""A child process that posts a task to a URL: the order comes on stdin, the body of the answer goes to stdout.

The order is JSON: ``{"url", "headers", "body"}``. It is read from stdin because
headers hold secrets and arguments can be read by others. Exit codes: 0 for an
answer 2xx that came whole, 75 for "not now" (429, 503, or Retry-After), else 1
with a sentence on stderr. Timeouts, cancelling and killing are the worker's: this is a process
like any other. The standard library only; it is run as a file.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

_CHUNK_BYTES = 65_536
_SAID_BYTES_MAX = 2_000
_NOT_NOW = frozenset({429, 503})
_EXIT_TEMPFAIL = 75
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOT_FOLLOWED = "redirects are not followed; write the address that answers into the executor's url."


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Secrets in headers are for the host that the operator named, and for no other one."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def call(order: dict[str, Any]) -> int:
    """Make the request, write what came to stdout or stderr, and return the exit code."""
    headers = {"Content-Type": "application/json", "User-Agent": "dispatch"}
    if "TRACEPARENT" in os.environ:
        headers["traceparent"] = os.environ["TRACEPARENT"]
    request = urllib.request.Request(  # noqa: S310 - the settings allow http and https only
        order["url"],
        data=json.dumps(order["body"]).encode(),
        headers={**headers, **order["headers"]},
        method="POST",
    )
    host = urllib.parse.urlsplit(order["url"]).netloc
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request) as answer:
            left = answer.length
            # Each piece of a slow answer at once: it is a sign of life.
            while chunk := answer.read1(_CHUNK_BYTES):
                left = None if left is None else left - len(chunk)
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            if left:
                # Reading in pieces does not tell a body that ends early from a whole one.
                return _failed(host, f"the answer ended {left} bytes before its Content-Length")
    except urllib.error.HTTPError as exc:
        with exc:
            sys.stderr.write(f"{exc.code} {exc.reason}{_said(exc)}\n")
        return _EXIT_TEMPFAIL if exc.code in _NOT_NOW or "Retry-After" in exc.headers else 1
    except http.client.IncompleteRead:
        return _failed(host, "the answer ended before it was whole")
    except (OSError, http.client.HTTPException) as exc:
        return _failed(host, _why(exc))
    return 0


def _said(exc: urllib.error.HTTPError) -> str:
    """Return what the body of a refusal says, with what there is to know of it."""
    try:
        said = exc.read(_SAID_BYTES_MAX).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        said = ""
    if exc.code in _REDIRECTS:
        said = f"{_NOT_FOLLOWED} {said}".strip()
    return f": {said}" if said else ""


def _why(exc: Exception) -> str:
    cause = exc.reason if isinstance(exc, urllib.error.URLError) else exc
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror[:1].lower() + cause.strerror[1:]
    return str(cause) or type(cause).__name__


def _failed(host: str, why: str) -> int:
    # The host and no more of the URL: a path or a query may hold a secret.
    sys.stderr.write(f"The request to {host} failed: {why}.\n")
    return 1


if __name__ == "__main__":
    sys.exit(call(json.load(sys.stdin)))
