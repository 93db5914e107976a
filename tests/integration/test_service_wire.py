"""The REST face as unmodified ATS clients use it, over real sockets."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.service import STORES, Client, service_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.service import ServiceProcess


@pytest.fixture(scope="module", params=STORES)
def service(request: pytest.FixtureRequest) -> Iterator[ServiceProcess]:
    """One service for the file on each store."""
    with service_on(request.param) as running:
        yield running
        assert running.stop() == 0
        assert not [line for line in running.process.output if "Traceback" in line or '"error"' in line]


@pytest.fixture
def client(service: ServiceProcess) -> Client:
    """An agent."""
    return service.client()


def test_health_announces_the_extensions(client: Client) -> None:
    """Clients find out what the service can do beyond ATS."""
    body = client.get("/health")
    assert body["status"] == "ok"
    assert {"fencing", "start", "renew", "release", "events.since"} <= set(body["extensions"])


def test_the_life_of_a_task_as_the_cli_sends_it(client: Client) -> None:
    """Create, list, claim, message, complete and reopen with the captured bodies give the objects it reads."""
    made = client.post(
        "/tasks",
        {
            "title": "Write",
            "type": "task",
            "channel": "cli",
            "priority": 7,
            "description": "d",
            "payload": {"a": [1, "ü"]},
        },
    )["task"]
    path = f"/tasks/{made['id']}"
    assert (made["status"], made["source_name"], made["source_type"]) == ("pending", "Worker-1", "agent")
    assert (made["payload"], made["outputs"], made["lease_expires"]) == ({"a": [1, "ü"]}, None, None)
    listed = client.get("/tasks?status=pending&channel=cli&sort_by=priority&sort_dir=desc&limit=20")
    assert (listed["count"], [task["id"] for task in listed["tasks"]]) == (1, [made["id"]])
    claimed = client.post(f"{path}/claim", {"lease_duration": 120_000})["task"]
    assert (claimed["assignee_name"], claimed["status"]) == ("Worker-1", "in_progress")
    assert claimed["lease_expires"].endswith("Z")
    said = client.post(f"{path}/messages", {"parts": [{"type": "text", "content": "hello"}]})["message"]
    assert (said["actor_name"], said["parts"]) == ("Worker-1", [{"type": "text", "content": "hello"}])
    done = client.post(f"{path}/complete", {"outputs": [{"response": "ok"}]})["task"]
    assert (done["status"], done["outputs"], done["lease_expires"]) == ("completed", [{"response": "ok"}], None)
    shown = client.get(path)["task"]
    assert [m["id"] for m in shown["messages"]] == [said["id"]]
    assert client.get(f"{path}/messages")["messages"] == shown["messages"]
    assert client.post(f"{path}/reopen", {})["task"]["status"] == "pending"
    assert client.call("POST", f"{path}/cancel", raw=b"")[1]["task"]["status"] == "cancelled"


@pytest.mark.parametrize("verb", ["fail", "reject", "reopen"])
def test_verbs_take_a_reason(client: Client, verb: str) -> None:
    """``{}`` and ``{"reason": ...}`` are both fine."""
    for body in ({}, {"reason": "because"}):
        path = f"/tasks/{client.create()['id']}"
        if verb == "fail":
            client.post(f"{path}/claim", {})
        if verb == "reopen":
            client.post(f"{path}/cancel")
        assert client.post(f"{path}/{verb}", body)["task"]["reason"] == body.get("reason")


def test_terminal_tasks_refuse_a_claim_in_known_words(client: Client) -> None:
    """The refusal contains "<status> status", which existing clients look for."""
    for verb in ("cancel", "reject"):
        path = f"/tasks/{client.create()['id']}"
        word = client.post(f"{path}/{verb}")["task"]["status"]
        status, body = client.refused("POST", f"{path}/claim", {})
        assert (status, body["code"], body["status"]) == (409, "ILLEGAL_MOVE", word)
        assert f"{word} status" in body["error"]


def test_uuid_and_number_name_the_same_task(client: Client) -> None:
    """Both ids work on every route."""
    task = client.create()
    assert client.get(f"/tasks/{task['uuid']}")["task"]["id"] == task["id"]
    assert client.post(f"/tasks/{task['uuid'].upper()}/claim", {})["task"]["id"] == task["id"]


def test_fenced_calls_answer_with_the_lease(client: Client) -> None:
    """Claim, start and renew answer task and lease; release and complete answer the task."""
    path = f"/tasks/{client.create()['id']}"
    lease = client.post(f"{path}/claim", {"lease_duration": 5_000, "claim_id": "c"})["lease"]
    assert (lease["fencing_token"], lease["ttl_ms"]) == (1, 5_000)
    started = client.post(f"{path}/start", {"fencing_token": 1, "runner": "r", "message": "Agent processing started"})
    assert (started["task"]["attempts"], started["task"]["runner"], started["lease"]["ttl_ms"]) == (1, "r", 5_000)
    renewed = client.post(f"{path}/renew", {"fencing_token": 1, "lease_duration": 60_000})
    assert 59_000 < renewed["task"]["lease_ttl_ms"] <= renewed["lease"]["ttl_ms"] == 60_000
    freed = client.post(f"{path}/release", {"fencing_token": 1, "counted": True, "delay_ms": 60_000, "reason": "r"})
    assert (freed["task"]["status"], freed["task"]["attempts"]) == ("pending", 1)
    status, body = client.refused("POST", f"{path}/claim", {})
    assert (status, body["code"]) == (409, "NOT_READY")
    assert 0 < body["retry_after_ms"] <= 60_000
    status, body = client.refused("POST", f"{path}/renew", {"fencing_token": 1})
    assert (status, body["code"], body["status"]) == (409, "STALE_LEASE", "pending")
    assert client.get(path)["task"]["messages"][0]["parts"][0]["content"] == "Agent processing started"


def test_list_fields_ids_and_comma_lists(client: Client) -> None:
    """The extensions of the list return exactly what was named."""
    ids = [client.create(channel=f"l{n}", payload=n)["id"] for n in range(3)]
    client.post(f"/tasks/{ids[2]}/claim", {})
    body = client.get(f"/tasks?ids={ids[0]},{ids[2]}&fields=id,status,payload,lease_ttl_ms&sort_dir=asc")
    ttl = body["tasks"][1].pop("lease_ttl_ms")
    assert 0 < ttl <= 60_000
    assert body["tasks"] == [
        {"id": ids[0], "status": "pending", "payload": 0},
        {"id": ids[2], "status": "in_progress", "payload": 2},
    ]
    body = client.get("/tasks?channel=l0,l1,l2&status=in_progress,completed&fields=id")
    assert [task["id"] for task in body["tasks"]] == [ids[2]]
    assert client.get(f"/tasks/{ids[0]}?fields=id,title") == {"task": {"id": ids[0], "title": "a task"}}


def test_organizations_and_projects_as_the_cli_makes_them(client: Client) -> None:
    """``project create`` works from nothing, and scoped routes see their own tasks only."""
    assert client.refused("GET", "/orgs/acme")[0] == 404
    assert client.post("/orgs", {"slug": "acme", "name": "Acme"})["organization"]["slug"] == "acme"
    assert client.post("/orgs/acme/projects", {"slug": "web", "name": "Web"})["project"]["slug"] == "web"
    assert client.refused("POST", "/orgs", {"slug": "acme", "name": "Acme"})[0] == 409
    scoped = "/orgs/acme/projects/web/tasks"
    task = client.post(scoped, {"title": "scoped"})["task"]
    assert client.get(f"{scoped}?status=pending")["count"] == 1
    assert client.get(f"{scoped}/{task['id']}")["task"]["title"] == "scoped"
    assert client.refused("POST", f"/orgs/default/projects/main/tasks/{task['id']}/claim", {})[0] == 404
    assert client.get(f"/tasks?project_id={task['project_id']}")["count"] == 1
    assert client.post(f"{scoped}/{task['id']}/claim", {})["task"]["status"] == "in_progress"
    (project,) = client.get("/orgs/acme/projects?counts=true")["projects"]
    assert (project["pending_count"], project["in_progress_count"], project["total_count"]) == (0, 1, 1)
    assert "acme" in [org["slug"] for org in client.get("/orgs")["organizations"]]
    assert client.call("PATCH", "/orgs/acme/projects/web", {"slug": "www"})[1]["project"]["slug"] == "www"
    assert client.call("PATCH", "/orgs/acme", {"slug": "acme2"})[1]["organization"]["slug"] == "acme2"
    assert client.get("/orgs/acme2/projects/www/tasks")["count"] == 1
    assert client.get("/orgs/acme2/projects/www")["project"]["name"] == "Web"


def test_stats_have_the_shape_the_cli_reads(client: Client) -> None:
    """Every key is there."""
    client.create()
    stats = client.get("/tasks/stats")["stats"]
    assert stats["total"] == sum(stats["by_status"].values()) == sum(stats["by_channel"].values())
    assert set(stats["recent"]) == {"created_24h", "completed_24h", "created_7d", "completed_7d"}


def test_largest_payload_and_output_go_through(client: Client) -> None:
    """256 KiB in, 4 MiB out, both come back as they were."""
    payload = {"x": "ä" * 131_000}
    path = f"/tasks/{client.create(payload=payload, description='d' * 65_536)['id']}"
    client.post(f"{path}/claim", {})
    outputs = [{"response": "x" * 4_190_000}]
    client.post(f"{path}/complete", {"outputs": outputs})
    task = client.get(path)["task"]
    assert (task["payload"], task["outputs"]) == (payload, outputs)


def test_sixteen_racing_claimants_one_winner(service: ServiceProcess, client: Client) -> None:
    """Sixteen connections claim the same task at once, five times: one wins each time."""
    clients = [service.client(f"racer-{n}") for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        for _ in range(5):
            path = f"/tasks/{client.create()['id']}/claim"
            results = list(pool.map(Client.call, clients, ["POST"] * 16, [path] * 16, [{}] * 16))
            assert sorted(status for status, _ in results) == [200] + [409] * 15
            assert {body["code"] for status, body in results if status == 409} == {"LEASE_HELD"}


def test_many_are_claimed_in_one_call(service: ServiceProcess, client: Client) -> None:
    """Each id gets its grant or its refusal in order; repeating the call returns the same grants."""
    mine, held, gone = (client.create()["id"] for _ in range(3))
    service.client("other").post(f"/tasks/{held}/claim", {})
    client.post(f"/tasks/{gone}/cancel")
    body = {"ids": [held, mine, gone, 10**9], "claim_id": "m", "lease_duration": 60_000}
    for _ in range(2):
        claims = client.post("/tasks/claim", body)["claims"]
        assert [claim["id"] for claim in claims] == body["ids"]
        assert [claim.get("code") for claim in claims] == ["LEASE_HELD", None, "ILLEGAL_MOVE", "NOT_FOUND"]
        assert (claims[1]["task"]["status"], claims[1]["lease"]["fencing_token"]) == ("in_progress", 1)


def test_a_sealed_message_belongs_to_one_task(client: Client) -> None:
    """The same digest of the same task is 200 again, of another task 409, with a stale token STALE_LEASE."""
    first, second = (client.create(payload={"encrypted": True})["id"] for _ in range(2))
    body = {"fencing_token": 1, "digest": secrets.token_hex(32)}
    for ident in (first, second):
        client.post(f"/tasks/{ident}/claim", {})
    for _ in range(2):
        assert client.post(f"/tasks/{first}/seal", body)["task"]["sealed"] is True
    before = client.get(f"/tasks/{second}")
    status, answer = client.refused("POST", f"/tasks/{second}/seal", body)
    assert (status, answer["code"], answer["first_id"]) == (409, "SEAL_REPLAYED", first)
    assert client.refused("POST", f"/tasks/{second}/seal", {**body, "fencing_token": 2})[1]["code"] == "STALE_LEASE"
    after = client.get(f"/tasks/{second}")
    for shown in (before, after):
        del shown["task"]["lease_ttl_ms"]
    assert before == after
    assert client.get(f"/tasks?ids={first}&fields=id,sealed")["tasks"] == [{"id": first, "sealed": True}]


def test_a_message_under_a_token_is_fenced(client: Client) -> None:
    """With the current token it is appended, with its kind; with another it is refused and nothing is said."""
    path = f"/tasks/{client.create()['id']}"
    client.post(f"{path}/claim", {})
    body = {"parts": [{"type": "text", "content": "why"}], "kind": "log", "fencing_token": 1}
    assert client.post(f"{path}/messages", body)["message"]["kind"] == "log"
    assert client.refused("POST", f"{path}/messages", {**body, "fencing_token": 2})[1]["code"] == "STALE_LEASE"
    client.post(f"{path}/complete", {"fencing_token": 1})
    assert client.refused("POST", f"{path}/messages", body)[1]["code"] == "STALE_LEASE"
    assert len(client.get(f"{path}/messages")["messages"]) == 1
