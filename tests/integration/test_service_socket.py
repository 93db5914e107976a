"""The WebSocket with real sockets: events, replay, and everything a client may do wrong."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.support.processes import PATIENCE_S, eventually
from tests.support.service import STORES, ServiceProcess, service_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.service import Client


@pytest.fixture(scope="module", params=STORES)
def service(request: pytest.FixtureRequest) -> Iterator[ServiceProcess]:
    """One service for the file on each store, whose log must stay clean."""
    with service_on(request.param, DISPATCH_REGRANT_DELAY_S="0.05", DISPATCH_DEFAULT_LEASE_MS="60000") as running:
        yield running
        assert running.stop() == 0
        events = [event["event"] for event in running.process.events]
        assert events == ["service_ready", "service_stopped"], running.process.tail()


@pytest.fixture
def client(service: ServiceProcess) -> Client:
    """An agent."""
    return service.client()


class Listener:
    """A subscribed WebSocket."""

    def __init__(self, service: ServiceProcess, **subscription: Any) -> None:
        url = service.url.replace("http", "ws", 1)
        url += "/ws?actor_type=agent&actor_id=l%C3%AFs&actor_name=Lis%20T"
        self._stack = contextlib.ExitStack()
        self.socket: ClientConnection = self._stack.enter_context(connect(url, compression=None, proxy=None))
        self.connected = self.next()
        self.subscribed = self.subscribe(**subscription)

    def subscribe(self, **subscription: Any) -> Any:
        """Send the subscribe frame and return the answer."""
        self.socket.send(json.dumps({"type": "subscribe", "id": "cli-sub-1", **subscription}))
        return self.next()

    def close(self) -> None:
        """Close the connection."""
        self._stack.close()

    def next(self) -> Any:
        """Return the next frame."""
        return json.loads(self.socket.recv(timeout=PATIENCE_S))

    def types(self, count: int) -> list[str]:
        """Return the types of the next frames."""
        return [self.next()["type"] for _ in range(count)]

    def drained(self) -> list[Any]:
        """Return every frame until now: a ping's answer comes after all of them."""
        self.socket.send('{"type":"ping"}')
        found = []
        while (frame := self.next())["type"] != "pong":
            found.append(frame)
        return found


@pytest.fixture
def listen(service: ServiceProcess) -> Iterator[Any]:
    """Make listeners that are closed afterwards."""
    made: list[Listener] = []

    def make(**subscription: Any) -> Listener:
        made.append(Listener(service, **subscription))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def _life(client: Client, channel: str, kind: str = "task") -> int:
    """Create, claim, start, release, claim and complete a task."""
    ref = int(client.create(channel=channel, type=kind, payload={"p": 1})["id"])
    client.post(f"/tasks/{ref}/claim", {})
    client.post(f"/tasks/{ref}/start", {"fencing_token": 1, "runner": "r"})
    client.post(f"/tasks/{ref}/release", {"fencing_token": 1})
    client.post(f"/tasks/{ref}/claim", {})
    client.post(f"/tasks/{ref}/complete", {"outputs": ["x"], "fencing_token": 2})
    return ref


PLAIN = ["task.created", "task.claimed", "task.updated", "task.claimed", "task.completed"]
EXTENDED = [
    "task.created",
    "task.claimed",
    "task.started",
    "task.released",
    "task.claimed",
    "task.completed",
]


def test_a_plain_client_sees_what_ats_knows(client: Client, listen: Any) -> None:
    """Without extensions only ATS events come, whole tasks, growing numbers."""
    listener = listen(channels=["ws-plain"])
    assert (listener.connected["type"], listener.subscribed["type"]) == ("connected", "subscribed")
    assert listener.subscribed["id"] == "cli-sub-1"
    ref = _life(client, "ws-plain")
    frames = listener.drained()
    assert [frame["type"] for frame in frames] == PLAIN
    assert all(frame["data"]["task"]["id"] == frame["task_id"] == ref for frame in frames)
    assert [frame["seq"] for frame in frames] == sorted({frame["seq"] for frame in frames})
    assert frames[0]["seq"] > listener.subscribed["seq"]
    assert (frames[0]["actor_name"], frames[0]["channel"]) == ("Worker-1", "ws-plain")
    assert frames[0]["data"]["task"]["payload"] == {"p": 1}
    assert frames[-1]["data"]["task"]["outputs"] == ["x"]


def test_extended_and_thin_frames(client: Client, listen: Any) -> None:
    """Extended tells all moves, thin only what the fleet needs."""
    listener = listen(channels=["ws-thin"], thin=True, extended=True)
    _life(client, "ws-thin")
    frames = listener.drained()
    assert [frame["type"] for frame in frames] == EXTENDED
    assert set(frames[2]["data"]["task"]) == {
        "id",
        "uuid",
        "title",
        "channel",
        "type",
        "priority",
        "status",
        "updated_at",
        "fencing_token",
        "attempts",
        "lease_losses",
        "not_before",
        "runner",
        "assignee_id",
        "sealed",
        "traits",
        "depends_on",
    }
    assert frames[2]["data"]["task"]["runner"] == "r"


def test_filters_and_a_second_subscription(client: Client, listen: Any) -> None:
    """Channels, task types and event types narrow; subscribing again replaces them."""
    listener = listen(channels=["ws-a", "ws-b"], task_types=["t"], event_types=["task.created", "task.completed"])
    _life(client, "ws-a", "t")
    _life(client, "ws-a", "other")
    _life(client, "ws-other", "t")
    assert [frame["type"] for frame in listener.drained()] == ["task.created", "task.completed"]
    listener.subscribe(event_types=["task.message"])
    ref = client.create(channel="anything")["id"]
    message = client.post(f"/tasks/{ref}/messages", {"parts": [{"type": "text", "content": "hi"}]})["message"]
    (frame,) = listener.drained()
    assert frame["data"]["message"] == message


def test_since_misses_nothing(client: Client, listen: Any) -> None:
    """A listener that comes back while tasks go on gets every event after ``since`` once and in order."""
    whole = listen(channels=["ws-since"], extended=True, thin=True)
    since = whole.subscribed["seq"]
    for _ in range(40):
        _life(client, "ws-since")
    late = [listen(channels=["ws-since"], extended=True, thin=True, since=since) for _ in range(2)]
    for _ in range(10):
        _life(client, "ws-since")
    expected = [frame["seq"] for frame in whole.drained()]
    assert len(expected) == 50 * 6
    for listener in late:
        frames = [listener.next() for _ in expected]
        assert [frame["seq"] for frame in frames] == expected
        assert [frame["type"] for frame in frames] == EXTENDED * 50
        assert listener.drained() == []


def test_since_beyond_the_newest_is_from_now(client: Client, listen: Any) -> None:
    """After a restored backup the numbers are lower; the listener sees that in ``subscribed`` and gets live events."""
    listener = listen(channels=["ws-beyond"], since=10**15)
    assert listener.subscribed["seq"] < 10**15
    client.create(channel="ws-beyond")
    assert [frame["type"] for frame in listener.drained()] == ["task.created"]


def test_an_expired_lease_is_announced(client: Client, listen: Any) -> None:
    """The service takes the task back by itself, by a timer, and says so."""
    listener = listen(channels=["ws-expiry"])
    ref = client.create(channel="ws-expiry")["id"]
    client.post(f"/tasks/{ref}/claim", {"lease_duration": 600_000})
    client.post(f"/tasks/{ref}/claim", {"lease_duration": 100})
    assert listener.types(3) == ["task.created", "task.claimed", "task.lease_expired"]
    task = client.get(f"/tasks/{ref}")["task"]
    assert (task["status"], task["assignee_id"], task["lease_expires"]) == ("pending", None, None)


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "nonsense",
        "null",
        "[]",
        "5",
        '"subscribe"',
        "{}",
        '{"type":"unsubscribe"}',
        '{"type":5}',
        '{"type":NaN}',
        '{"type":"subscribe","type":"ping"}',
        '{"type":"subscribe","chanels":["a"]}',
        '{"type":"subscribe","channels":"a"}',
        '{"type":"subscribe","channels":[1]}',
        '{"type":"subscribe","since":-1}',
        '{"type":"subscribe","since":99999999999999999999}',
        '{"type":"subscribe","thin":"yes"}',
        "[" * 30_000,
        '{"type":"\\ud800"}',
        b'{"type":"ping"}',
        b"\x00\xff",
    ],
    ids=lambda frame: repr(frame[:30]),
)
def test_frames_that_cannot_be_understood_are_answered(client: Client, listen: Any, frame: str | bytes) -> None:
    """Each gets one error frame, and the subscription goes on."""
    listener = listen(channels=["ws-odd"])
    listener.socket.send(frame)
    answer = listener.next()
    assert answer["type"] == "error"
    assert answer["error"]
    client.create(channel="ws-odd")
    assert [frame["type"] for frame in listener.drained()] == ["task.created"]


def _frame(first: int, payload: bytes, *, declared: int | None = None, masked: bool = True) -> bytes:
    length = len(payload) if declared is None else declared
    bit = 0x80 if masked else 0
    if length < 126:
        head = struct.pack("!BB", first, bit | length)
    elif length < 65_536:
        head = struct.pack("!BBH", first, bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, bit | 127, length)
    return head + (b"\0\0\0\0" if masked else b"") + payload


@pytest.mark.parametrize(
    ("raw", "codes"),
    [
        (_frame(0x81, b"\xff\xfe"), {1007}),
        (_frame(0xF1, b"{}"), {1002}),
        (_frame(0x83, b"{}"), {1002}),
        (_frame(0x80, b"stray"), {1002}),
        (_frame(0x81, b"{}", masked=False), {1002}),
        (_frame(0x89, b"x" * 126), {1002}),
        (_frame(0x88, b"x"), {1002}),
        (_frame(0x88, struct.pack("!H", 1005)), {1002}),
        (_frame(0x81, b"x" * 65_537), {1009}),
        (_frame(0x81, b"", declared=2**62), {1009}),
        (_frame(0xC1, b"\x00" * 100), {1002}),
    ],
    ids=lambda value: repr(value[:6]) if isinstance(value, bytes) else None,
)
def test_protocol_errors_end_only_that_connection(
    service: ServiceProcess, client: Client, listen: Any, raw: bytes, codes: set[int]
) -> None:
    """Each breach of the protocol is closed with its code; other listeners notice nothing."""
    other = listen(channels=["ws-breach"])
    breach = listen()
    breach.socket.socket.sendall(raw)
    with pytest.raises(ConnectionClosed) as caught:
        breach.next()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code in codes
    client.create(channel="ws-breach")
    assert [frame["type"] for frame in other.drained()] == ["task.created"]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/ws?actor_type=robot", {}, 400),
        ("/ws", {"Origin": "https://evil.example"}, 403),
        ("/tasks", {}, 404),
        ("/", {}, 404),
    ],
)
def test_handshakes_are_refused_in_json(
    service: ServiceProcess, path: str, headers: dict[str, str], status: int
) -> None:
    """A bad actor, a foreign site or another path gets a status and a sentence."""
    url = service.url.replace("http", "ws", 1) + path
    with pytest.raises(InvalidStatus) as caught, connect(url, additional_headers=headers, proxy=None):
        pass
    assert caught.value.response.status_code == status
    assert json.loads(caught.value.response.body)["error"]


def test_a_client_that_does_not_read_is_dropped(service: ServiceProcess, client: Client, listen: Any) -> None:
    """A stuck client costs bounded memory and nobody's time; it is closed with 1013 and the others get everything."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.socket() as stuck:
        # Much smaller than a segment of the loopback, it would drain at the pace of window probes.
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)
        stuck.connect((host, int(port)))
        stuck.sendall(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: " + b"x" * 22 + b"==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b" 101 " in stuck.recv(4096)
        stuck.sendall(_frame(0x81, b'{"type":"subscribe","channels":["ws-slow"]}'))
        other = listen(channels=["ws-slow"], thin=True)
        before = _rss(service.process.pid)
        payload = "x" * 260_000
        for _ in range(120):
            client.create(channel="ws-slow", payload=payload)
        assert len(other.drained()) == 120
        assert _rss(service.process.pid) - before < 60_000_000
        stuck.settimeout(PATIENCE_S)
        goodbye = _frame(0x88, struct.pack("!H", 1013), masked=False)
        received = b""
        while not received.endswith(goodbye):
            chunk = stuck.recv(1 << 20)
            assert chunk, "closed without 1013"
            received = received[-16:] + chunk


def _rss(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_listeners_are_told_when_the_service_goes(tmp_path: Any) -> None:
    """SIGTERM closes every WebSocket with 1001 and the process exits 0, also with an idle HTTP connection open."""
    with ServiceProcess(tmp_path) as service:
        idle = service.client()
        idle.get("/health")
        listener = Listener(service)
        assert service.process.stop() == 0
        with pytest.raises(ConnectionClosed) as caught:
            listener.next()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001
        idle.close()
        listener.close()
        eventually(lambda: service.process.find("service_stopped"))


def test_explain_knows_whether_an_executor_listens(service: ServiceProcess, client: Client) -> None:
    """A ready task of a channel that no executor watches has NO_WORKER; while one watches it, the task is offered."""
    task = client.create(title="look at me", channel="watched")

    def code() -> str:
        found = client.post("/tools/explain", {"task_id": task["uuid"]})
        return str(found["reasons"][0]["code"])

    assert code() == "NO_WORKER"
    reader, other = Listener(service, channels=["watched"]), Listener(service, thin=True, channels=["elsewhere"])
    executor = Listener(service, thin=True, extended=True, channels=["watched"])
    try:
        eventually(lambda: code() == "OFFERED", "the executor to be seen")
        executor.close()
        eventually(lambda: code() == "NO_WORKER", "the executor to be missed")
    finally:
        for listener in (reader, other, executor):
            listener.close()
