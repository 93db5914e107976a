"""Reading the body of a request: bounded in size and in time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dispatch.errors import SlowBodyError, TooLargeError

if TYPE_CHECKING:
    from starlette.types import Receive

BODY_TIMEOUT_S: Final = 30.0


class GoneError(Exception):
    """The client went away before its request was complete."""


async def read_body(receive: Receive, announced: int | None, bytes_max: int) -> bytes:
    """Return the body, or refuse it as soon as it is known to be too large.

    ``announced`` is the Content-Length, if there was one. Raises TooLargeError,
    SlowBodyError and GoneError. What was not read then is thrown away by the
    server as it comes: closing at once would reset the connection before the
    client saw the answer.
    """
    if announced is not None and announced > bytes_max:
        raise TooLargeError(f"The body has {announced} bytes; at most {bytes_max} are allowed here.")
    message = await receive()
    if message["type"] == "http.disconnect":
        raise GoneError
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        chunks = [body]
        size = len(body)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while message.get("more_body"):
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > bytes_max:
                        raise TooLargeError(f"The body has more than {bytes_max} bytes, the most allowed here.")
        except TimeoutError:
            raise SlowBodyError(f"The body did not arrive within {BODY_TIMEOUT_S:g} seconds.") from None
        body = b"".join(chunks)
    if len(body) > bytes_max:
        raise TooLargeError(f"The body has {len(body)} bytes; at most {bytes_max} are allowed here.")
    return body
