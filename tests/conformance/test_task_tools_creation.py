"""Creating and changing tasks with the Task Tools, with every limit and default, on every store."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.service import dependencies, tasks
from dispatch.service.rows import Ref, fetch
from dispatch.service.tools.registry import TOOLS
from tests.support.tools import ANN, BOB, NOBODY, RUN, ToolBench

if TYPE_CHECKING:
    from dispatch.service.store import Tx

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOME = str(uuid.uuid5(uuid.NAMESPACE_OID, "some"))


async def count(bench: ToolBench, project: str | None = None) -> int:
    """Return how many tasks a project has."""
    return int((await bench.call("core_list_tasks", project_key=project or bench.project, limit=1000))["count"])


# --- core_create_task ------------------------------------------------------------------------------------------------


async def test_a_task_has_defaults(bench: ToolBench) -> None:
    """backlog, none, no lock, nobody, nothing waited for, empty metadata; the creator and the run are kept."""
    made = await bench.call("core_create_task")
    task = await bench.get(made["task_id"])
    assert made == {**task, "created": True}
    expected = {
        "project_key": bench.project,
        "title": "a task",
        "detail": "",
        "status": "backlog",
        "priority": "none",
        "order_index": None,
        "assigned_to": None,
        "parent_id": None,
        "depends_on": [],
        "waits_for": [],
        "needs": [],
        "run_id": RUN,
        "created_by": ANN,
        "meta_json": {},
        "channel": "default",
        "locked_by": None,
        "lease_token": 0,
        "attempts": 0,
        "completed_at": None,
    }
    assert {name: task[name] for name in expected} == expected
    assert uuid.UUID(task["task_id"])


async def test_everything_that_is_said_is_kept(bench: ToolBench) -> None:
    """Every parameter comes back as it was given; UUIDs in lower case."""
    parent, first = await bench.create(), await bench.create()
    given: dict[str, Any] = {
        "title": "Tïtle 日本 \U0001f600",
        "detail": "# Head\n\nBody",
        "task_id": str(uuid.uuid4()).upper(),
        "parent_id": parent.upper(),
        "depends_on": [first],
        "status": "blocked",
        "priority": "urgent",
        "order_index": 1.5,
        "assigned_to": BOB,
        "meta_json": {"a": [1, {"b": None}], "ключ": "значение"},
        "needs": ["gpu", "net"],
        "channel": "big",
    }
    await bench.call("core_create_task", **given)
    task = await bench.get(given["task_id"])
    lower = {**given, "task_id": given["task_id"].lower(), "parent_id": parent, "waits_for": [first]}
    assert {name: task[name] for name in lower} == lower


@pytest.mark.parametrize("status", ["backlog", "todo", "in_progress", "in_review", "completed", "failed", "skipped"])
async def test_a_task_may_begin_in_any_status(bench: ToolBench, status: str) -> None:
    """The status is taken as given; what is finished has its time of completion."""
    made = await bench.call("core_create_task", status=status)
    assert made["status"] == status
    assert (made["completed_at"] is not None) == (status in {"completed", "failed", "skipped"})
    assert made["locked_by"] is None


AT_THE_LIMIT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "title": ("core_create_task", {"title": "x" * 512}, {"title": "x" * 513}),
    "no title": ("core_create_task", {"title": "x"}, {"title": ""}),
    "blank title": ("core_create_task", {"title": " x"}, {"title": " \n"}),
    "wide title": ("core_create_task", {"title": "\U0001f600" * 512}, {"title": "\U0001f600" * 513}),
    "detail": ("core_create_task", {"detail": "x" * 8_000}, {"detail": "x" * 8_001}),
    "needs": ("core_create_task", {"needs": [f"n{n}" for n in range(32)]}, {"needs": [f"n{n}" for n in range(33)]}),
    "need": ("core_create_task", {"needs": ["x" * 128]}, {"needs": ["x" * 129]}),
    "channel": ("core_create_task", {"channel": "x" * 128}, {"channel": "x" * 129}),
    "project": ("core_create_task", {"project_key": "x" * 64}, {"project_key": "x" * 65}),
    "org": ("core_create_task", {"project_key": "o" * 64 + "/p"}, {"project_key": "o" * 65 + "/p"}),
    "slashes": ("core_create_task", {"project_key": "o/p"}, {"project_key": "o/p/q"}),
    "order": ("core_create_task", {"order_index": -1e300}, {"order_index": -1.1e300}),
    "status": ("core_create_task", {"status": "todo"}, {"status": "pending"}),
    "priority": ("core_create_task", {"priority": "none"}, {"priority": 5}),
    "key": ("core_create_task", {"idempotency_key": "k" * 255}, {"idempotency_key": "k" * 256}),
    "graph": (
        "create_graph",
        {"tasks": [{"ref": f"r{n}", "title": "t"} for n in range(256)]},
        {"tasks": [{"ref": f"r{n}", "title": "t"} for n in range(257)]},
    ),
    "no graph": ("create_graph", {"tasks": [{"ref": "r", "title": "t"}]}, {"tasks": []}),
    "ref": ("create_graph", {"tasks": [{"ref": "r" * 64, "title": "t"}]}, {"tasks": [{"ref": "r" * 65, "title": "t"}]}),
    "graph title": (
        "create_graph",
        {"tasks": [{"ref": "r", "title": "t" * 512}]},
        {"tasks": [{"ref": "r", "title": "t" * 513}]},
    ),
    "search": ("core_list_tasks", {"title_search": "x" * 256}, {"title_search": "x" * 257}),
    "list": ("core_list_tasks", {"limit": 1_000}, {"limit": 1_001}),
    "list of none": ("core_list_tasks", {"limit": 1}, {"limit": 0}),
    "list of less": ("core_list_tasks", {"limit": 1.0}, {"limit": -1}),
    "claim note": ("core_claim_task", {"note": "x" * 4_000}, {"note": "x" * 4_001}),
    "start notes": (
        "core_claim_and_start_task",
        {"claim_note": "x" * 4_000, "start_note": "y" * 4_000},
        {"claim_note": "x" * 4_001},
    ),
    "start note": ("core_claim_and_start_task", {"start_note": ""}, {"start_note": "x" * 4_001}),
    "move note": (
        "core_transition_task",
        {"to_status": "blocked", "note": "x" * 4_000},
        {"to_status": "blocked", "note": "x" * 4_001},
    ),
    "update note": ("core_update_task", {"note": "x" * 4_000}, {"note": "x" * 4_001}),
    "release note": ("core_release_task_lock", {"note": "x" * 4_000}, {"note": "x" * 4_001}),
    "recovery note": (
        "core_recover_task",
        {"to_status": "todo", "note": "x" * 4_000},
        {"to_status": "todo", "note": "x" * 4_001},
    ),
    "body": ("post_task_message", {"body": "x" * 8_000}, {"body": "x" * 8_001}),
    "no body": ("post_task_message", {"body": "x"}, {"body": ""}),
    "tags": (
        "post_task_message",
        {"body": "b", "tags": [str(n) for n in range(32)]},
        {"body": "b", "tags": [str(n) for n in range(33)]},
    ),
    "tag": ("post_task_message", {"body": "b", "tags": ["x" * 128]}, {"body": "b", "tags": ["x" * 129]}),
    "kind": ("post_task_message", {"body": "b", "kind": "log"}, {"body": "b", "kind": "shout"}),
    "thread": ("list_task_messages", {"limit": 200}, {"limit": 201}),
    "thread of none": ("list_task_messages", {"limit": 1}, {"limit": 0}),
    "history": ("task_history", {"limit": 200}, {"limit": 201}),
    "history of none": ("task_history", {"limit": 1}, {"limit": -3}),
    "wait": ("claim_next", {"wait_s": 0}, {"wait_s": -1}),
    "long wait": ("claim_next", {"wait_s": 240}, {"wait_s": 241}),
}
"""What -> tool, arguments at its limit, the same one over."""


@pytest.mark.parametrize("what", AT_THE_LIMIT)
async def test_limits_hold_exactly(bench: ToolBench, what: str) -> None:
    """At the limit a value is accepted; one over it is refused as INVALID, and nothing is made or changed."""
    name, good, bad = AT_THE_LIMIT[what]
    task_id = await bench.create()
    named = {"task_id": task_id} if "task_id" in TOOLS[name].required else {}
    async with bench.untouched(task_id):
        before = await count(bench)
        await bench.refused("INVALID", name, **named, **bad)
        assert await count(bench) == before
    await bench.call(name, **named, **good)


@pytest.mark.parametrize(
    ("name", "field"),
    [("core_create_task", "meta_json"), ("core_update_task", "meta_json"), ("post_task_message", "meta")],
)
async def test_metadata_is_bounded_in_bytes(bench: ToolBench, name: str, field: str) -> None:
    """32 KiB of JSON are accepted, one byte more is TOO_LARGE; anything but an object is INVALID."""
    task_id = await bench.create()
    arguments = {"task_id": task_id} if name != "core_create_task" else {}
    arguments |= {"body": "b"} if name == "post_task_message" else {}
    frame = len('{"k":""}')
    await bench.call(name, **arguments, **{field: {"k": "é" * ((32_768 - frame) // 2)}})
    await bench.refused("TOO_LARGE", name, **arguments, **{field: {"k": "x" * (32_768 - frame + 1)}})
    for wrong in ([], "x", 1, None):
        await bench.refused("INVALID", name, **arguments, **{field: wrong})


async def test_metadata_may_not_grow_over_its_limit_by_merging(bench: ToolBench) -> None:
    """Two halves that are each allowed are refused together, and the first one stays."""
    task_id = await bench.create(meta_json={"a": "x" * 20_000})
    async with bench.untouched(task_id):
        await bench.refused("TOO_LARGE", "core_update_task", task_id=task_id, meta_json={"b": "x" * 20_000})
    await bench.call("core_update_task", task_id=task_id, meta_json={"b": "x" * 20_000}, merge_meta=False)


async def test_dependencies_are_bounded_and_counted_once(bench: ToolBench) -> None:
    """256 are accepted, 257 are not, doubles among them included; a dependency named twice is one."""
    refs = [{"ref": f"r{n}", "title": "t"} for n in range(256)]
    ids = [row["task_id"] for row in (await bench.call("create_graph", tasks=refs))["tasks"]]
    made = await bench.call("core_create_task", depends_on=ids)
    assert sorted(made["depends_on"]) == sorted(ids)
    await bench.refused("INVALID", "core_create_task", depends_on=[*ids, ids[0]])
    twice = await bench.call("core_create_task", depends_on=[ids[0], ids[0].upper(), ids[1]])
    assert twice["depends_on"] == ids[:2]


async def test_dependencies_must_be_there_and_in_the_project(bench: ToolBench) -> None:
    """Itself, a UUID that is nobody's, another project's task, as dependency or parent: INVALID, and nothing made."""
    other = await bench.create(project_key="elsewhere")
    own = str(uuid.uuid4())
    await bench.create()
    before = await count(bench)
    for wrong in (NOBODY, other):
        body = await bench.refused("INVALID", "core_create_task", depends_on=[wrong])
        assert body["missing"] == [wrong]
        await bench.refused("INVALID", "core_create_task", parent_id=wrong)
        await bench.refused("INVALID", "create_graph", tasks=[{"ref": "a", "title": "t", "depends_on": [wrong]}])
    await bench.refused("INVALID", "core_create_task", task_id=own, depends_on=[own])
    await bench.refused("INVALID", "core_create_task", task_id=own, parent_id=own)
    assert await count(bench) == before


async def test_a_project_comes_into_being_with_its_first_task(bench: ToolBench) -> None:
    """Not before, and not by a creation that was refused; every other tool says NOT_FOUND until then."""
    fresh = f"org/{bench.project}"
    for name, arguments in (
        ("core_list_tasks", {}),
        ("claim_next", {"wait_s": 0}),
        ("post_task_message", {"task_id": await bench.create(project_key="elsewhere"), "body": "x"}),
        ("list_task_messages", {"task_id": await bench.create(project_key="elsewhere")}),
    ):
        body = await bench.refused("NOT_FOUND", name, **{"project_key": fresh, **arguments})
        assert "begins with its first task (core_create_task)" in body["next"]
    await bench.refused("INVALID", "core_create_task", project_key=fresh, depends_on=[NOBODY])
    await bench.refused("NOT_FOUND", "core_list_tasks", project_key=fresh)
    made = await bench.call("core_create_task", project_key=fresh)
    assert made["project_key"] == fresh
    assert await count(bench, fresh) == 1
    made = await bench.call("core_create_task", project_key=f"default/{bench.project}")
    assert made["project_key"] == bench.project


@pytest.mark.parametrize("wrong", ["", "/x", "x/", "a b", "ä", "-x", ".", 5, None, "a//b"])
async def test_project_keys_are_judged(bench: ToolBench, wrong: Any) -> None:
    """What cannot be a project is INVALID."""
    await bench.refused("INVALID", "core_create_task", project_key=wrong)


@pytest.mark.parametrize("wrong", ["", "x", "0" * 36, NOBODY[:-1], NOBODY + "\n", "{" + NOBODY + "}", 5, None])
@pytest.mark.parametrize("field", ["run_id", "agent_id", "task_id", "parent_id"])
async def test_uuids_are_judged(bench: ToolBench, field: str, wrong: Any) -> None:
    """Only the form with four hyphens is one."""
    await bench.refused("INVALID", "core_create_task", **{field: wrong})


@pytest.mark.parametrize("name", TOOLS)
async def test_unknown_and_missing_arguments_are_invalid(bench: ToolBench, name: str) -> None:
    """An unknown argument is refused with the nearest known one; each required one is missed by name."""
    examples = {"task_id": NOBODY, "to_status": "todo", "note": "x", "body": "x", "tasks": [{"ref": "a", "title": "t"}]}
    required = {key: examples[key] for key in TOOLS[name].required if key in examples}
    known = TOOLS[name].required[0]
    body = await bench.refused("INVALID", name, **required, **{f"{known}x": 1})
    assert f"did you mean {known!r}" in body["error"]
    complete = {"project_key": bench.project, "run_id": RUN, "agent_id": ANN, "title": "t", **required}
    for missing in TOOLS[name].required:
        arguments = {key: complete[key] for key in TOOLS[name].required if key != missing}
        with pytest.raises(Exception, match=f"{missing!r} is missing"):
            await bench.box.call(name, arguments, bench.caller)


# --- once ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("once", [{"task_id": SOME}, {"idempotency_key": "k"}])
async def test_a_repeated_creation_is_one(bench: ToolBench, once: dict[str, str]) -> None:
    """The same request makes one task: created=false, the task as it is now; another request is a CONFLICT."""
    first = await bench.call("core_create_task", title="one", **once)
    assert first["created"] is True
    await bench.call("core_update_task", task_id=first["task_id"], priority="high")
    again = await bench.call("core_create_task", title="one", **once)
    assert (again["created"], again["task_id"], again["priority"]) == (False, first["task_id"], "high")
    for other in ({"title": "two"}, {"title": "one", "detail": "d"}, {"title": "one", "run_id": NOBODY}):
        await bench.refused("CONFLICT", "core_create_task", **{**once, **other})
    assert await count(bench) == 1


async def test_a_task_id_is_given_once_in_all_projects(bench: ToolBench) -> None:
    """The same words for another project, or for a task that was made otherwise, are another request."""
    ident = str(uuid.uuid4())
    await bench.call("core_create_task", task_id=ident)
    other = f"{bench.project}-2"
    await bench.refused("CONFLICT", "core_create_task", task_id=ident, project_key=other)
    await bench.refused("CONFLICT", "core_create_task", task_id=await bench.create())
    await bench.refused("NOT_FOUND", "core_list_tasks", project_key=other)


async def test_a_key_belongs_to_an_agent_and_a_project(bench: ToolBench) -> None:
    """Another agent or project may use the same key for something else."""
    await bench.call("core_create_task", idempotency_key="k", title="one")
    for other in ({"agent_id": BOB}, {"project_key": f"{bench.project}-2"}):
        assert (await bench.call("core_create_task", idempotency_key="k", title="two", **other))["created"] is True


async def test_creations_at_the_same_moment_are_one(bench: ToolBench) -> None:
    """Eight times the same request at once: one is created, all return it."""
    made = await asyncio.gather(*(bench.call("core_create_task", idempotency_key="k") for _ in range(8)))
    assert len({one["task_id"] for one in made}) == 1
    assert [one["created"] for one in made].count(True) == 1


# --- create_graph ----------------------------------------------------------------------------------------------------


async def test_a_graph_is_made_as_a_whole(bench: ToolBench) -> None:
    """Refs may name what comes later and tasks outside; parents, dependencies and order are as said."""
    outside = await bench.create()
    made = await bench.call(
        "create_graph",
        tasks=[
            {"ref": "last", "title": "L", "depends_on": ["mid", "first", "mid"], "parent": "epic", "status": "todo"},
            {"ref": "mid", "title": "M", "depends_on": ["first", outside], "priority": "high"},
            {"ref": "first", "title": "F", "meta_json": {"x": 1}, "needs": ["gpu"]},
            {"ref": "epic", "title": "E"},
        ],
    )
    assert made["created"] is True
    ids = {row["ref"]: row["task_id"] for row in made["tasks"]}
    assert [row["ref"] for row in made["tasks"]] == ["last", "mid", "first", "epic"]
    last, mid, first = [await bench.get(ids[ref]) for ref in ("last", "mid", "first")]
    assert (set(last["depends_on"]), last["parent_id"]) == ({ids["mid"], ids["first"]}, ids["epic"])
    assert (set(mid["depends_on"]), mid["priority"]) == ({ids["first"], outside}, "high")
    assert (first["meta_json"], first["needs"], first["run_id"], first["created_by"]) == ({"x": 1}, ["gpu"], RUN, ANN)
    assert (last["status"], first["status"]) == ("todo", "backlog")


@pytest.mark.parametrize(
    ("rows", "cycle"),
    [
        ([("a", ["a"], None)], {"a"}),
        ([("a", ["b"], None), ("b", ["c"], None), ("c", ["a"], None), ("d", ["a"], None)], {"a", "b", "c"}),
        ([("a", [], "a")], {"a"}),
        ([("a", [], "b"), ("b", [], "a")], {"a", "b"}),
    ],
)
async def test_circles_are_refused_by_name(bench: ToolBench, rows: Any, cycle: set[str]) -> None:
    """INVALID with the refs of the circle, of dependencies as of parents; none of the tasks is made."""
    await bench.create()
    rows = [
        {"ref": ref, "title": "t", "depends_on": needs} | ({"parent": parent} if parent else {})
        for ref, needs, parent in rows
    ]
    body = await bench.refused("INVALID", "create_graph", tasks=rows)
    assert set(body["cycle"]) == cycle
    assert body["cycle"][0] == body["cycle"][-1]
    assert await count(bench) == 1


@pytest.mark.parametrize("tool", ["core_create_task", "create_graph"])
async def test_circles_with_tasks_that_named_them_before_are_refused(bench: ToolBench, tool: str) -> None:
    """A plain client's payload named a number in advance; the task that gets it may not depend on that client's."""
    early = await bench.get(await bench.create())
    awaited = early["id"] + 1
    ref, by_payload = Ref(early["id"]), dependencies.Asked((awaited,), is_strict=False)
    await bench.store.write(lambda tx: dependencies.replace(tx, ref, fetch(tx, ref), by_payload))
    if tool == "create_graph":
        rows = [{"ref": "a", "title": "t", "depends_on": [early["task_id"]]}]
        body = await bench.refused("INVALID", tool, tasks=rows)
    else:
        body = await bench.refused("INVALID", tool, depends_on=[early["task_id"]])
    assert set(body["cycle"]) == {early["id"], awaited}
    assert await count(bench) == 1


async def test_a_graph_with_a_mistake_makes_nothing(bench: ToolBench) -> None:
    """A doubled ref, an unknown ref, a bad field in the last row: INVALID, and no task."""
    await bench.create()
    good = {"ref": "a", "title": "t"}
    for bad in (
        {"ref": "a", "title": "t"},
        {"ref": "b", "title": "t", "depends_on": ["zzz"]},
        {"ref": "b", "title": "t", "parent": "zzz"},
        {"ref": "b", "title": ""},
        {"ref": "b"},
        {"ref": "b", "title": "t", "task_id": NOBODY},
        "b",
    ):
        await bench.refused("INVALID", "create_graph", tasks=[good, bad])
    assert await count(bench) == 1


async def test_a_repeated_graph_is_one(bench: ToolBench) -> None:
    """With a key the same graph returns the same tasks; another one is a CONFLICT; without a key it is made again."""
    rows = [{"ref": "a", "title": "t"}, {"ref": "b", "title": "t", "depends_on": ["a"]}]
    first = await bench.call("create_graph", tasks=rows, idempotency_key="k")
    again = await bench.call("create_graph", tasks=rows, idempotency_key="k")
    assert (first["created"], again["created"]) == (True, False)
    assert first["tasks"] == again["tasks"]
    await bench.refused("CONFLICT", "create_graph", tasks=rows[:1], idempotency_key="k")
    assert await count(bench) == 2
    await bench.call("create_graph", tasks=rows)
    assert await count(bench) == 4


async def test_a_graph_may_name_very_many_tasks_outside(bench: ToolBench) -> None:
    """More names than a statement of SQLite takes values: the missing are reported, the service is not overloaded."""
    rows = [
        {"ref": f"r{n}", "title": "t", "depends_on": [str(uuid.UUID(int=n * 256 + m)) for m in range(256)]}
        for n in range(140)
    ]
    await bench.refused("INVALID", "create_graph", tasks=rows)


# --- core_update_task ------------------------------------------------------------------------------------------------


async def test_an_update_changes_what_it_names(bench: ToolBench) -> None:
    """Null unassigns and unsorts, leaving out keeps; the history says what was changed, by whom and why."""
    task_id = await bench.create(assigned_to=BOB, order_index=3, priority="low")
    for wish, expected in (
        ({"priority": "urgent"}, (BOB, 3, "urgent")),
        ({"assigned_to": None}, (None, 3, "urgent")),
        ({"order_index": None}, (None, None, "urgent")),
        ({"assigned_to": ANN.upper(), "order_index": -2.5}, (ANN, -2.5, "urgent")),
        ({"note": "only a note"}, (ANN, -2.5, "urgent")),
    ):
        task = await bench.call("core_update_task", task_id=task_id, agent_id=BOB, **wish)
        assert (task["assigned_to"], task["order_index"], task["priority"]) == expected
        assert task["status"] == "todo"
        last = (await bench.history(task_id))[-1]
        assert (last["event"], last["agent_id"]) == ("updated", BOB)
        assert all(name in last["note"] for name in wish if name != "note")
    assert last["note"] == "only a note"


async def test_an_update_of_nothing_is_refused(bench: ToolBench) -> None:
    """No field is INVALID; null where it means nothing, a status and a title are, too."""
    task_id = await bench.create()
    async with bench.untouched(task_id):
        for wish in (
            {},
            {"merge_meta": True},
            {"priority": None},
            {"meta_json": None},
            {"status": "todo"},
            {"title": "x"},
            {"order_index": "1"},
            {"order_index": True},
            {"assigned_to": "bob"},
            {"merge_meta": 1, "meta_json": {}},
        ):
            await bench.refused("INVALID", "core_update_task", task_id=task_id, **wish)


async def test_metadata_is_merged_or_replaced(bench: ToolBench) -> None:
    """Merging sets named keys and removes those named with null, one level deep; replacing keeps nothing."""
    task_id = await bench.create(meta_json={"a": 1, "b": {"x": 1}, "n": None})

    async def update(**wish: Any) -> Any:
        return (await bench.call("core_update_task", task_id=task_id, **wish))["meta_json"]

    assert await update(meta_json={"c": 2}) == {"a": 1, "b": {"x": 1}, "n": None, "c": 2}
    assert await update(meta_json={"b": {"y": 2}, "a": None, "n": 0}) == {"b": {"y": 2}, "c": 2, "n": 0}
    assert await update(meta_json={"zz": None}, merge_meta=True) == {"b": {"y": 2}, "c": 2, "n": 0}
    assert await update(meta_json={"only": None}, merge_meta=False) == {"only": None}
    assert await update(meta_json={}, merge_meta=False) == {}


async def test_a_priority_word_that_fits_changes_no_number(bench: ToolBench) -> None:
    """An ATS priority of 10 is urgent; setting urgent again keeps 10, another word sets its own number."""
    task_id = await bench.create()
    ref = (await bench.get(task_id))["id"]

    async def number() -> int:
        return int((await bench.store.read(lambda tx: fetch(tx, Ref(ref)))).priority)

    def to_ten(tx: Tx) -> None:
        actor = Actor("agent", "a", "A")
        tasks.patch(tx, Ref(ref), actor, fields={"priority": 10}, status=None, default_lease_ms=1)

    await bench.store.write(to_ten)
    assert (await bench.get(task_id))["priority"] == "urgent"
    await bench.call("core_update_task", task_id=task_id, priority="urgent")
    assert await number() == 10
    await bench.call("core_update_task", task_id=task_id, priority="low")
    assert await number() == 3


async def test_a_locked_task_may_be_updated_by_others(bench: ToolBench) -> None:
    """The lock guards the status, not the words; the holder keeps it."""
    task_id = await bench.create()
    await bench.start(task_id)
    task = await bench.call("core_update_task", task_id=task_id, agent_id=BOB, priority="high", assigned_to=BOB)
    assert (task["priority"], task["assigned_to"], task["locked_by"]) == ("high", BOB, ANN)
