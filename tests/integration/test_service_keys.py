"""API keys on a real service: who gets in, what they see, and when they are out again."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.support.processes import PATIENCE_S, eventually
from tests.support.promises import promised
from tests.support.service import Client, ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY_VIOLATION = 1008
WRONG = f"dsk_0123456789ab_{'0' * 64}"
UUID = "8f14e45f-ceea-467f-9a36-dedd4bea2543"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service of its own, without keys so far."""
    with ServiceProcess(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def standing_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One for all tests that only make keys, and use them."""
    with ServiceProcess(tmp_path_factory.mktemp("keys")) as running:
        yield running


@pytest.fixture
def keyed(standing_service: ServiceProcess) -> Iterator[ServiceProcess]:
    """It; the keys that a test makes are revoked at its end."""
    yield standing_service
    standing_service.revoke_keys()


class Listener:
    """A WebSocket that is subscribed to everything, with a key or without."""

    def __init__(self, service: ServiceProcess, token: str | None = None, **subscription: Any) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._stack = contextlib.ExitStack()
        url = f"{service.url.replace('http', 'ws', 1)}/ws"
        self.socket: ClientConnection = self._stack.enter_context(
            connect(url, additional_headers=headers, compression=None, proxy=None)
        )
        self.next()
        self.socket.send(json.dumps({"type": "subscribe", **subscription}))
        self.next()

    def next(self) -> Any:
        """Return the next frame."""
        return json.loads(self.socket.recv(timeout=PATIENCE_S))

    def drained(self) -> list[Any]:
        """Return every frame until now."""
        self.socket.send('{"type":"ping"}')
        found = []
        while (frame := self.next())["type"] != "pong":
            found.append(frame)
        return found

    def until_closed(self) -> tuple[list[Any], int]:
        """Return what still comes, and the code with which the service closes."""
        found = []
        while True:
            try:
                found.append(self.next())
            except ConnectionClosed as exc:
                return found, exc.rcvd.code if exc.rcvd else 0

    def close(self) -> None:
        """Close the connection."""
        self._stack.close()


@pytest.fixture
def listen() -> Iterator[Any]:
    """Make listeners that are closed afterwards."""
    made: list[Listener] = []

    def make(*args: Any, **options: Any) -> Listener:
        made.append(Listener(*args, **options))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def _whole_answer(service: ServiceProcess, path: str, token: str | None) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(answer.read())
    finally:
        connection.close()


# --- in or out ------------------------------------------------------------------------------------------------------


def test_the_first_key_closes_the_door_under_a_running_service(service: ServiceProcess, listen: Any) -> None:
    """Keyless callers and sockets work until the first key is made, beside the service, and not a moment longer."""
    assert service.process.find("service_ready", keys=False)
    keyless = service.client()
    keyless.create()
    listener = listen(service)
    key_id, text = service.make_key("first")
    status, answer = keyless.refused("GET", "/tasks")
    assert (status, answer["code"]) == (401, "UNAUTHORIZED")
    keyed = service.client(token=text)
    keyed.create(title="unheard")
    frames, code = listener.until_closed()
    assert ([frame["type"] for frame in frames], code) == ([], POLICY_VIOLATION)
    service.revoke_key(key_id)
    for client in (keyed, keyless):
        assert client.refused("GET", "/tasks")[0] == 401, "a service whose keys are all revoked has fallen open"
    service.stop()
    service.start()
    assert service.process.find("service_ready", keys=True)
    assert service.client().refused("POST", "/tasks", {"title": "t"})[0] == 401


def test_refusals_are_uniform_and_health_is_open(keyed: ServiceProcess) -> None:
    """Wrong, unknown, malformed, revoked and expired keys get the same 401 on REST and in the handshake."""
    good_id, good = keyed.make_key("good")
    revoked_id, revoked = keyed.make_key("revoked")
    _, expired = keyed.make_key("expired", expires_s=0)
    keyed.revoke_key(revoked_id)
    tampered = good[:-1] + ("0" if good[-1] != "0" else "1")
    answers = []
    for text in (WRONG, revoked, expired, tampered, "dsk_x_y", f"{good} {good}"):
        status, headers, body = _whole_answer(keyed, "/tasks", text)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        answers.append(body)
        with pytest.raises(InvalidStatus) as caught:
            Listener(keyed, text)
        response = caught.value.response
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        answers.append(json.loads(response.body or b""))
        assert _whole_answer(keyed, "/health", text)[0] == 200
    assert all(answer == answers[0] for answer in answers)
    status, headers, body = _whole_answer(keyed, "/tasks", None)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    for path in ("/nowhere", "/tasks/1", "/orgs", "/tasks/stats", "/auth/me", f"/tasks?token={good}"):
        assert _whole_answer(keyed, path, None)[0] == 401
    assert _whole_answer(keyed, "/health", None)[0] == 200
    assert _whole_answer(keyed, "/tasks", good)[0] == 200
    assert good_id not in json.dumps(answers)


def test_a_revoked_key_is_out_at_once_under_load(keyed: ServiceProcess, listen: Any) -> None:
    """No request that is sent after the revocation succeeds, and no event of that time is heard."""
    _, other = keyed.make_key("other")
    key_id, text = keyed.make_key("loaded")
    listener = listen(keyed, text)
    revoked_at: list[float] = []
    late: list[tuple[float, int]] = []
    served = [0] * 4

    def churn(number: int) -> None:
        client = Client(keyed.url, token=text)
        try:
            while True:
                sent_at = time.monotonic()
                status, _ = client.call("POST", "/tasks", {"title": "churn"})
                served[number] += 1
                if revoked_at and sent_at > revoked_at[0]:
                    late.append((sent_at, status))
                if status == 401:
                    return
        finally:
            client.close()

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: min(served) > 20)
    keyed.revoke_key(key_id)
    revoked_at.append(time.monotonic())
    keyed.client(token=other).create(title="after the revocation")
    with promised(3.0, "the end of the socket"):
        frames, code = listener.until_closed()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert {status for _, status in late} <= {401}
    assert code == POLICY_VIOLATION
    assert "after the revocation" not in json.dumps(frames)


def test_an_idle_socket_ends_with_its_key(keyed: ServiceProcess, listen: Any) -> None:
    """A key that expires or is revoked while nothing happens closes its socket within about a second."""
    key_id, text = keyed.make_key("revoked")
    _, short = keyed.make_key("short", expires_s=3)
    listeners = [listen(keyed, text), listen(keyed, short)]
    keyed.revoke_key(key_id)
    with promised(1.5, "the end of the socket"):
        assert listeners[0].until_closed()[1] == POLICY_VIOLATION
    assert listeners[1].until_closed()[1] == POLICY_VIOLATION
    assert keyed.client(token=short).refused("GET", "/tasks")[0] == 401


# --- what a key allows ----------------------------------------------------------------------------------------------


def test_access_of_keys(service: ServiceProcess) -> None:
    """read only looks, write works with tasks, admin changes organisations and projects; refusals change nothing."""
    clients = {
        name: service.client(token=service.make_key(name, access=name)[1]) for name in ("read", "write", "admin")
    }
    task = clients["write"].create()
    for path in (
        "/tasks",
        f"/tasks/{task['id']}",
        f"/tasks/{task['id']}/messages",
        "/tasks/stats",
        "/orgs",
        "/auth/me",
    ):
        for client in clients.values():
            client.get(path)
    for method, path, body in (
        ("POST", "/tasks", {"title": "t"}),
        ("PATCH", f"/tasks/{task['id']}", {"title": "u"}),
        ("POST", f"/tasks/{task['id']}/claim", {}),
        ("POST", "/tasks/claim", {"ids": [task["id"]], "claim_id": "c"}),
        ("POST", f"/tasks/{task['id']}/cancel", None),
        ("POST", f"/tasks/{task['id']}/messages", {"parts": [{"type": "text", "content": "x"}]}),
    ):
        status, answer = clients["read"].refused(method, path, body)
        assert (status, answer["code"]) == (403, "FORBIDDEN"), path
    for name in ("read", "write"):
        for method, path in (("POST", "/orgs"), ("PATCH", "/orgs/default"), ("POST", "/orgs/default/projects")):
            assert clients[name].refused(method, path, {"slug": "evil"})[0] == 403
        assert clients[name].refused("PATCH", "/orgs/default/projects/main", {"slug": "evil"})[0] == 403
    unchanged = clients["admin"].get(f"/tasks/{task['id']}")["task"]
    assert (unchanged["title"], unchanged["status"]) == ("a task", "pending")
    clients["admin"].post("/orgs", {"slug": "acme"})
    clients["admin"].post("/orgs/acme/projects", {"slug": "web"})
    assert clients["read"].get("/orgs/acme/projects")["projects"][0]["slug"] == "web"


def test_headers_cannot_make_somebody_else(keyed: ServiceProcess) -> None:
    """Type and id come from the key; instances of a fleet's actor are taken; an agent with a UUID is itself only."""
    cases = [
        (keyed.make_key("bob")[1], "eve", "human", ("agent", "bob")),
        (keyed.make_key("alice")[1], "bob", "agent", ("agent", "alice")),
        (keyed.make_key("dispatch")[1], "dispatch-host-2", "system", ("agent", "dispatch-host-2")),
        (keyed.make_key("ann", kind="human", actor="ann")[1], "bob", "agent", ("human", "ann")),
        (keyed.make_key("tool", actor=UUID)[1], f"{UUID}-2", "agent", ("agent", UUID)),
    ]
    for text, claimed, kind, (wanted_kind, wanted_id) in cases:
        client = keyed.client(claimed, kind, text)
        task = client.create()
        assert (task["source_type"], task["source_id"]) == (wanted_kind, wanted_id), claimed
        held = client.post(f"/tasks/{task['id']}/claim")["task"]
        assert held["assignee_id"] == wanted_id
        me = client.get("/auth/me")
        assert (me["actor"]["id"], me["keyed"], me["access"]) == (wanted_id, True, "write")


def test_only_the_holder_completes(keyed: ServiceProcess) -> None:
    """What one key has claimed another one cannot complete, whatever its headers say."""
    one = keyed.client("bob", token=keyed.make_key("bob")[1])
    other = keyed.client("bob", token=keyed.make_key("eve")[1])
    task = one.create()
    token = one.post(f"/tasks/{task['id']}/claim")["lease"]["fencing_token"]
    for verb in ("complete", "renew", "release", "start"):
        body = {"fencing_token": token, **({"runner": "r"} if verb == "start" else {})}
        status, answer = other.refused("POST", f"/tasks/{task['id']}/{verb}", body)
        assert (status, answer["code"]) == (409, "LEASE_HELD"), verb
    assert one.get(f"/tasks/{task['id']}")["task"]["status"] == "in_progress"
    for _ in range(2):
        one.post(f"/tasks/{task['id']}/complete", {"fencing_token": token})


# --- projects -------------------------------------------------------------------------------------------------------


@pytest.fixture
def acme(service: ServiceProcess) -> Any:
    """An admin, and tasks in three projects of two organisations."""
    admin = service.client(token=service.make_key("admin", access="admin")[1])
    admin.post("/orgs", {"slug": "acme"})
    for slug in ("web", "api"):
        admin.post("/orgs/acme/projects", {"slug": slug})
    return admin


def test_a_key_for_a_project_sees_nothing_else(service: ServiceProcess, acme: Client, listen: Any) -> None:
    """Every GET route, by number and by UUID, scoped and not, and the events: the other projects do not exist."""
    web = service.client(token=service.make_key("web", access="admin", projects=["acme/web"])[1])
    listener = listen(service, service.make_key("web-ears", access="read", projects=["acme/web"])[1])
    mine = web.post("/orgs/acme/projects/web/tasks", {"title": "mine", "channel": "c"})["task"]
    hidden = [
        acme.post("/orgs/acme/projects/api/tasks", {"title": "theirs", "channel": "secret"})["task"],
        acme.create(title="the default's"),
    ]
    for task in hidden:
        acme.post(f"/tasks/{task['id']}/messages", {"parts": [{"type": "text", "content": "psst"}]})
        for ident in (task["id"], task["uuid"]):
            routes = ["/tasks/{}", "/tasks/{}/messages", "/orgs/acme/projects/web/tasks/{}"]
            routes += ["/orgs/acme/projects/api/tasks/{}", "/orgs/default/projects/main/tasks/{}"]
            for route in routes:
                status, refusal = web.refused("GET", route.format(ident))
                unknown = str(10**6) if isinstance(ident, int) else "ffffffff-ffff-4fff-8fff-ffffffffffff"
                nothing = web.refused("GET", route.format(unknown))[1]
                assert status == 404
                assert json.dumps(refusal) == json.dumps(nothing).replace(unknown, str(ident))
            for verb in ("claim", "cancel", "complete", "fail", "reject", "reopen"):
                assert web.refused("POST", f"/tasks/{ident}/{verb}")[0] == 404
            for verb in ("start", "renew", "release", "complete", "fail"):
                body = {"fencing_token": 1, **({"runner": "r"} if verb == "start" else {})}
                assert web.refused("POST", f"/tasks/{ident}/{verb}", body)[0] == 404
            assert web.refused("PATCH", f"/tasks/{ident}", {"title": "x"})[0] == 404
            parts = {"parts": [{"type": "text", "content": "x"}]}
            assert web.refused("POST", f"/tasks/{ident}/messages", parts)[0] == 404
    claims = web.post("/tasks/claim", {"ids": [task["id"] for task in hidden], "claim_id": "c"})["claims"]
    assert [claim["code"] for claim in claims] == ["NOT_FOUND", "NOT_FOUND"]
    every = ",".join(str(task["id"]) for task in [mine, *hidden])
    for path in ("/tasks", f"/tasks?ids={every}", "/tasks?search=t", "/orgs/acme/projects/web/tasks"):
        found = web.get(path)["tasks"]
        assert {task["title"] for task in found} <= {"mine"}, path
    assert [task["id"] for task in web.get("/tasks")["tasks"]] == [mine["id"]]
    assert web.get(f"/tasks?project_id={acme.get('/orgs/acme/projects/api')['project']['id']}")["count"] == 0
    stats = web.get("/tasks/stats")["stats"]
    assert (stats["total"], stats["by_channel"], stats["recent"]["created_24h"]) == (1, {"c": 1}, 1)
    assert [org["slug"] for org in web.get("/orgs")["organizations"]] == ["acme"]
    assert [project["slug"] for project in web.get("/orgs/acme/projects?counts=true")["projects"]] == ["web"]
    for path in ("/orgs/default", "/orgs/default/projects", "/orgs/acme/projects/api", "/orgs/acme/projects/api/tasks"):
        assert web.refused("GET", path)[0] == 404, path
    assert web.get("/auth/me")["projects"] == ["acme/web"]
    assert {frame["task_id"] for frame in listener.drained()} == {mine["id"]}
    late = listen(service, service.make_key("late", access="read", projects=["acme/web"])[1], since=0)
    eventually(lambda: bool(late.drained()) or None)
    assert "secret" not in json.dumps(late.drained())


def test_a_key_for_a_project_makes_nothing_elsewhere(service: ServiceProcess, acme: Client) -> None:
    """Without a project in the path it is told what to do; other projects do not exist; no organisation is its own."""
    web = service.client(token=service.make_key("web", access="admin", projects=["acme/web"])[1])
    status, refusal = web.refused("POST", "/tasks", {"title": "t"})
    assert (status, refusal["code"]) == (403, "FORBIDDEN")
    assert "/orgs/ORG/projects/PROJECT/tasks" in refusal["next"]
    assert web.refused("POST", "/orgs/acme/projects/api/tasks", {"title": "t"})[0] == 404
    assert web.refused("POST", "/orgs", {"slug": "mine"})[0] == 403
    assert web.refused("PATCH", "/orgs/acme", {"name": "mine"})[0] == 403
    assert web.refused("POST", "/orgs/acme/projects", {"slug": "more"})[0] == 403
    assert web.refused("PATCH", "/orgs/acme/projects/api", {"name": "mine"})[0] == 404
    assert web.call("PATCH", "/orgs/acme/projects/web", {"name": "Web"})[0] == 200
    assert acme.get("/tasks")["count"] == 0
    both = service.client(token=service.make_key("both", projects=["default/main", "acme/api"])[1])
    both.create()


# --- the Task Tools -------------------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "project_key": "acme/web",
    "to_status": "failed",
    "note": "n",
    "body": "b",
    "run_id": UUID,
    "title": "t",
}


def test_tools_keep_to_the_projects_of_a_key(service: ServiceProcess, acme: Client) -> None:
    """Every tool that names a task or a project says of another project's what it says of one that does not exist."""
    web = service.client(token=service.make_key("web", projects=["acme/web"])[1])
    hidden = acme.post("/orgs/acme/projects/api/tasks", {"title": "theirs"})["task"]["uuid"]
    nothing = "ffffffff-ffff-4fff-8fff-ffffffffffff"
    agent = web.get("/auth/me")["agent_id"]
    tried = 0
    for tool in acme.get("/tools")["tools"]:
        required = tool["inputSchema"]["required"]
        values = {name: VALUES[name] for name in required if name in VALUES}
        values |= {"agent_id": agent} if "agent_id" in required else {}
        values |= {"priority": "high"} if tool["name"] == "core_update_task" else {}
        if "tasks" in required:
            values["tasks"] = [{"ref": "a", "title": "t"}]
        for name, secret, unknown in (("task_id", hidden, nothing), ("project_key", "acme/api", "acme/none")):
            if name in required:
                said = [
                    web.refused("POST", f"/tools/{tool['name']}", {**values, "task_id": nothing, name: value})
                    if "task_id" in required
                    else web.refused("POST", f"/tools/{tool['name']}", {**values, name: value})
                    for value in (secret, unknown)
                ]
                assert said[0][0] == 404, (tool["name"], said)
                assert json.dumps(said[0]).replace(secret, unknown) == json.dumps(said[1]), tool["name"]
                tried += 1
    assert tried > 15
    assert acme.get("/orgs/acme/projects/api/tasks")["tasks"][0]["status"] == "pending"


def test_tools_ask_for_the_access_they_need(keyed: ServiceProcess) -> None:
    """A key that may read calls the tools that read; a key that may write speaks for its own agent only."""
    read = keyed.client(token=keyed.make_key("read", access="read")[1])
    write = keyed.client(token=keyed.make_key("write")[1])
    other = keyed.client(token=keyed.make_key("other")[1])
    task = write.create()
    assert read.post("/tools/core_get_task", {"task_id": task["uuid"]})
    assert read.refused("POST", "/tools/core_claim_task", {"task_id": task["uuid"]})[0] == 403
    mine = write.get("/auth/me")["agent_id"]
    assert other.refused("POST", "/tools/core_claim_task", {"task_id": task["uuid"], "agent_id": mine})[0] == 403
    write.post("/tools/core_claim_and_start_task", {"task_id": task["uuid"]})
    token = write.get(f"/tasks/{task['id']}")["task"]["fencing_token"]
    for tool, more in (("core_release_task_lock", {}), ("core_transition_task", {"to_status": "failed"})):
        body = {"task_id": task["uuid"], "lease_token": token, **more}
        status, answer = other.refused("POST", f"/tools/{tool}", body)
        assert (status, answer["code"]) == (409, "LEASE_HELD"), tool
    assert write.post(
        "/tools/core_transition_task", {"task_id": task["uuid"], "lease_token": token, "to_status": "failed"}
    )


# --- reach, secrets, cost -------------------------------------------------------------------------------------------


def test_with_keys_the_service_may_listen_anywhere(service: ServiceProcess) -> None:
    """A public address, any Host; sites of others are refused, listed ones are not."""
    _, text = service.make_key("k")
    service.stop()
    public = ServiceProcess(
        service.directory, DISPATCH_BIND="0.0.0.0:0", DISPATCH_ALLOWED_ORIGINS="https://app.example"
    ).start()
    try:
        client = public.client(token=text)
        for headers, wanted in (
            ({"Host": "tasks.example"}, 200),
            ({"Host": "tasks.example", "Origin": "https://app.example"}, 200),
            ({"Host": "tasks.example", "Origin": "https://tasks.example"}, 200),
            ({"Host": "tasks.example", "Origin": "https://evil.example"}, 403),
        ):
            assert client.call("GET", "/tasks", headers=headers)[0] == wanted
            assert client.call("GET", "/health", headers=headers)[0] == wanted
        assert public.client().refused("GET", "/tasks")[0] == 401
    finally:
        public.stop()


def test_the_key_is_nowhere(service: ServiceProcess) -> None:
    """Neither log, nor database, nor error, nor any argument or file holds the secret, good or bad."""
    key_id, text = service.make_key("canary")
    secret = text.rpartition("_")[2]
    client = service.client(token=text)
    client.create()
    service.client(token=WRONG).refused("GET", f"/tasks?key={text}")
    answers = [client.refused("GET", "/tasks/99"), client.refused("GET", f"/tasks?token={text}"[:20])]
    service.revoke_key(key_id)
    answers += [client.refused("GET", "/tasks"), service.client(token=text + "x").refused("GET", f"/{text}")]
    assert secret not in json.dumps(answers)
    arguments = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in arguments if secret.encode() in line]
    service.stop()
    assert service.process.find("key_refused", key=key_id, peer="127.0.0.1")
    assert secret not in "\n".join(service.process.output)
    assert WRONG.rpartition("_")[2] not in "\n".join(service.process.output)
    files = [path for path in service.directory.rglob("*") if path.is_file()]
    assert any(path.name == "tasks.db" for path in files)
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_key_can_be_made_while_the_service_writes(service: ServiceProcess) -> None:
    """The command waits for the service's transaction and the service for the command's; nothing fails."""
    _, text = service.make_key("churn")
    stop = threading.Event()
    failed: list[Any] = []

    def churn() -> None:
        client = Client(service.url, token=text)
        try:
            while not stop.is_set():
                status, answer = client.call("POST", "/tasks", {"title": "t"})
                if status != 201:
                    failed.append(answer)
        finally:
            client.close()

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            key_id, made = service.make_key(f"k{number}")
            service.client(token=made).get("/tasks?limit=1")
            service.revoke_key(key_id)
            assert service.client(token=made).refused("GET", "/tasks")[0] == 401
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert failed == []


def test_names_are_unique_among_keys_that_live(keyed: ServiceProcess) -> None:
    """The database itself keeps two live keys from having one name; a revoked one gives its name back."""
    key_id, _ = keyed.make_key("one")
    with contextlib.closing(sqlite3.connect(keyed.directory / "tasks.db")) as raw, pytest.raises(sqlite3.Error):
        raw.execute(
            "INSERT INTO api_keys SELECT 'x', name, secret_sha256, access, actor_type, actor_id, projects,"
            " created_at, expires_at, revoked_at FROM api_keys WHERE id = ?",
            [key_id],
        )
    keyed.revoke_key(key_id)
    assert keyed.make_key("one")[0] != key_id


def test_mcp_wants_the_same_key(keyed: ServiceProcess) -> None:
    """/mcp refuses who has no key and says how to be let in; with one it serves the key's agent, within its access."""
    _, text = keyed.make_key("reader", access="read")

    def ask(method: str, token: str | None, **params: Any) -> tuple[int, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        headers |= {"MCP-Protocol-Version": "2025-06-18", **({"Authorization": f"Bearer {token}"} if token else {})}
        connection = http.client.HTTPConnection(keyed.url.removeprefix("http://"), timeout=60)
        try:
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
            connection.request("POST", "/mcp", body, headers)
            answer = connection.getresponse()
            assert answer.status != 401 or answer.headers["www-authenticate"].startswith("Bearer")
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    for token in (None, WRONG):
        status, said = ask("tools/list", token)
        assert (status, '"UNAUTHORIZED"' in said) == (401, True)
    status, said = ask("tools/list", text)
    assert (status, "core_claim_task" in said) == (200, True)
    status, said = ask("tools/call", text, name="core_claim_task", arguments={"task_id": UUID, "agent_id": UUID})
    assert (status, "needs a key with write access" in said) == (200, True), said
