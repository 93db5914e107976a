"""Nonsense for every route, every tool and the WebSocket of a real service: refused in JSON, and nothing is lost.

Runs for a few seconds; ``make fuzz SECONDS=600`` for longer.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from dispatch.core.lifecycle import STATUS_OF_ATS_WORD
from dispatch.service import fields, wire
from dispatch.service.handlers import ROUTES
from dispatch.service.tools.registry import TOOLS, definition
from tests.support.schemas import anything, valid
from tests.support.service import STORES, service_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.service import ServiceProcess

SECONDS = float(os.environ.get("FUZZ_SECONDS", "4"))
"""For all tests of this file together."""
SHARES = {"calls": 0.7, "bytes": 0.15, "frames": 0.15}

AGENTS = [str(uuid.uuid5(uuid.NAMESPACE_OID, f"fuzz {n}")) for n in range(3)]
PROJECTS = ["proj", "o1/p1", "o2/p2"]
KNOWN_MAX = 40
"""So many of the newest tasks are named by requests, so that these meet tasks in all states."""


# --- what the service must remember ----------------------------------------------------------------------------------


@dataclass
class Kept:
    """What was acknowledged about one task last."""

    uuid: str
    status: str
    token: int
    messages: set[int] = field(default_factory=set)


@dataclass
class Model:
    """Everything that was acknowledged."""

    tasks: dict[int, Kept] = field(default_factory=dict)

    def learn(self, answer: Any) -> None:
        """Take in what an answer to a write says about tasks and messages."""
        if not isinstance(answer, dict):
            return
        if "message_id" in answer:
            self.by_uuid(answer["task_id"]).messages.add(answer["message_id"])
        elif isinstance(answer.get("message"), dict) and "task_id" in answer["message"]:
            self.tasks[answer["message"]["task_id"]].messages.add(answer["message"]["id"])
        elif isinstance(answer.get("task"), dict):
            self._task(answer["task"])
        elif "lease_token" in answer and "status" in answer:
            self._task(answer)
        for one in answer.get("claims", ()):
            self.learn({"task": one["task"]} if "task" in one else {})
        for one in answer["tasks"] if "created" in answer and "tasks" in answer else ():
            self.tasks.setdefault(one["id"], Kept(one["task_id"], one["status"], 0))

    def _task(self, task: Mapping[str, Any]) -> None:
        status = STATUS_OF_ATS_WORD[task["status"]].value if "uuid" in task else task["status"]
        token = task["fencing_token"] if "uuid" in task else task["lease_token"]
        kept = self.tasks.setdefault(task["id"], Kept(task.get("uuid") or task["task_id"], status, token))
        kept.status, kept.token = status, token

    def by_uuid(self, ident: str) -> Kept:
        """Return the task with a UUID."""
        return next(kept for kept in reversed(self.tasks.values()) if kept.uuid == ident)


@dataclass(frozen=True)
class Known:
    """Stands in a request for a task that exists, until it is sent."""

    number: int
    by_uuid: bool = False

    def of(self, model: Model) -> int | str:
        """Return its name."""
        if not model.tasks:
            return 1
        ids = list(model.tasks)[-KNOWN_MAX:]
        ident = ids[self.number % len(ids)]
        return model.tasks[ident].uuid if self.by_uuid else ident


def settle(value: Any, model: Model) -> Any:
    """Return a value with the names of tasks in it."""
    if isinstance(value, Known):
        return value.of(model)
    if isinstance(value, list):
        return [settle(item, model) for item in value]
    if isinstance(value, dict):
        return {key: settle(item, model) for key, item in value.items()}
    return value


# --- requests --------------------------------------------------------------------------------------------------------

numbers = st.integers(0, KNOWN_MAX - 1)
known_ids = st.builds(Known, numbers)
known_uuids = st.builds(Known, numbers, by_uuid=st.just(True))
odd_texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "\0", "a\0b", "\ud800", "é" * 300, "..", "%00", "1e9", "null", "-1", "0", "'; --", "\u202e"]
    ),
    st.sampled_from(["x" * 9_000, "\U0001f600" * 600, "9" * 400]),
)
wild = st.one_of(
    anything, odd_texts, st.sampled_from([2**63, -(2**63), 2**64, 1e308, -0.0, 10**400, [], {}, [[]], {"": 0}, [None]])
)
words = st.sampled_from(["a", "b", "gpu", "default", "task"])
slugs = st.sampled_from(["o1", "o2", "o3", "p1", "p2"])
parts = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "data", "x"])}, optional={"content": odd_texts, "data": wild}
    ),
    max_size=3,
)
lists = st.lists(anything, max_size=3)

GOOD: dict[str, st.SearchStrategy[Any]] = {
    "title": st.text(min_size=1, max_size=20),
    "description": st.text(max_size=20) | st.none(),
    "type": words,
    "channel": words,
    "priority": st.integers(1, 10),
    "payload": anything,
    "needs_review": st.booleans(),
    "status": st.sampled_from(list(STATUS_OF_ATS_WORD)),
    "lease_duration": st.integers(1, 86_400_000),
    "claim_id": words,
    "ids": st.lists(known_ids, max_size=5),
    "fencing_token": st.integers(0, 4),
    "digest": st.sampled_from(["0" * 64, "ab" * 32]),
    "kind": st.sampled_from(["message", "note", "log"]),
    "runner": words,
    "message": st.text(max_size=10),
    "counted": st.booleans(),
    "delay_ms": st.integers(0, 1_000),
    "reason": st.text(max_size=10) | st.none(),
    "outputs": lists,
    "parts": parts,
    "slug": slugs,
    "name": words,
    "counts": st.booleans(),
}
"""Field of an ATS body -> what is mostly right."""

BODIES: dict[tuple[str, ...], tuple[Mapping[str, Any], tuple[str, ...]]] = {
    ("tasks",): (fields.CREATE, ("title",)),
    ("tasks", "*"): (fields.PATCH, ()),
    ("tasks", "claim"): (fields.CLAIM_MANY, ("ids", "claim_id")),
    ("tasks", "*", "claim"): (fields.CLAIM, ()),
    ("tasks", "*", "start"): (fields.START, ("fencing_token", "runner")),
    ("tasks", "*", "renew"): (fields.RENEW, ("fencing_token",)),
    ("tasks", "*", "release"): (fields.RELEASE, ("fencing_token",)),
    ("tasks", "*", "seal"): (fields.SEAL, ("fencing_token", "digest")),
    ("tasks", "*", "complete"): (fields.COMPLETE, ()),
    ("tasks", "*", "fail"): (fields.FAIL, ()),
    ("tasks", "*", "messages"): (fields.POST_MESSAGE, ("parts",)),
    ("orgs",): (fields.ORGANIZATION, ("slug",)),
    ("orgs", "*"): (fields.ORGANIZATION, ()),
    ("orgs", "*", "projects"): (fields.PROJECT, ("slug",)),
    ("orgs", "*", "projects", "*"): (fields.PROJECT, ()),
}

TOOL_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "task_id": known_uuids,
    "parent_id": known_uuids,
    "depends_on": st.lists(known_uuids, max_size=3),
    "agent_id": st.sampled_from(AGENTS),
    "assigned_to": st.sampled_from([*AGENTS, None]),
    "project_key": st.sampled_from(PROJECTS),
    "wait_s": st.just(0),
    "lease_token": st.integers(0, 4),
    "idempotency_key": words,
    "tasks": st.lists(
        st.fixed_dictionaries(
            {"ref": words, "title": words},
            optional={"depends_on": st.lists(words | known_uuids, max_size=3), "parent": words, "meta_json": wild},
        ),
        max_size=4,
    ),
}
"""Argument of a tool -> what is better than what its schema says."""


def _spoilt(draw: st.DrawFn, value: Any) -> Any:
    """Return a value with something wild in it, or instead of it."""
    if isinstance(value, list) and draw(st.booleans()):
        at = draw(st.integers(0, len(value)))
        return [*value[:at], *(_spoilt(draw, one) for one in value[at : at + 1] or [None]), *value[at + 1 :]]
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: _spoilt(draw, value[key])}
    return draw(wild)


@st.composite
def mostly(draw: st.DrawFn, good: Mapping[str, st.SearchStrategy[Any]], required: tuple[str, ...]) -> dict[str, Any]:
    """Return an object that is mostly right: some fields, now and then one wrong, missing or unknown."""
    found = {name: draw(good[name]) for name in required}
    for name in draw(st.lists(st.sampled_from(sorted(good)), max_size=4, unique=True)):
        found[name] = draw(good[name])
    match draw(st.integers(0, 9)):
        case 0 | 3 | 4 | 5 if found:
            name = draw(st.sampled_from(sorted(found)))
            found[name] = _spoilt(draw, found[name])
        case 1 if found:
            del found[draw(st.sampled_from(sorted(found)))]
        case 2:
            found[draw(odd_texts)] = draw(wild)
    return found


def tool_arguments(name: str) -> st.SearchStrategy[Any]:
    """Return arguments of a tool, mostly right."""
    schema = definition(TOOLS[name])["inputSchema"]
    good = {key: TOOL_VALUES.get(key, valid(one)) for key, one in schema["properties"].items() if key != "wait_s"}
    required = tuple(schema["required"])
    if name != "claim_next":
        return mostly(good, required)
    return mostly(good, required).map(lambda found: {**found, "wait_s": 0})


TOOL_ARGUMENTS = {name: tool_arguments(name) for name in TOOLS}
ATS_BODIES = {
    shape: mostly({name: GOOD.get(name, anything) for name in table}, required)
    for shape, (table, required) in BODIES.items()
}
VERBS = mostly({"reason": GOOD["reason"]}, ())

raw_bodies = st.one_of(
    st.binary(max_size=30),
    st.integers(1, 60).map(lambda n: b'{"title":' + b"[" * n + b"]" * n + b"}"),
    st.sampled_from(
        [
            b"[" * 50_000,
            b'{"title":"a","title":"b"}',
            b'{"title":NaN}',
            b'{"title":"a","priority":1e999}',
            b'{"title":"\\ud800"}',
            b'{"title":"\\u0000"}',
            b'{"title":"\xff"}',
            b'{"title":"a","payload":' + b"9" * 5_000 + b"}",
            b"null",
            b'"x"',
            b" ",
            b"\xef\xbb\xbf{}",
            b'{"title":"' + b"x" * 70_000 + b'"}',
        ]
    ),
)
headers = st.dictionaries(
    st.sampled_from(
        ["X-Actor-Type", "X-Actor-ID", "X-Actor-Name", "Content-Type", "Origin", "Accept", "Content-Encoding"]
    ),
    st.one_of(
        st.sampled_from(
            ["agent", "human", "system", "robot", "", "http://localhost:1", "%ff%00", "%0d%0aX: y", *AGENTS]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20),
        st.just("x" * 400),
    ),
    max_size=2,
)
METHODS = ["GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"]

QUERY_VALUES = st.one_of(
    words,
    odd_texts,
    known_ids,
    st.sampled_from(
        ["1", "0", "1000", "pending", "pending,completed", "id,title", "id,nothing", "2026-01-01", "T", "asc"]
    ),
    st.sampled_from(sorted(wire.TASK_FIELDS)),
)
QUERY_NAMES = st.sampled_from([*fields.LIST, "counts", "profile", "nothing"]) | odd_texts


@dataclass(frozen=True)
class Request:
    """One request, before the names of tasks are known."""

    method: str
    path: tuple[Any, ...]
    query: tuple[tuple[Any, Any], ...]
    body: Any
    headers: Mapping[str, str]

    def target(self, model: Model) -> str:
        """Return path and query as they are sent."""
        path = "/" + "/".join(_escape(settle(part, model)) for part in self.path)
        pairs = "&".join(f"{_escape(name)}={_escape(settle(value, model))}" for name, value in self.query)
        return f"{path}?{pairs}" if pairs else path

    def content(self, model: Model) -> bytes | None:
        """Return the body as it is sent."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(settle(self.body, model)).encode()


def _escape(value: Any) -> str:
    return quote(str(value).encode("utf-8", "surrogatepass"), safe=",")


def _place(draw: st.DrawFn, word: str, before: str) -> Any:
    if word != "*":
        return word
    if draw(st.integers(0, 11)) == 0:
        return draw(odd_texts)
    return draw({"tasks": known_ids | known_uuids, "tools": st.sampled_from(list(TOOLS))}.get(before, slugs))


SHAPES = st.one_of(st.sampled_from(list(ROUTES)), st.sampled_from([("tasks",), ("tools", "*"), ("tools", "*")]))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Return a request to some route, mostly one that makes sense."""
    shape = draw(SHAPES)
    path = tuple(_place(draw, word, shape[at - 1]) for at, word in enumerate(shape))
    if shape[0] == "tasks" and draw(st.integers(0, 7)) == 0:
        path = ("orgs", draw(slugs), "projects", draw(slugs), *path)
    method = draw(st.sampled_from(sorted(ROUTES[shape], reverse=True)))
    if draw(st.integers(0, 19)) == 0:
        method = draw(st.sampled_from(METHODS))
    query: tuple[Any, ...] = ()
    if method == "GET" or draw(st.integers(0, 29)) == 0:
        query = tuple(draw(st.lists(st.tuples(QUERY_NAMES, QUERY_VALUES), max_size=3)))
    body = None
    if method not in ("GET", "HEAD", "TRACE"):
        if draw(st.integers(0, 11)) == 0:
            body = draw(raw_bodies)
        elif shape[0] == "tools" and len(path) > 1 and path[1] in TOOL_ARGUMENTS:
            body = draw(TOOL_ARGUMENTS[path[1]])
        else:
            body = draw(ATS_BODIES.get(shape, VERBS))
    return Request(method, path, query, body, draw(headers) if draw(st.integers(0, 7)) == 0 else {})


# --- the service and its judge ---------------------------------------------------------------------------------------


class Judge:
    """Sends requests and checks every answer."""

    def __init__(self, service: ServiceProcess) -> None:
        self.service = service
        self.model = Model()
        self.statuses: dict[int, int] = {}
        parts = urlsplit(service.url)
        self.address = (parts.hostname or "", parts.port or 0)
        self._line = http.client.HTTPConnection(*self.address, timeout=60)
        for slug in ("o1", "o2"):
            self.send(Request("POST", ("orgs",), (), {"slug": slug}, {}))
            self.send(Request("POST", ("orgs", slug, "projects"), (), {"slug": f"p{slug[1]}"}, {}))
        required = {"project_key": PROJECTS[0], "run_id": AGENTS[0], "agent_id": AGENTS[0], "title": "first"}
        for status in STATUS_OF_ATS_WORD.values():
            self.send(Request("POST", ("tools", "core_create_task"), (), {**required, "status": status.value}, {}))

    def close(self) -> None:
        """Close the connection."""
        self._line.close()

    def send(self, request: Request) -> Any:
        """Send a request, check the answer, remember what it acknowledges, and return it."""
        target, content = request.target(self.model), request.content(self.model)
        sent = {"X-Actor-Type": "agent", "X-Actor-ID": AGENTS[0], **request.headers}
        encoded = {name: value.encode("latin-1") for name, value in sent.items()}
        try:
            self._line.request(request.method, target, content, encoded)
            answer = self._line.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self._line.close()
            raise
        status = answer.status
        self.statuses[status] = self.statuses.get(status, 0) + 1
        assert status < 500, (status, text)
        assert answer.headers["content-type"] == "application/json"
        if request.method == "HEAD":
            assert text == b""
            return None
        body = json.loads(text)
        if status >= 400:
            self._check_refusal(body)
        elif request.method != "GET":
            self.model.learn(body)
            if status == 201 and "task" in body:
                self._check_kept(body["task"])
        return body

    def _check_refusal(self, body: Any) -> None:
        for part in ("error", "code", "why", "next"):
            assert isinstance(body[part], str), body
            assert body[part], body
        assert body["error"].strip().endswith((".", "?")), body
        assert "Traceback" not in body["error"]

    def _check_kept(self, made: dict[str, Any]) -> None:
        found = self.send(Request("GET", ("tasks", made["id"]), (), None, {}))["task"]
        assert found | {"messages": []} == made | {"messages": []}

    def check_all(self) -> None:
        """Compare everything that was acknowledged with what the service says."""
        stats = self.send(Request("GET", ("tasks", "stats"), (), None, {}))["stats"]
        assert stats["total"] == len(self.model.tasks)
        ids = list(self.model.tasks)
        names = "id,uuid,status,fencing_token"
        for start in range(0, len(ids), 500):
            listed = ",".join(map(str, ids[start : start + 500]))
            query = (("ids", listed), ("fields", names), ("limit", "1000"))
            for task in self.send(Request("GET", ("tasks",), query, None, {}))["tasks"]:
                kept = self.model.tasks.pop(task["id"])
                told = Kept(task["uuid"], STATUS_OF_ATS_WORD[task["status"]].value, task["fencing_token"])
                assert (told.uuid, told.status, told.token) == (kept.uuid, kept.status, kept.token)
                if kept.messages:
                    thread = self.send(Request("GET", ("tasks", task["id"], "messages"), (), None, {}))["messages"]
                    seen = {message["id"] for message in thread}
                    assert kept.messages <= seen or len(seen) == fields.THREAD_MAX
        assert not self.model.tasks

    def is_alive(self) -> bool:
        """Say whether the process runs and has nothing in its log."""
        events = [event["event"] for event in self.service.process.events]
        assert events == ["service_ready"], self.service.process.tail()
        assert len(self.service.process.output) == 1, self.service.process.tail()
        return self.service.process.exit_code is None


@pytest.fixture(scope="module", params=sorted(STORES))
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    """One service on each database. For ten minutes no lease is taken back: only requests change anything."""
    with service_on(request.param, DISPATCH_REGRANT_DELAY_S="600") as service:
        made = Judge(service)
        yield made
        made.close()


def for_a_while(share: str, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> int:
    """Check examples of ``strategy`` until this share of the time is over; return how many."""
    deadline = time.monotonic() + SECONDS * SHARES[share] / len(STORES)
    count = 0

    @settings(
        max_examples=50,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def batch(example: Any) -> None:
        nonlocal count
        count += 1
        check(example)

    # The same in every run, unless somebody wants to find something.
    for number in itertools.count(random.getrandbits(32) if "FUZZ_SECONDS" in os.environ else 1):
        seed(number)(batch)()
        if time.monotonic() >= deadline:
            break
    return count


@pytest.mark.timeout(SECONDS * 4 + 60)
def test_nonsense_is_refused_and_what_was_acknowledged_is_kept(judge: Judge) -> None:
    """Never a 5xx, always JSON with error, code, why and next; the log stays empty; no acknowledged write is lost."""

    def check(several: list[Request]) -> None:
        for request in several:
            judge.send(request)

    sent = for_a_while("calls", st.lists(requests(), min_size=5, max_size=15), check)
    assert sent > 10
    assert {200, 201, 400, 404, 409} <= set(judge.statuses), judge.statuses
    assert judge.statuses[200] + judge.statuses[201] > sum(judge.statuses.values()) / 10
    judge.check_all()
    assert judge.is_alive()


REQUEST = (
    b"POST /tools/core_list_tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 22\r\n\r\n{"project_key":"proj"}'
)
MCP = (
    b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Accept: application/json, text/event-stream\r\nContent-Length: 100\r\n\r\n"
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"core_get_task","arguments":{"x":1}}}'
)
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Return a request that was cut, doubled, changed or filled with other bytes; or nothing like one."""
    text = bytearray(draw(st.sampled_from([REQUEST, MCP, HANDSHAKE, HANDSHAKE + b"\x81\x85aaaa"])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        match draw(st.integers(0, 3)):
            case 0:
                text[at : at + draw(st.integers(1, 30))] = b""
            case 1:
                text[at:at] = draw(st.binary(max_size=8))
            case 2:
                lines = [
                    b"Transfer-Encoding: chunked\r\n",
                    b"Content-Length: -1\r\n",
                    b"Content-Length: 99999999999999999999\r\n",
                    b"Expect: 100-continue\r\n",
                    b"Host: evil\r\n",
                    b"\r\n",
                    b"X: " + b"y" * 9_000 + b"\r\n",
                    b"ffffffffff\r\n",
                ]
                text[at:at] = draw(st.sampled_from(lines))
            case 3:
                text += text[at:]
    return bytes(text)


@pytest.mark.timeout(SECONDS * 4 + 60)
def test_broken_bytes_end_their_connection_at_most(judge: Judge) -> None:
    """Whatever is sent instead of HTTP gets a refusal or a closed connection, never a 5xx, and nothing in the log."""

    def check(sent: bytes) -> None:
        answer = b""
        with socket.create_connection(judge.address, timeout=60) as raw, contextlib.suppress(ConnectionError):
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            while chunk := raw.recv(65_536):
                answer += chunk
        assert not answer or answer.startswith((b"HTTP/1.1 1", b"HTTP/1.1 2", b"HTTP/1.1 4")), answer[:300]

    for_a_while("bytes", broken(), check)
    assert judge.send(Request("GET", ("health",), (), None, {}))["status"] == "ok"
    assert judge.is_alive()


SUBSCRIBE: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(["subscribe", "subscribe", "ping", "x"]),
    "id": words | st.none(),
    "channels": st.lists(words, max_size=3),
    "task_types": st.lists(words, max_size=3),
    "event_types": st.lists(words, max_size=3),
    "since": st.integers(0, 50) | st.none(),
    "thin": st.booleans(),
    "extended": st.booleans(),
}
frames = st.lists(
    st.one_of(
        mostly(SUBSCRIBE, ("type",)).map(lambda frame: json.dumps(settle(frame, Model()))),
        anything.map(json.dumps),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.binary(max_size=20),
        raw_bodies.map(lambda raw: raw.decode("latin-1")),
    ),
    max_size=12,
)
queries = st.lists(st.tuples(st.sampled_from(["actor_type", "actor_id", "actor_name", "x"]), odd_texts), max_size=3)


@pytest.mark.timeout(SECONDS * 4 + 60)
def test_odd_frames_are_answered_or_end_their_connection(judge: Judge) -> None:
    """Each frame is answered by JSON with a type; afterwards the connection still answers a ping."""

    def check(example: tuple[list[tuple[str, str]], list[str | bytes]]) -> None:
        pairs, sent = example
        query = "&".join(f"{name}={_escape(value)}" for name, value in pairs)
        url = f"ws://{judge.address[0]}:{judge.address[1]}/ws?{query}"
        line, refused = None, 0
        try:
            line = connect(url, compression=None, open_timeout=60, close_timeout=5)
        except InvalidStatus as exc:
            refused = exc.response.status_code
        assert refused in (0, 400)
        if line is None:
            return
        with line, contextlib.suppress(ConnectionClosed):
            for frame in sent:
                line.send(frame)
            line.send('{"type":"subscribe","id":"the last"}')
            while True:
                answer = json.loads(line.recv(timeout=60))
                assert answer["type"]
                if answer["type"] == "subscribed" and answer["id"] == "the last":
                    break
                if answer["type"] == "error":
                    assert answer["error"]
                    assert answer["code"]

    for_a_while("frames", st.tuples(queries, frames), check)
    judge.send(Request("POST", ("tasks",), (), {"title": "still here"}, {}))
    assert judge.is_alive()
