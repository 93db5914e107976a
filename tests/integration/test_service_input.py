"""Bad input over real sockets: a clear 4xx, nothing changed, nothing in the log."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.service import STORES, service_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.service import Client, ServiceProcess


@pytest.fixture(scope="module", params=STORES)
def service(request: pytest.FixtureRequest) -> Iterator[ServiceProcess]:
    """One service for the file on each store, whose log must stay clean."""
    with service_on(request.param) as running:
        yield running
        assert running.stop() == 0
        events = [event["event"] for event in running.process.events]
        assert events == ["service_ready", "service_stopped"], running.process.tail()


@pytest.fixture(scope="module")
def client(service: ServiceProcess) -> Client:
    """An agent."""
    return service.client()


@pytest.fixture
def task(client: Client) -> Iterator[Any]:
    """A claimed task, which must not change."""
    made = client.create(title="untouched")
    claimed = client.post(f"/tasks/{made['id']}/claim", {"lease_duration": 3_600_000})["task"]
    count = client.get("/tasks/stats")["stats"]["total"]
    yield claimed
    after = client.get(f"/tasks/{made['id']}")["task"]
    assert after.pop("messages") == []
    assert after | {"lease_ttl_ms": 0} == claimed | {"lease_ttl_ms": 0}
    assert client.get("/tasks/stats")["stats"]["total"] == count


MALFORMED = [
    b"{",
    b"nonsense",
    b"[]",
    b'"text"',
    b"null",
    b"1",
    b'{"title":"a","title":"b"}',
    b'{"title":NaN}',
    b'{"title":"a","priority":Infinity}',
    b'{"title":"a","priority":1e999}',
    b'{"title":"a\\u0000"}',
    b'{"title":"\\ud800"}',
    b'{"title":"\xff"}',
    b'{"title":"a","payload":' + b"[" * 40 + b"]" * 40 + b"}",
    b'{"title":"a","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"title":"a","payload":' + b"9" * 5_000 + b"}",
]


@pytest.mark.parametrize("raw", MALFORMED, ids=lambda raw: repr(raw[:24]))
def test_malformed_bodies_are_refused_everywhere(client: Client, task: Any, raw: bytes) -> None:
    """JSON attacks get 400, or 413 where they are large, on creating, changing, and every verb."""
    path = f"/tasks/{task['id']}"
    for method, target in (
        ("POST", "/tasks"),
        ("PATCH", path),
        ("POST", f"{path}/complete"),
        ("POST", f"{path}/fail"),
        ("POST", f"{path}/renew"),
        ("POST", f"{path}/messages"),
        ("POST", "/orgs"),
    ):
        assert client.refused(method, target, raw=raw)[0] in (400, 413), target


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"title": ""},
        {"title": "  "},
        {"title": 1},
        {"title": None},
        {"title": ["a"]},
        {"title": "x" * 513},
        {"title": "a", "titel": "b"},
        {"title": "a", "description": 5},
        {"title": "a", "description": "x" * 65_537},
        {"title": "a", "priority": 0},
        {"title": "a", "priority": 11},
        {"title": "a", "priority": "5"},
        {"title": "a", "priority": 5.0},
        {"title": "a", "priority": True},
        {"title": "a", "priority": 10**30},
        {"title": "a", "channel": ""},
        {"title": "a", "channel": "a,b"},
        {"title": "a", "channel": "a\nb"},
        {"title": "a", "channel": "x" * 129},
        {"title": "a", "type": None},
        {"title": "a", "status": "completed"},
        {"title": "a", "id": 7},
        {"title": "a", "needs_review": 1},
    ],
    ids=lambda fields: repr(fields)[:40],
)
def test_fields_out_of_bounds_are_refused_on_create(client: Client, task: Any, fields: Any) -> None:
    """Wrong types, sizes and names get 400 and create nothing."""
    assert client.refused("POST", "/tasks", fields)[0] == 400


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("claim", {"lease_duration": 0}),
        ("claim", {"lease_duration": 86_400_001}),
        ("claim", {"lease_duration": "60000"}),
        ("claim", {"claim_id": ""}),
        ("claim", {"lease_ms": 5}),
        ("start", {"fencing_token": 1}),
        ("start", {"runner": "r"}),
        ("start", {"fencing_token": "1", "runner": "r"}),
        ("start", {"fencing_token": 2**70, "runner": "r"}),
        ("start", {"fencing_token": 1, "runner": "r", "message": "x" * 8_001}),
        ("renew", {}),
        ("renew", {"fencing_token": None}),
        ("release", {"fencing_token": 1, "counted": "yes"}),
        ("release", {"fencing_token": 1, "delay_ms": -1}),
        ("release", {"fencing_token": 1, "delay_ms": 10**15}),
        ("complete", {"outputs": {"response": 1}}),
        ("complete", {"outputs": None}),
        ("complete", {"output": []}),
        ("fail", {"reason": 5}),
        ("fail", {"reason": "x" * 4_001}),
        ("cancel", {"why": "x"}),
        ("messages", {}),
        ("messages", {"parts": []}),
        ("messages", {"parts": "hello"}),
        ("messages", {"parts": ["hello"]}),
        ("messages", {"parts": [{"content": "x"}]}),
        ("messages", {"parts": [{"type": "text", "content": 5}]}),
        ("messages", {"parts": [{"type": "text", "content": "x" * 8_001}]}),
        ("messages", {"parts": [{"type": "text", "content": "x" * 5_000}] * 2}),
        ("messages", {"parts": [{"type": "text"}] * 33}),
        ("messages", {"parts": [{"type": "text"}], "kind": "shout"}),
        ("messages", {"parts": [{"type": "text"}], "fencing_token": "1"}),
        ("seal", {"digest": "0" * 63}),
        ("seal", {"fencing_token": 1}),
        ("seal", {"fencing_token": 1, "digest": "0" * 63}),
        ("seal", {"fencing_token": 1, "digest": "A" * 64}),
        ("seal", {"fencing_token": 1, "digest": "0" * 63 + "\n"}),
        ("seal", {"fencing_token": 1, "digest": 5}),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_fields_out_of_bounds_are_refused_on_verbs(client: Client, task: Any, verb: str, body: Any) -> None:
    """The same on every verb."""
    assert client.refused("POST", f"/tasks/{task['id']}/{verb}", body)[0] == 400


@pytest.mark.parametrize(
    "body", [{}, {"status": "done"}, {"status": 1}, {"uuid": "x"}, {"title": ""}, {"payload": 1, "x": 2}]
)
def test_patches_out_of_bounds_are_refused(client: Client, task: Any, body: Any) -> None:
    """An empty patch too."""
    assert client.refused("PATCH", f"/tasks/{task['id']}", body)[0] == 400


@pytest.mark.parametrize(
    "ident",
    ["0", "999999999", "-1", "1.5", "abc", "%00", "%2e%2e", "9" * 30, "9" * 3_000, "a" * 36, "%ff", "1%0d%0aX:%20y"],
)
def test_ids_that_name_nothing_are_404(client: Client, task: Any, ident: str) -> None:
    """Whatever stands where an id should stand is just not there."""
    for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/claim"), ("GET", "/messages")):
        assert client.refused(method, f"/tasks/{ident}{path}", {"title": "x"} if method == "PATCH" else None)[0] == 404


@pytest.mark.parametrize(
    "query",
    [
        "status=done",
        "status=,",
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=x",
        "offset=-1",
        "offset=" + "9" * 30,
        "after=-1",
        "after=1&sort_by=priority",
        "priority=11",
        "priority=5&min_priority=2",
        "sort_by=secret",
        "sort_dir=up",
        "created_after=yesterday",
        "updated_after=99999-01-01",
        "created_after=0001-01-01T00:00:00%2B23:59&updated_after=x",
        "project_id=x",
        "ids=1,x",
        "ids=" + ",".join(map(str, range(1, 1_002))),
        "fields=id,secret",
        "fields=,",
        "search=" + "x" * 257,
        "search=%00",
        "search=%ff",
        "stauts=pending",
        "limit=1&limit=2",
        "&".join(f"a{n}=1" for n in range(99)),
    ],
    ids=lambda query: query[:30],
)
def test_bad_queries_are_refused(client: Client, query: str) -> None:
    """A filter that cannot be understood is never silently dropped."""
    assert client.refused("GET", f"/tasks?{query}")[0] == 400


@pytest.mark.parametrize("value", ["", "Ab", "é"])
def test_queries_that_are_fine(client: Client, value: str) -> None:
    """An empty value filters nothing."""
    assert client.call("GET", "/tasks?search=" + {"é": "%C3%A9"}.get(value, value))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/ws", 404),
        ("POST", "/tasks/1/frobnicate", 404),
        ("GET", "/tasks/1/2/3/4", 404),
        ("GET", "//tasks", 404),
        ("GET", "/orgs/o/projects/p/tasks/stats", 404),
        ("GET", "/orgs/none/projects/none/tasks", 404),
        ("POST", "/orgs/none/projects", 404),
        ("PUT", "/tasks", 405),
        ("DELETE", "/tasks/1", 405),
        ("GET", "/tasks/1/claim", 405),
        ("POST", "/health", 405),
        ("OPTIONS", "/tasks", 405),
    ],
)
def test_unknown_paths_and_methods_are_json(client: Client, method: str, path: str, status: int) -> None:
    """404 and 405 are JSON like everything else."""
    body = {"slug": "x"} if method == "POST" else None
    assert client.refused(method, path, body)[0] == status


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/tasks", {"title": "a", "payload": "x" * 262_145}, 413),
        ("/tasks", {"title": "a", "payload": "x" * 2_097_152}, 413),
        ("/tasks/1/claim", {"claim_id": "x" * 70_000}, 413),
        ("/tasks/1/complete", {"outputs": ["x" * 4_194_304]}, 413),
        ("/tasks/1/complete", {"outputs": ["x" * 8_388_608]}, 413),
    ],
)
def test_oversized_bodies_are_413(service: ServiceProcess, task: Any, path: str, fields: Any, status: int) -> None:
    """Each route has its own cap, and the refusal arrives although the body was not read."""
    client = service.client()
    assert client.refused("POST", path, fields)[0] == status
    assert service.client().get("/health")["status"] == "ok"


def test_a_chunked_body_is_capped_while_it_is_read(service: ServiceProcess) -> None:
    """Without Content-Length the cap still holds."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        raw.sendall(b"POST /tasks/1/claim HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            raw.sendall(b"2000\r\n" + b" " * 8192 + b"\r\n")
        raw.sendall(b"0\r\n\r\n")
        assert b" 413 " in raw.recv(4096).split(b"\r\n")[0]


def _raw(service: ServiceProcess, request: bytes) -> bytes:
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        raw.sendall(request)
        raw.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := raw.recv(65_536):
            answer += chunk
        return answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Host: evil.example\r\n", 403),
        (b"Host: localhost\r\nOrigin: https://evil.example\r\n", 403),
        (b"Host: localhost\r\nX-Actor-Type: robot\r\n", 400),
        (b"Host: localhost\r\nX-Actor-ID: " + b"x" * 300 + b"\r\n", 400),
        (b"Host: localhost\r\nX-Actor-Name: \xff\xfe\r\n", 200),
        (b"Host: localhost\r\nOrigin: http://localhost:3000\r\n", 200),
        (b"Host: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n", 200),
    ],
)
def test_headers_are_judged(service: ServiceProcess, headers: bytes, status: int) -> None:
    """Foreign hosts and sites are refused, odd names are not."""
    answer = _raw(service, b"GET /health HTTP/1.1\r\n" + headers + b"Connection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status), answer
    assert json.loads(body)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /tasks?\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: abc\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"GET " + b"/a" * 50_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda value: repr(value[:20]),
)
def test_broken_http_leaves_the_service_alone(service: ServiceProcess, request_bytes: bytes) -> None:
    """Whatever comes instead of a request ends that connection at most."""
    answer = _raw(service, request_bytes)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert service.client().get("/health")["status"] == "ok"


def test_a_title_cannot_forge_a_log_line(service: ServiceProcess, client: Client) -> None:
    """Control characters in texts are kept as data and reach no log."""
    title = 'x\r\n{"event":"forged"}\x1b[2J\u2028'
    assert client.create(title=title)["title"] == title
    assert not service.process.find("forged")
