"""Dependencies on the ATS face, over real sockets and on both databases."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from websockets.sync.client import connect

from tests.support.service import STORES, Client, service_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def complete(client: Client, ident: int, outputs: list[Any] | None = None) -> Any:
    """Claim and complete a task."""
    client.post(f"/tasks/{ident}/claim", {})
    return client.post(f"/tasks/{ident}/complete", {} if outputs is None else {"outputs": outputs})["task"]


def fail(client: Client, ident: int, reason: str = "no") -> Any:
    """Claim and fail a task."""
    client.post(f"/tasks/{ident}/claim", {})
    return client.post(f"/tasks/{ident}/fail", {"reason": reason})["task"]


def explain(client: Client, task: Any) -> list[str]:
    """Return the codes of the reasons why a task is not running."""
    return [one["code"] for one in client.post("/tools/explain", {"task_id": task["uuid"]})["reasons"]]


@contextlib.contextmanager
def listening(service: ServiceProcess, **subscription: Any) -> Iterator[Callable[[], list[Any]]]:
    """Subscribe; the value returns every frame until now, because a ping's answer comes after all of them."""
    with connect(service.url.replace("http", "ws", 1) + "/ws", compression=None, proxy=None) as socket:
        socket.send(json.dumps({"type": "subscribe", **subscription}))
        while json.loads(socket.recv(timeout=60))["type"] != "subscribed":
            pass

        def drained() -> list[Any]:
            socket.send('{"type":"ping"}')
            found = []
            while (frame := json.loads(socket.recv(timeout=60)))["type"] != "pong":
                found.append(frame)
            return found

        yield drained


def future_id(client: Client, ahead: int = 1) -> int:
    """Return the number that a task will get soon."""
    return int(client.create()["id"]) + ahead


def test_extensions_are_announced(client: Client) -> None:
    """A client finds out that the service knows dependencies."""
    assert {"depends_on", "fail.many", "dependencies"} <= set(client.get("/health")["extensions"])


@pytest.mark.parametrize("form", ["number", "text", "list", "hash", "field", "uuid"])
def test_every_form_makes_the_task_wait(client: Client, form: str) -> None:
    """A field, and a number, a text or a list in the payload, mean the same: not claimable until it is completed."""
    first = client.create()
    ident = first["id"]
    body: dict[str, Any] = {
        "number": {"payload": {"depends_on": ident}},
        "text": {"payload": {"depends_on": str(ident)}},
        "list": {"payload": {"depends_on": [str(ident), ident]}},
        "hash": {"payload": {"depends_on": [f"#{ident}"]}},
        "field": {"depends_on": [ident]},
        "uuid": {"depends_on": [first["uuid"].upper()]},
    }[form]
    second = client.create(**body)
    assert second["depends_on"] == [ident]
    assert second["payload"] == body.get("payload")
    status, refusal = client.refused("POST", f"/tasks/{second['id']}/claim", {})
    assert (status, refusal["code"]) == (409, "NOT_READY")
    assert refusal["waits_for"] == [{"id": ident, "task_id": first["uuid"], "status": "pending"}]
    complete(client, ident)
    assert client.post(f"/tasks/{second['id']}/claim", {})["task"]["status"] == "in_progress"


def test_every_shape_of_a_task_shows_what_it_depends_on(client: Client) -> None:
    """Whole, by fields, in lists and thin in claims: numbers, and [] for a task without any."""
    first = client.create(channel="dep-shapes")
    second = client.create(channel="dep-shapes", depends_on=[first["id"]])
    assert client.get(f"/tasks/{first['id']}")["task"]["depends_on"] == []
    assert client.get(f"/tasks/{second['id']}?fields=id,depends_on")["task"] == {
        "id": second["id"],
        "depends_on": [first["id"]],
    }
    listed = client.get("/tasks?channel=dep-shapes&fields=depends_on&sort_dir=asc&sort_by=created_at")["tasks"]
    assert [one["depends_on"] for one in listed] == [[], [first["id"]]]
    claims = client.post("/tasks/claim", {"ids": [first["id"], second["id"]], "claim_id": str(uuid4())})["claims"]
    assert claims[0]["task"]["depends_on"] == []
    assert claims[1]["code"] == "NOT_READY"


def test_lists_find_what_waits_and_what_depends(client: Client) -> None:
    """``waiting`` finds tasks in todo with open dependencies, ``dependent`` all with any, ``claimable`` the ready."""
    first = client.create(channel="dep-list")
    second = client.create(channel="dep-list", depends_on=[first["id"]])
    third = client.create(channel="dep-list", payload={"depends_on": "never"})

    def ids(query: str) -> set[int]:
        return {one["id"] for one in client.get(f"/tasks?channel=dep-list&{query}")["tasks"]}

    assert ids("status=pending&waiting=true") == {second["id"], third["id"]}
    assert ids("claimable=true&status=pending") == {first["id"]}
    complete(client, first["id"])
    assert ids("status=pending&waiting=true") == {third["id"]}
    assert ids("dependent=true") == {second["id"], third["id"]}
    assert ids("claimable=true&status=pending") == {second["id"]}


@pytest.mark.parametrize(
    "wrong",
    [[0], [-1], ["x"], [True], [1.5], [None], [[1]], "1", 1, {"a": 1}, list(range(1, 258))],
)
def test_a_field_that_names_no_tasks_is_refused(client: Client, wrong: Any) -> None:
    """Anything but a list of at most 256 numbers or UUIDs is INVALID."""
    status, refusal = client.refused("POST", "/tasks", {"title": "t", "depends_on": wrong})
    assert (status, refusal["code"]) == (400, "INVALID")


def test_unknown_ids_in_the_field_are_refused_by_name(client: Client) -> None:
    """What does not exist is named, on creation and on a change, and nothing is changed."""
    ghost, number = str(uuid4()), future_id(client, 1000)
    task = client.create()
    for method, path, body in (
        ("POST", "/tasks", {"title": "t", "depends_on": [number, ghost]}),
        ("PATCH", f"/tasks/{task['id']}", {"depends_on": [number, ghost]}),
    ):
        status, refusal = client.refused(method, path, body)
        assert (status, refusal["code"], refusal["missing"]) == (400, "INVALID", [number, ghost])
    assert client.get(f"/tasks/{task['id']}")["task"]["depends_on"] == []


def test_field_and_payload_must_agree(client: Client) -> None:
    """Both naming the same is fine, naming different tasks is INVALID."""
    one, two = client.create()["id"], client.create()["id"]
    made = client.create(depends_on=[one, two], payload={"depends_on": [str(two), one]})
    assert made["depends_on"] == [one, two]
    client.refused("POST", "/tasks", {"title": "t", "depends_on": [one], "payload": {"depends_on": two}})


def test_a_payload_may_name_a_task_before_it_exists(client: Client) -> None:
    """The task waits, explain says so, and the coming of the other makes it an ordinary dependency."""
    number = future_id(client, 2)
    early = client.create(payload={"depends_on": number})
    assert early["depends_on"] == [number]
    assert explain(client, early) == ["DEPENDENCY_MISSING"]
    assert client.refused("POST", f"/tasks/{early['id']}/claim", {})[1]["waits_for"][0]["status"] == "missing"
    late = client.create()
    if late["id"] != number:  # another database hands out numbers otherwise
        pytest.fail(f"the number was {late['id']}, not {number}")
    assert explain(client, early) == ["WAITING_FOR_DEPENDENCIES"]
    complete(client, late["id"])
    client.post(f"/tasks/{early['id']}/claim", {})


def test_a_uuid_named_in_advance_gets_its_number(client: Client) -> None:
    """What a payload calls by a UUID is shown by its number once a tool has made a task with that UUID."""
    ident = str(uuid4())
    early = client.create(payload={"depends_on": [ident]})
    assert early["depends_on"] == [ident]
    arguments = {"project_key": "main", "run_id": str(uuid4()), "title": "late", "task_id": ident}
    late = client.post("/tools/core_create_task", arguments)
    shown = client.get(f"/tasks/{early['id']}")["task"]
    assert shown["depends_on"] == [late["id"]]
    assert client.post("/tools/core_get_task", {"task_id": early["uuid"]})["waits_for"] == [ident]


def test_a_task_of_another_project_counts_as_none(client: Client, service: ServiceProcess) -> None:
    """A field that names one is refused, a payload that names one waits for ever and can be failed."""
    admin = service.client(kind="human")
    slug = f"p{uuid4().hex[:8]}"
    admin.post("/orgs/default/projects", {"slug": slug, "name": "P"})
    other = client.post(f"/orgs/default/projects/{slug}/tasks", {"title": "there"})["task"]
    client.refused("POST", "/tasks", {"title": "t", "depends_on": [other["id"]]})
    task = client.create(payload={"depends_on": [other["id"]]})
    assert explain(client, task) == ["DEPENDENCY_MISSING"]
    complete(client, other["id"])
    assert explain(client, task) == ["DEPENDENCY_MISSING"]
    reason = f"Blocked: dependency #{other['id']} (missing)"
    assert client.post(f"/tasks/{task['id']}/fail", {"reason": reason})["task"]["status"] == "failed"


def test_a_change_replaces_what_was_there(client: Client) -> None:
    """PATCH sets another list or none; a payload that stops naming tasks frees its task."""
    one, two = client.create()["id"], client.create()["id"]
    task = client.create(depends_on=[one])
    path = f"/tasks/{task['id']}"
    assert client.call("PATCH", path, {"depends_on": [two]})[1]["task"]["depends_on"] == [two]
    assert client.call("PATCH", path, {"depends_on": []})[1]["task"]["depends_on"] == []
    assert client.call("PATCH", path, {"payload": {"depends_on": one}})[1]["task"]["depends_on"] == [one]
    assert client.call("PATCH", path, {"payload": {"depends_on": one, "x": 1}})[1]["task"]["depends_on"] == [one]
    assert client.call("PATCH", path, {"payload": {"x": 2}})[1]["task"]["depends_on"] == []
    client.post(f"{path}/claim", {})
    status, refusal = client.refused("PATCH", path, {"depends_on": [one]})
    assert (status, refusal["code"], refusal["status"]) == (409, "UNEXPECTED_STATUS", "in_progress")
    assert client.call("PATCH", path, {"depends_on": []})[0] == 200


def test_circles_are_refused_in_the_field(client: Client) -> None:
    """A task that would depend on itself, directly or not, is refused with the circle."""
    one = client.create()["id"]
    two = client.create(depends_on=[one])["id"]
    three = client.create(depends_on=[two])["id"]
    status, refusal = client.refused("PATCH", f"/tasks/{one}", {"depends_on": [three]})
    assert (status, refusal["code"]) == (400, "INVALID")
    assert set(refusal["cycle"]) == {one, two, three}
    assert client.refused("PATCH", f"/tasks/{one}", {"depends_on": [one]})[1]["cycle"] == [one, one]
    assert client.get(f"/tasks/{one}")["task"]["depends_on"] == []


def test_circles_through_payloads_can_be_failed(client: Client) -> None:
    """Explain says CYCLE for the circle and what stands behind it, and each of them can be failed from pending."""
    number = future_id(client, 2)
    one = client.create(payload={"depends_on": number})
    two = client.create(payload={"depends_on": one["id"]})
    behind = client.create(depends_on=[one["id"]])
    myself = client.create(payload={"depends_on": behind["id"] + 1})
    assert (two["id"], myself["depends_on"]) == (number, [myself["id"]])
    for task in (one, two, behind, myself):
        assert explain(client, task)[0] == "CYCLE"
        assert client.post(f"/tasks/{task['id']}/fail", {"reason": "circle"})["task"]["status"] == "failed"


def test_a_field_that_closes_a_circle_named_in_advance_is_refused(client: Client) -> None:
    """A task that others named before it came may not depend on them."""
    number = future_id(client, 2)
    early = client.create(payload={"depends_on": number})
    status, refusal = client.refused("POST", "/tasks", {"title": "late", "depends_on": [early["id"]]})
    assert status in (400, 409)
    assert set(refusal["cycle"]) == {early["id"], number}
    assert explain(client, early) == ["DEPENDENCY_MISSING"]


def test_completion_tells_of_what_became_ready(client: Client, service: ServiceProcess) -> None:
    """The last completion emits task.ready for each freed task, in order of urgency; plain clients get an update."""
    one, two = client.create(channel="dep-ready")["id"], client.create(channel="dep-ready")["id"]
    low = client.create(channel="dep-ready", depends_on=[one, two], priority=2)["id"]
    high = client.create(channel="dep-ready", depends_on=[two], priority=9)["id"]
    client.create(channel="dep-ready", depends_on=[two, high])
    with (
        listening(service, channels=["dep-ready"], extended=True, thin=True) as extended,
        listening(service, channels=["dep-ready"]) as plain,
    ):
        complete(client, one)
        complete(client, two)
        frames = [frame for frame in extended() if frame["type"] == "task.ready"]
        plain_types = [(frame["type"], frame["task_id"]) for frame in plain()]
    assert [(frame["task_id"], frame["data"]["task"]["depends_on"]) for frame in frames] == [
        (high, [two]),
        (low, [one, two]),
    ]
    assert plain_types[-2:] == [("task.updated", high), ("task.updated", low)]


def test_many_are_failed_in_one_call(client: Client) -> None:
    """Each item has its answer; a cascade in order works; refusals stand in their place and hinder nobody."""
    root = client.create()["id"]
    child = client.create(depends_on=[root])["id"]
    grandchild = client.create(depends_on=[child])["id"]
    free = client.create()["id"]
    fail(client, root)
    items = [
        {"id": child, "reason": f"Blocked: dependency #{root} (failed)"},
        {"id": free, "reason": "x"},
        {"id": 10**12},
        {"id": grandchild, "reason": f"Blocked: dependency #{child} (failed)"},
        {"id": child, "reason": f"Blocked: dependency #{root} (failed)"},
    ]
    results = client.post("/tasks/fail", {"items": items})["results"]
    assert [one["id"] for one in results] == [item["id"] for item in items]
    assert [one.get("code") for one in results] == [None, "ILLEGAL_MOVE", "NOT_FOUND", None, "ILLEGAL_MOVE"]
    assert [results[at]["task"]["status"] for at in (0, 3)] == ["failed", "failed"]
    assert client.get(f"/tasks/{free}")["task"]["status"] == "pending"
    for wrong in ([], [{"reason": "x"}], [{"id": 1}] * 501):
        client.refused("POST", "/tasks/fail", {"items": wrong})


def test_reopening_with_dependents_undoes_a_cascade(client: Client) -> None:
    """What failed only because of the task is reopened; what another failure keeps, or failed by itself, is not."""
    root, other = client.create()["id"], client.create()["id"]
    child = client.create(depends_on=[root])["id"]
    grandchild = client.create(depends_on=[child])["id"]
    both = client.create(depends_on=[root, other])["id"]
    behind_both = client.create(depends_on=[both, child])["id"]
    own = client.create(depends_on=[root])["id"]
    fail(client, root)
    fail(client, other)
    for ident in (child, both, grandchild, behind_both):
        client.post(f"/tasks/{ident}/fail", {"reason": "Blocked: dependency #1 (failed)"})
    client.post(f"/tasks/{own}/fail", {"reason": "by hand"})
    answer = client.post(f"/tasks/{root}/reopen", {"dependents": True})
    assert answer["task"]["status"] == "pending"
    assert [one["id"] for one in answer["reopened"]] == [child, grandchild]
    assert answer["kept"] == [both, behind_both]
    assert client.get(f"/tasks/{own}")["task"]["status"] == "failed"
    complete(client, root)
    client.post(f"/tasks/{other}/reopen", {})
    again = client.post(f"/tasks/{root}/reopen", {"dependents": True})
    assert again["task"]["status"] == "completed"
    assert [one["id"] for one in again["reopened"]] == [both, behind_both]
    assert client.post(f"/tasks/{root}/reopen", {})["task"]["status"] == "pending"


def started(client: Client, ident: int) -> Any:
    """Claim and start a task; return the answer."""
    token = client.post(f"/tasks/{ident}/claim", {})["lease"]["fencing_token"]
    return client.post(f"/tasks/{ident}/start", {"fencing_token": token, "runner": "r"})


def test_start_hands_over_the_results_of_dependencies(client: Client) -> None:
    """The answer to start has id, title, status and outputs of each dependency; a task without any has no such key."""
    one, two = client.create(title="first")["id"], client.create(title="second")["id"]
    complete(client, one, [{"response": "uno"}])
    complete(client, two)
    three = client.create(depends_on=[two, one])["id"]
    assert started(client, three)["dependencies"] == [
        {"id": one, "title": "first", "status": "completed", "outputs": [{"response": "uno"}]},
        {"id": two, "title": "second", "status": "completed", "outputs": None},
    ]
    assert "dependencies" not in started(client, client.create()["id"])


@pytest.mark.parametrize("chars", [30_000, 200_000])
def test_large_results_are_cut(client: Client, chars: int) -> None:
    """However large the outputs are, all together fit into 32 KiB, the beginning of the text as it was, marked."""
    text = ('"line\n\\ü\U0001f600' * chars)[:chars]
    needed = [client.create()["id"] for _ in range(3)]
    complete(client, needed[0], [{"response": text}])
    complete(client, needed[1], [{"other": text}])
    complete(client, needed[2], [{"response": "short"}])
    found = started(client, client.create(depends_on=needed)["id"])["dependencies"]
    assert len(json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()) <= 32_768
    assert found[2]["outputs"] == [{"response": "short"}]
    response = found[0]["outputs"][0]["response"]
    assert text.startswith(response)
    assert len(response) > 4_000
    assert [found[at]["outputs"][0]["truncated"] for at in (0, 1)] == [True, True]


def test_a_task_may_have_256_dependencies(client: Client) -> None:
    """The most that is allowed works from creation to start, and every one of them is in the results."""
    needed = [client.create(title="ü" * 512)["id"] for _ in range(256)]
    task = client.create(depends_on=needed)
    assert task["depends_on"] == needed
    for ident in needed:
        complete(client, ident, [{"response": "r" * 1000}])
    found = started(client, task["id"])["dependencies"]
    assert [one["id"] for one in found] == needed
    assert len(json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()) <= 32_768
    client.refused("POST", "/tasks", {"title": "t", "payload": {"depends_on": [*needed, 10**9]}})
