"""Both clients against a service that misbehaves, over real sockets: the same contract for the two."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from dispatch.ats import protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.client import Client
from dispatch.ats.model import Actor
from dispatch.errors import AuthenticationError, GatewayUnavailableError, UnknownTaskError
from tests.support.fake_ats import FakeAts
from tests.support.promises import promised
from tests.support.redis import free_port

ME = Actor("agent", "me", "Me")


@pytest.fixture
def ats():
    """A fake ATS without extensions."""
    with FakeAts() as fake:
        yield fake


class AsyncTwin:
    """The asynchronous client behind the synchronous one's face, so that one test holds for both."""

    def __init__(self, where, actor, **options) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(where, actor, **options)

    def send(self, request, **options):
        """Make one call."""
        return self._runner.run(self._send(request, **options))

    async def _send(self, request, **options):
        # A loop that runs all the time has seen by now what happened to its connections.
        for _ in range(3):
            await asyncio.sleep(0)
        return await self._client.send(request, **options)

    def clock_offset_s(self):
        """Return the difference of the clocks."""
        return self._client.clock_offset_s()

    def close(self):
        """Close client and loop."""
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=[Client, AsyncTwin], ids=["sync", "async"])
def connect(request, ats):
    """Make clients of either kind; they are closed at the end."""
    made = []

    def make(url=None, **options):
        more = {key: options.pop(key) for key in ("org", "project", "token") if key in options}
        made.append(request.param(protocol.endpoint(url or ats.url, **more), ME, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


def test_calls_share_one_connection(ats, connect):
    """A hundred calls one after the other use one kept-alive connection."""
    client = connect()
    for _ in range(100):
        client.send(protocol.health())
    assert len(ats.connections) == 1


def test_headers_body_scope_and_actor_arrive(ats, connect):
    """The service sees the project's path, the actor of the call, the token and the body."""
    client = connect(org="o", project="p", token="s3cret")
    created = client.send(protocol.create("Zoë", payload={"a": [1]}), actor=Actor("human", "zoe", "Zoë"))
    method, path, headers, body = ats.calls[-1]
    assert (method, path) == ("POST", "/orgs/o/projects/p/tasks")
    assert (headers["X-Actor-Type"], headers["X-Actor-ID"]) == ("human", "zoe")
    assert headers["Authorization"] == "Bearer s3cret"
    assert headers["Content-Type"] == "application/json"
    assert body == {"title": "Zoë", "type": "task", "channel": "default", "priority": 5, "payload": {"a": [1]}}
    assert created["task"]["id"] == 100
    client.send(protocol.health())
    assert ats.calls[-1][2]["X-Actor-ID"] == "me"


def test_errors_of_the_service_are_raised(ats, connect):
    """A refusal arrives as the error it means, with the service's sentence."""
    client = connect()
    with pytest.raises(UnknownTaskError, match="There is no task 7"):
        client.send(protocol.get("7"))
    ats.fault("answer", status=429, body=b"{}", headers={"Retry-After": "7"})
    with pytest.raises(GatewayUnavailableError) as caught:
        client.send(protocol.get("7"))
    assert caught.value.retry_after_s == 7.0
    ats.fault("answer", status=401, body=b'{"error": "read-only access"}')
    with pytest.raises(AuthenticationError, match="read-only access"):
        client.send(protocol.get("7"))


def test_connection_closed_by_a_restarted_service_is_replaced(ats, connect):
    """After a restart of the service the next call succeeds, even one that must not be doubled."""
    client = connect()
    client.send(protocol.health())
    ats.stop()
    ats.start()
    assert client.send(protocol.create("once"))["task"]["title"] == "once"
    assert len(ats.tasks) == 1


def test_connection_cut_while_answering_is_tried_once_more(ats, connect):
    """A kept-alive connection that dies under a repeatable call is replaced; the call is made again, once."""
    client = connect()
    ats.add()
    client.send(protocol.health())
    ats.fault("hang_up")
    assert client.send(protocol.get("100"))["task"]["id"] == 100
    ats.fault("hang_up", times=3)
    with pytest.raises(GatewayUnavailableError):
        client.send(protocol.get("100"))


def test_creation_whose_answer_was_lost_is_not_repeated(ats, connect):
    """T6: a call that is not repeatable is left to the caller when its answer is lost; the task exists once."""
    client = connect()
    client.send(protocol.health())
    ats.fault("lose", "/tasks")
    with pytest.raises(GatewayUnavailableError):
        client.send(protocol.create("once"))
    assert len(ats.tasks) == 1


@pytest.mark.parametrize("kind", ["truncate", "wrong_length", "lose", "hang_up"])
def test_broken_answer_means_try_again(ats, connect, kind):
    """T5: cut, mismeasured or missing answers are GatewayUnavailableError, and the client works on afterwards."""
    client = connect()
    ats.add()
    ats.fault(kind, times=2)
    with pytest.raises(GatewayUnavailableError):
        client.send(protocol.get("100"))
    ats.faults.clear()
    assert client.send(protocol.get("100"))["task"]["id"] == 100


def test_html_page_means_try_again(ats, connect):
    """T5: a proxy's HTML page is no answer, with whatever status it comes."""
    client = connect()
    for status in (200, 502):
        ats.fault("answer", status=status, body=b"<html>")
        with pytest.raises(GatewayUnavailableError):
            client.send(protocol.health())


@pytest.mark.parametrize("kind", ["trickle", "trickle_head"])
def test_deadline_is_for_the_whole_call(ats, connect, kind):
    """T7: an answer that trickles byte by byte ends at the deadline, in the head as in the body."""
    client = connect(deadline_s=1.0)
    ats.add()
    ats.fault(kind)
    started = time.monotonic()
    with promised(2.5, "the call"), pytest.raises(GatewayUnavailableError, match="the time was up"):
        client.send(protocol.get("100"))
    assert time.monotonic() - started > 0.9
    assert client.send(protocol.get("100"))["task"]["id"] == 100


def test_deadline_holds_when_nobody_answers(connect):
    """T7: a service that accepts the connection and says nothing costs no more than the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = connect(f"http://127.0.0.1:{silent.getsockname()[1]}", deadline_s=0.2)
        with promised(1.5, "the call"), pytest.raises(GatewayUnavailableError, match="the time was up"):
            client.send(protocol.health())


def test_service_that_is_not_there(connect):
    """A refused connection is one sentence with the address."""
    port = free_port()
    with pytest.raises(GatewayUnavailableError, match=rf"127\.0\.0\.1:{port} gave no answer: .*refused"):
        connect(f"http://127.0.0.1:{port}").send(protocol.health())


def test_answer_over_the_limit_is_refused(ats, connect):
    """An answer longer than the limit is not read into memory."""
    client = connect(answer_bytes_max=2000)
    ats.add(title="x" * 3000)
    with pytest.raises(GatewayUnavailableError, match=r"too long|longer than"):
        client.send(protocol.get("100"))
    assert client.send(protocol.health())["status"] == "ok"


def test_sixteen_mebibyte_answer_fits(ats, connect):
    """A big result within the limit comes through whole."""
    client = connect()
    ats.add(description="x" * 8_000_000)
    assert len(client.send(protocol.get("100"))["task"]["description"]) == 8_000_000


def test_clock_of_the_service_is_known(ats, connect):
    """The difference of the clocks is read from the service's answers."""
    client = connect()
    assert client.clock_offset_s() == 0.0
    ats.advance(3600)
    client.send(protocol.health())
    assert 3540 < client.clock_offset_s() < 3660


def test_threads_share_a_client(ats):
    """Several threads may use one Client at once; each answer goes to the one who asked."""
    for number in range(20):
        ats.add(title=f"t{number}")
    client = Client(protocol.endpoint(ats.url), ME)

    def ask(number: int) -> str:
        return client.send(protocol.get(str(100 + number % 20)))["task"]["title"]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(200))) == [f"t{n % 20}" for n in range(200)]
    client.close()


def test_forked_process_opens_its_own_connection(ats):
    """A child made by fork never speaks on its parent's connection, and the parent's stays usable."""
    client = Client(protocol.endpoint(ats.url), ME)
    ats.add()
    client.send(protocol.health())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the test's server has a thread, the child does not use it
        pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if client.send(protocol.get("100"))["task"]["id"] == 100 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(ats.connections) == 2
    assert client.send(protocol.get("100"))["task"]["id"] == 100
    assert len(ats.connections) == 2
    client.close()


def test_answer_sent_before_the_body_was_read_is_seen(ats):
    """A service that answers 413 and hangs up in the middle of a long body is understood."""
    server = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        with closing(server.accept()[0]) as peer:
            peer.recv(1000)
            peer.sendall(b'HTTP/1.1 413 Too Large\r\nContent-Length: 17\r\nConnection: close\r\n\r\n{"error":"bulky"}')
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(1 << 20):
                pass

    thread = threading.Thread(target=refuse)
    thread.start()
    client = Client(protocol.endpoint(f"http://127.0.0.1:{server.getsockname()[1]}"), ME)
    with pytest.raises(Exception, match="bulky"):
        client.send(protocol.create("x", payload="x" * 20_000_000))
    thread.join(60)
    client.close()
    server.close()


def test_https_service_without_tls_is_not_talked_to(ats, connect):
    """A call over https does not fall back to plain text, and the failure is an error like any other."""
    client = connect(ats.url.replace("http:", "https:"), deadline_s=2, token="s3cret")
    with pytest.raises(GatewayUnavailableError):
        client.send(protocol.health())
    assert ats.calls == []
