"""From spans to a collector over a real socket: what is sent, what is lost, and that nobody waits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import closing
from email import message_from_bytes
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.core.spans import AttemptSpans, Span, TaskFacts, create
from dispatch.core.trace_ids import trace_of
from dispatch.errors import ConfigurationError
from dispatch.preflight.telling import check_traces
from dispatch.runner import http_call
from dispatch.settings import load
from dispatch.traces import recorder
from dispatch.traces.export import QUEUE_MAX, Exporter, resource_of
from dispatch.traces.sending import NotTakenError, Sender, headers_of
from tests.support.collector import Collector
from tests.support.processes import eventually
from tests.support.promises import promised
from tests.support.redis import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

UUID = "a808f983-d953-4bc1-a5a4-d5e9c4144318"
TRACE = trace_of(UUID, url="", task_id="7", ratio=1)


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **facts: Any) -> None:
        """Keep a line."""
        self.lines.append((event, facts))

    info = exception = warning


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that takes everything."""
    with Collector() as made:
        yield made


def span(token: int = 1) -> Span:
    """A span; each token has its own."""
    return AttemptSpans(TRACE, "7", 1, token, "me").start((10, 20))


def test_a_span_arrives_as_it_is(collector: Collector) -> None:
    """Ids, times, kind and attributes are what was recorded; odd characters and a clock that went back do no harm."""
    facts = TaskFacts("7", UUID, "c\ud800", "task", 5, title="naïve \u2028 日本", is_sealed=False)
    exporter = Exporter("service", Sender(collector.url, {}), Log())
    exporter.add(create(TRACE, facts, "me", (20, 10), None))
    exporter.close(5)
    [seen] = collector.spans
    assert (seen.trace_id, seen.span_id, seen.parent_id) == (UUID.replace("-", ""), "53869f49303f7366", "")
    assert (seen.start_ns, seen.end_ns, seen.kind, seen.is_error) == (20, 20, 4, False)
    assert (seen.attributes["dispatch.task.title"], seen.attributes["dispatch.channel"]) == (facts.title, "c?")
    assert seen.attributes["dispatch.task.priority"] == 5
    assert seen.resource["process.pid"] == os.getpid()


def test_a_flood_is_bounded_and_nobody_waits(collector: Collector) -> None:
    """While a collector is silent spans cost no time, what is beyond the queue is lost, and one line says so."""
    collector.hold.clear()
    log = Log()
    exporter = Exporter("service", Sender(collector.url, {}), log)
    with promised(2.0, "the end of the flood"):
        for token in range(2 * QUEUE_MAX):
            exporter.add(span(token))
        exporter.close(0.1)
    assert [event for event, _ in log.lines] == ["traces_not_sent"]
    collector.hold.set()
    eventually(lambda: len(collector.spans) >= QUEUE_MAX, "what was kept")
    assert len(collector.spans) < 2 * QUEUE_MAX
    eventually(lambda: log.lines[-1][0] == "traces_sent_again", "the number of the lost")


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 429, 500])
def test_only_a_2xx_is_taken(collector: Collector, status: int) -> None:
    """A redirect is not followed, so that headers go to no other host; an error is said without the URL."""
    collector.status = status
    sender = Sender(collector.url, {"X-Key": "k"})
    with pytest.raises(NotTakenError, match=f"^it answered with status {status}$"):
        sender.send(b"")
    sender.close()
    assert len(collector.bodies) == 1


def serve_rudely(listener: socket.socket, answers: list[bytes]) -> None:
    """Answer each connection once with these bytes, and close it."""
    for answer in answers:
        connection, _ = listener.accept()
        with connection:
            if answer:
                connection.recv(65_536)
                connection.sendall(answer)


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_a_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    """A collector that closes idle connections loses nothing; one that answers nonsense, or not at all, is away."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=serve_rudely, args=(listener, [GOOD, GOOD, b"hello\r\n\r\n", b""]))
        thread.start()
        sender = Sender(url, {})
        sender.send(b"1")
        sender.send(b"2")
        sender.close()
        for _ in range(2):
            with pytest.raises(NotTakenError):
                sender.send(b"3")
        thread.join()
    with pytest.raises(NotTakenError, match="refused"):
        sender.send(b"4")
    sender.close()


def test_an_http_executor_hands_the_trace_on(collector: Collector) -> None:
    """It sends the traceparent of its attempt, unless a header of the settings says otherwise; without one, none."""
    handed = TRACE.traceparent(1)
    argv = [sys.executable, "-P", http_call.__file__]
    for env, headers in (({"TRACEPARENT": handed}, {}), ({"TRACEPARENT": handed}, {"traceparent": "mine"}), ({}, {})):
        order = {"url": f"{collector.url}/v1/traces", "headers": headers, "body": {}}
        collector.status = 204
        subprocess.run(argv, input=json.dumps(order), text=True, env=env, check=True, timeout=60)
    found = [message_from_bytes(body.partition(b"\n\n")[0])["traceparent"] for body in collector.bodies]
    assert found == [handed, "mine", None]


def test_headers_are_read_as_opentelemetry_has_them() -> None:
    """Comma-separated, percent-encoded; a mistake is told without the value, which may be a secret."""
    assert headers_of("Authorization=Bearer%20x%3D%3D, x-scope = a,") == {"Authorization": "Bearer x==", "x-scope": "a"}
    for text in ("hunter2", "a b=hunter2", "a=hunter2%0d%0aX: y", "a=hunter2é", "=hunter2"):
        with pytest.raises(ConfigurationError) as caught:
            headers_of(text)
        assert "hunter2" not in str(caught.value)


def test_resource_attributes_of_the_environment_are_added() -> None:
    """OTEL_RESOURCE_ATTRIBUTES adds and replaces nothing; what is malformed in it is left out."""
    said = "deployment.environment.name=pro%20duction, service.name=x,broken,=y,empty="
    found = resource_of("worker", {"OTEL_RESOURCE_ATTRIBUTES": said})
    assert found["deployment.environment.name"] == "pro duction"
    assert found["service.name"] == "dispatch-worker"
    assert set(found) - set(resource_of("worker", {})) == {"deployment.environment.name"}


def test_a_forked_child_sends_its_own(collector: Collector) -> None:
    """A process that records before and after a fork, and its child, each send what they recorded, once."""
    log = Log()
    recorder.begin(recorder.WORKER, load({"DISPATCH_TRACES_URL": collector.url}), log)
    try:
        recorder.record(span(1))
        child = os.fork()
        if not child:
            recorder.record(span(2))
            recorder.end()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        recorder.record(span(3))
    finally:
        recorder.end()
    eventually(lambda: len(collector.spans) == 3, "three spans")
    pids = {seen.attributes["dispatch.fencing_token"]: seen.resource["process.pid"] for seen in collector.spans}
    assert pids == {1: os.getpid(), 2: child, 3: os.getpid()}
    assert [event for event, _ in log.lines] == ["traces_on"]


def test_unsampled_tasks_are_not_recorded(collector: Collector) -> None:
    """With a ratio of 0 nothing is sent, and what a child is handed says so."""
    recorder.begin(recorder.WORKER, load({"DISPATCH_TRACES_URL": collector.url, "DISPATCH_TRACES_RATIO": "0"}), Log())
    try:
        trace = recorder.trace_of(UUID, "7")
        assert trace is not None
        recorder.record(AttemptSpans(trace, "7", 1, 1, "me").start((1, 2)))
        assert AttemptSpans(trace, "7", 1, 1, "me").child_traceparent().endswith("-00")
    finally:
        recorder.end()
    assert collector.bodies == []


def test_the_doctor_asks_the_collector(collector: Collector) -> None:
    """It takes spans, or a warning says why not: tasks run all the same. A bad header is an error."""
    env = {"DISPATCH_TRACES_URL": collector.url}
    assert [check.state for check in check_traces(load(env))] == ["ok"]
    collector.status = 401
    [check] = check_traces(load(env))
    assert (check.state, "status 401" in check.sentence) == ("warning", True)
    [check] = check_traces(load({"DISPATCH_TRACES_URL": f"http://127.0.0.1:{free_port()}"}))
    assert (check.state, "refused" in check.sentence) == ("warning", True)
    [check] = check_traces(load({**env, "DISPATCH_TRACES_HEADERS": "hunter2"}))
    assert (check.state, "hunter2" in check.sentence) == ("error", False)
    assert collector.spans == []
