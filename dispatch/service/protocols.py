"""The protocols of the server below HTTP requests: uvicorn's, with JSON for what cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from dispatch.errors import InvalidInputError
from dispatch.service import wire

if TYPE_CHECKING:
    from starlette.types import Message, Send


def _refusal(sentence: str) -> bytes:
    body = wire.dumps(InvalidInputError(sentence).as_body()).encode()
    head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body


_NOT_HTTP: Final = _refusal("The request is not HTTP/1.1 as this service reads it.")
_NO_HANDSHAKE: Final = _refusal("The WebSocket handshake cannot be read; its lines must be shorter than 8 kB.")


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, which refuses in plain text what is not HTTP."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer what cannot be read, and close."""
        self.transport.write(_NOT_HTTP)
        self.transport.close()


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, which neither answers nor closes when the handshake's lines are too long or too many for it."""

    def data_received(self, data: bytes) -> None:
        """Take what came from the client."""
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self.transport.write(_NO_HANDSHAKE)
            self.transport.close()


def into_the_void(send: Send) -> Send:
    """Return a ``send`` that drops an answer when the connection was closed while the answer was made.

    uvloop raises then, for instance after a pipelined request that could not be read; nobody is there to answer.
    """

    async def quiet(message: Message) -> None:
        try:
            await send(message)
        except RuntimeError as exc:
            if "closed" not in str(exc):
                raise

    return quiet
