"""Clients of Redis as dispatch makes them: a lost connection is an error that everybody expects."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
import redis
import uvloop

from dispatch.broker import connect_async
from dispatch.settings import Broker
from tests.support.redis import RedisServer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("tcp", [False, True], ids=["socket", "tcp"])
def test_a_connection_that_closed_before_the_command_was_lost(short_dir: Path, tcp: bool) -> None:
    """In the event loop of the ingress too: a RedisError, as for every loss, and the next command has a new one."""

    async def use(url: str) -> None:
        async with aclosing(connect_async(Broker(url=url))) as client:
            connection = await client.connection_pool.get_connection()
            connection._writer.transport.abort()
            with pytest.raises(redis.ConnectionError, match="lost"):
                await connection.send_command("PING")
            await client.connection_pool.release(connection)
            assert await client.ping()

    with RedisServer(short_dir / "redis", tcp=tcp) as server:
        uvloop.run(use(server.tcp_url if tcp else server.url))
