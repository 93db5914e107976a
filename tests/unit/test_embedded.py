"""The private redis-server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import kombu
import pytest

from dispatch.embedded import EmbeddedRedis, answers_ping
from dispatch.errors import ConfigurationError
from tests.support.processes import ROOT, eventually, is_running, listening_ports
from tests.support.redis import RedisServer

if TYPE_CHECKING:
    from pathlib import Path


def test_starts_private(redis_server: RedisServer) -> None:
    """The socket is the user's alone, there is no TCP port, and the data survives."""
    assert redis_server.socket_path.stat().st_mode & 0o777 == 0o600
    assert redis_server.directory.stat().st_mode & 0o777 == 0o700
    with closing(redis_server.client()) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("append*") == client.config_get("append*") | {
            "appendonly": "yes",
            "appendfsync": "everysec",
        }
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_both_urls_reach_it_whatever_the_path(short_dir: Path) -> None:
    """A directory with a space, a percent sign and an umlaut works in both forms of the URL."""
    with RedisServer(short_dir / "a b%20ü") as server:
        with closing(server.client()) as client:
            client.set("key", "value")
        with kombu.Connection(server.celery_url) as connection:
            assert connection.default_channel.client.get("key") == b"value"


def test_kill_and_restart_keep_the_data(redis_server: RedisServer) -> None:
    """What was written is there after kill -9 and a restart, under a new pid."""
    with closing(redis_server.client()) as client:
        client.set("key", "value")
    first = redis_server.pid
    redis_server.kill()
    assert redis_server.pid is None
    redis_server.start()
    assert redis_server.pid != first
    with closing(redis_server.client()) as client:
        assert client.get("key") == b"value"
        redis_server.flush()
        assert client.get("key") is None


def test_second_server_on_the_same_data_is_refused(redis_server: RedisServer) -> None:
    """Two servers never write the same append-only file."""
    with pytest.raises(ConfigurationError, match="Another Redis uses"):
        EmbeddedRedis(redis_server.directory).start(timeout_s=0.1)
    assert answers_ping(redis_server.socket_path)


def test_long_socket_path_is_refused_in_words(tmp_path: Path) -> None:
    """The kernel's limit of 107 bytes is named before anything starts."""
    with pytest.raises(ConfigurationError, match=r"at most 107.*DISPATCH_DATA_DIR"):
        EmbeddedRedis(tmp_path / ("x" * 120)).start()


def test_no_redis_server_is_told_in_words(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bundled server and without one on PATH the message says what to install or to set."""
    monkeypatch.setattr("dispatch.embedded.find_spec", lambda _name: None)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigurationError, match="DISPATCH_REDIS_URL"):
        EmbeddedRedis(short_dir).start()


def test_failure_to_start_shows_the_servers_words(short_dir: Path) -> None:
    """A corrupt append-only file is reported with the end of Redis's own log."""
    (short_dir / "appendonly.aof").write_bytes(b"this is no append-only file")
    server = EmbeddedRedis(short_dir)
    with pytest.raises(ConfigurationError, match=r"did not start; the end of .*Bad file format"):
        server.start()
    assert server.pid is None


def test_dies_with_its_parent(short_dir: Path) -> None:
    """kill -9 of the process that started it ends the server, and the data is free again."""
    code = (
        "import sys, pathlib; from dispatch.embedded import EmbeddedRedis\n"
        "r = EmbeddedRedis(pathlib.Path(sys.argv[1])); r.start(); print(r.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(short_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid), "the end of redis-server")
    with EmbeddedRedis(short_dir) as again:
        assert again.pid is not None


def test_tcp_port_is_on_loopback_and_survives_a_restart(short_dir: Path) -> None:
    """The optional port of the test server stays the same after kill -9."""
    with RedisServer(short_dir, tcp=True) as server:
        port = server.port
        server.kill()
        server.start()
        assert listening_ports([port]) == {port}
    assert listening_ports([port]) == set()
