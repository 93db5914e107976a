"""The WebSocket protocol of the server, with an answer for handshakes that uvicorn leaves open."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from dispatch.errors import InvalidInputError
from dispatch.service import wire

_REFUSAL: Final = wire.dumps(
    InvalidInputError("The WebSocket handshake cannot be read; its lines must be shorter than 8 kB.").as_body()
).encode()


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, which neither answers nor closes when the handshake's lines are too long or too many for it."""

    def data_received(self, data: bytes) -> None:
        """Take what came from the client."""
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(_REFUSAL)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + _REFUSAL)
            self.transport.close()
