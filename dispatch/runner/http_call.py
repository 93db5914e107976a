"""A child process that posts a task to a URL: the order comes on stdin, the body of the answer goes to stdout.

The order is JSON: ``{"url", "headers", "body"}``. It is read from stdin because
headers hold secrets and arguments can be read by others. Exit codes: 0 for an
answer 2xx, 75 for "not now" (429, 503, or Retry-After), else 1 with a sentence
on stderr. Timeouts, cancelling and killing are the worker's: this is a process
like any other. The standard library only; it is run as a file.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

_CHUNK_BYTES = 65_536
_SAID_BYTES_MAX = 2_000
_NOT_NOW = frozenset({429, 503})
_EXIT_TEMPFAIL = 75


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
                raise http.client.IncompleteRead(b"", left)
    except urllib.error.HTTPError as exc:
        with exc:
            said = exc.read(_SAID_BYTES_MAX).decode("utf-8", "replace").strip()
        sys.stderr.write(f"{exc.code} {exc.reason}{': ' if said else ''}{said}\n")
        return _EXIT_TEMPFAIL if exc.code in _NOT_NOW or "Retry-After" in exc.headers else 1
    except (OSError, http.client.HTTPException) as exc:
        # The URL stays out of it: a query may hold a secret.
        why = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        sys.stderr.write(f"The request failed: {why or type(exc).__name__}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(call(json.load(sys.stdin)))
