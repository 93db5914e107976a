"""Lists, threads, history and explanations of the Task Tools, on every store."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatch.ats.model import Actor
from dispatch.core.lifecycle import Status
from dispatch.service import leases, listeners, listing
from dispatch.service.rows import Ref
from dispatch.service.tools import shapes
from tests.support.tools import ANN, BOB, LOCK_S, ToolBench

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRIORITIES = ["urgent", "high", "medium", "low", "none"]


async def pages(bench: ToolBench, **arguments: Any) -> list[list[dict[str, Any]]]:
    """Return every page of a list, following next_cursor to its end."""
    found: list[list[dict[str, Any]]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = await bench.call("core_list_tasks", **arguments, **cursor)
        assert answer["count"] == len(answer["tasks"])
        found.append(answer["tasks"])
        assert len(json.dumps(answer["tasks"][:-1])) <= 1.2 * shapes.LIST_CHARS_MAX
        if answer["next_cursor"] is None:
            return found
        assert answer["tasks"], "a page that goes on has at least one row"
        cursor = {"cursor": answer["next_cursor"]}


async def titles(bench: ToolBench, **arguments: Any) -> list[str]:
    """Return the titles of a list."""
    answer = await bench.call("core_list_tasks", **arguments)
    assert answer["next_cursor"] is None
    return [task["title"] for task in answer["tasks"]]


# --- core_list_tasks -------------------------------------------------------------------------------------------------


async def test_a_list_is_in_board_order(bench: ToolBench) -> None:
    """order_index first, then priority, then age; without an order_index last, whatever its priority."""
    for title, order, priority in (
        ("f", None, "low"),
        ("e", None, "urgent"),
        ("d", 2, "none"),
        ("b", 1, "none"),
        ("a", 1, "high"),
        ("c", 1, "none"),
        ("minus", -1e300, "none"),
        ("largest", 1e300, "none"),
    ):
        await bench.create(title=title, order_index=order, priority=priority)
    assert await titles(bench) == ["minus", "a", "b", "c", "d", "largest", "e", "f"]


async def test_a_list_is_filtered(bench: ToolBench) -> None:
    """By any of several statuses and priorities, by assignee, by a part of the title; empty lists filter nothing."""
    for n, (status, priority, agent) in enumerate(
        [("todo", "high", ANN), ("backlog", "high", BOB), ("todo", "low", ANN), ("blocked", "none", None)]
    ):
        await bench.create(title=f"t{n}", status=status, priority=priority, assigned_to=agent)
    for filters, expected in (
        ({"status": ["todo"]}, "02"),
        ({"status": ["todo", "blocked", "todo"]}, "023"),
        ({"status": []}, "0123"),
        ({"status": ["completed"]}, ""),
        ({"priority": ["high", "none"]}, "013"),
        ({"priority": []}, "0123"),
        ({"assigned_to": ANN.upper()}, "02"),
        ({"status": ["todo"], "priority": ["high"], "assigned_to": ANN, "title_search": "T0"}, "0"),
        ({"title_search": ""}, "0123"),
    ):
        assert sorted(await titles(bench, **filters)) == [f"t{n}" for n in expected], filters


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("alpha", "Alpha"),
        ("ALPHA", "Alpha"),
        ("100%", "100% sure"),
        ("a_b", "a_b"),
        ("élan", "ÉLAN"),
        ("\\", "back\\s"),
    ],
)
async def test_a_search_is_for_a_part_whatever_its_case(bench: ToolBench, search: str, found: str) -> None:
    """Percent, underline and backslash mean themselves; letters beyond ASCII have cases as well."""
    for title in ("Alpha", "100% sure", "1000 sure", "a_b", "axb", "ÉLAN", "back\\s", "zzz"):
        await bench.create(title=title)
    assert await titles(bench, title_search=search) == [found]


async def test_a_list_has_twenty_rows_unless_told(bench: ToolBench) -> None:
    """The 21st comes with the cursor; rows have the summary's fields, without those that are null."""
    rows = [{"ref": str(n), "title": f"t{n}"} for n in range(21)]
    await bench.call("create_graph", tasks=rows)
    first = await bench.call("core_list_tasks")
    assert (first["count"], first["next_cursor"] is None) == (20, False)
    assert set(first["tasks"][0]) == {"task_id", "title", "status", "priority", "updated_at"}
    rest = await bench.call("core_list_tasks", cursor=first["next_cursor"])
    assert (rest["count"], rest["next_cursor"]) == (1, None)


async def test_fields_are_chosen(bench: ToolBench) -> None:
    """Every field of a task can be asked for and is the same as in core_get_task; null ones are shown then."""
    first = await bench.create(title="dep")
    task_id = await bench.create(depends_on=[first], parent_id=first, needs=["gpu"], meta_json={"a": 1}, title="x")
    whole = await bench.get(task_id)
    for name in shapes.TASK_SCHEMA:
        answer = await bench.call("core_list_tasks", fields=[name], title_search="x")
        assert answer["tasks"] == [{"task_id": task_id, name: whole[name]}]
    answer = await bench.call("core_list_tasks", fields=list(shapes.TASK_SCHEMA), title_search="x")
    assert answer["tasks"] == [whole]
    for wrong in (["nothing"], [], ["task_id", 5], "title"):
        await bench.refused("INVALID", "core_list_tasks", fields=wrong)


@pytest.mark.parametrize(
    "cursor", ["x", "AAAA", "W10", "WzEsMl0", "é", "bnVsbA", "WzFlOTk5LDEsMV0", "[1,2,3]", "x" * 201, ""]
)
async def test_a_cursor_that_no_list_returned_is_invalid(bench: ToolBench, cursor: str) -> None:
    """Whatever it decodes to."""
    await bench.create()
    await bench.refused("INVALID", "core_list_tasks", cursor=cursor)


board = st.lists(
    st.tuples(
        st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.0, 1.5, -7.25, 1e300, -1e300, 5e-324])),
        st.sampled_from(PRIORITIES),
        st.sampled_from(["backlog", "todo", "completed"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=board, limit=st.integers(1, 14), status=st.sampled_from([(), ("todo",), ("todo", "completed")]))
async def test_pages_in_a_row_are_the_whole_list_in_order(
    bench: ToolBench, rows: Any, limit: int, status: tuple[str, ...]
) -> None:
    """For any order_index, priority and status, and any limit, nothing is twice, missing or out of order."""
    project = f"p{await bench.store.read(lambda tx: tx.now_ms)}"
    bench.clock.step(1)
    made = await bench.call(
        "create_graph",
        project_key=project,
        tasks=[
            {"ref": str(n), "title": str(n), "order_index": order, "priority": priority, "status": word}
            for n, (order, priority, word) in enumerate(rows)
        ],
    )
    ids = [row["task_id"] for row in made["tasks"]]
    expected = sorted(
        (n for n, row in enumerate(rows) if not status or row[2] in status),
        key=lambda n: (
            float("inf") if rows[n][0] is None else rows[n][0],
            PRIORITIES.index(rows[n][1]),
            n,
        ),
    )
    found = await pages(bench, project_key=project, limit=limit, status=list(status))
    assert [task["task_id"] for page in found for task in page] == [ids[n] for n in expected]
    assert all(len(page) == limit for page in found[:-1])


async def test_long_rows_shorten_the_page_and_nothing_is_lost(bench: ToolBench) -> None:
    """A page stays under its bound however long its rows are, says that it was cut, and goes on after its last row."""
    rows = [
        {
            "ref": str(n),
            "title": "t" * 512,
            "detail": "d" * 8_000,
            "meta_json": {"k": "v" * 3_000},
            "needs": ["n" * 128],
        }
        for n in range(120)
    ]
    ids = [row["task_id"] for row in (await bench.call("create_graph", tasks=rows))["tasks"]]
    for fields in ([], list(shapes.TASK_SCHEMA), ["detail"]):
        arguments: dict[str, Any] = {"limit": 1_000} | ({"fields": fields} if fields else {})
        answer = await bench.call("core_list_tasks", **arguments)
        assert 1 < answer["count"] < 120
        assert "cut" in answer["hint"]
        found = await pages(bench, **arguments)
        assert [task["task_id"] for page in found for task in page] == ids
        for page in found:
            size = sum(len(json.dumps(row, ensure_ascii=False, separators=(",", ":"))) + 1 for row in page)
            assert size <= shapes.LIST_CHARS_MAX
        if "detail" in fields:
            assert len(found[0][0]["detail"]) == 2_000
    assert (await bench.get(ids[0]))["meta_json"] == {"k": "v" * 3_000}


async def test_a_cursor_stays_good_while_tasks_move(bench: ToolBench) -> None:
    """What is created, moved or gone between two pages does not make others appear twice or never."""
    rows = [{"ref": str(n), "title": str(n), "order_index": n} for n in range(6)]
    ids = [row["task_id"] for row in (await bench.call("create_graph", tasks=rows))["tasks"]]
    first = await bench.call("core_list_tasks", limit=3)
    await bench.create(title="early", order_index=-1)
    await bench.create(title="late", order_index=4.5)
    await bench.call("core_update_task", task_id=ids[2], order_index=None)
    rest = await bench.call("core_list_tasks", cursor=first["next_cursor"])
    assert [task["title"] for task in rest["tasks"]] == ["3", "4", "late", "5", "2"]


async def test_a_cursor_returns_the_place_it_was_made_of() -> None:
    """Also the place of tasks without an order_index."""

    class Row:
        position, priority, id = 1.7976931348623157e308, 10, 2**62

    assert listing.read_cursor(listing.cursor_of(Row)) == (Row.position, Row.priority, Row.id)


# --- threads ---------------------------------------------------------------------------------------------------------


async def say(bench: ToolBench, task_id: str, body: str, **arguments: Any) -> int:
    """Post a message and return its id."""
    return int((await bench.call("post_task_message", task_id=task_id, body=body, **arguments))["message_id"])


async def test_a_message_comes_back_as_it_was_said(bench: ToolBench) -> None:
    """kind is message unless said; tags and metadata are kept; the history names the message."""
    task_id = await bench.create()
    plain = await bench.call("post_task_message", task_id=task_id, body=" hello\n")
    said = await bench.call(
        "post_task_message", task_id=task_id, agent_id=BOB, body="b", kind="note", tags=["x", "y", "x"], meta={"n": 1}
    )
    found = await bench.call("list_task_messages", task_id=task_id)
    assert found["messages"] == [{k: v for k, v in one.items() if k != "created"} for one in (plain, said)]
    assert (plain["kind"], plain["body"], plain["agent_id"], plain["created"]) == ("message", " hello\n", ANN, True)
    assert (said["tags"], said["meta"], said["agent_id"]) == (["x", "y"], {"n": 1}, BOB)
    assert (found["count"], found["more"], found["next_since"]) == (2, False, said["message_id"])
    last = (await bench.history(task_id))[-1]
    assert (last["event"], last["message_id"], last["agent_id"]) == ("message", said["message_id"], BOB)


async def test_a_message_with_a_key_is_posted_once(bench: ToolBench) -> None:
    """The same again is created=false with the same id; another message with the key is a CONFLICT."""
    task_id, other = await bench.create(), await bench.create()
    first = await bench.call("post_task_message", task_id=task_id, body="b", tags=["t"], idempotency_key="k")
    again = await bench.call("post_task_message", task_id=task_id, body="b", tags=["t"], idempotency_key="k")
    assert again == {**first, "created": False}
    for wrong in ({"body": "c"}, {"body": "b"}, {"body": "b", "tags": ["t"], "kind": "log"}):
        await bench.refused("CONFLICT", "post_task_message", task_id=task_id, idempotency_key="k", **wrong)
    assert await say(bench, task_id, "c", agent_id=BOB, idempotency_key="k") != first["message_id"]
    assert await say(bench, other, "c", idempotency_key="k") != first["message_id"]
    assert (await bench.call("list_task_messages", task_id=task_id))["count"] == 2


async def test_a_thread_shows_the_newest_or_what_came_after(bench: ToolBench) -> None:
    """Without since the newest limit (50), oldest first; with since the first after it; more says what is left."""
    task_id = await bench.create()
    ids = [await say(bench, task_id, str(n)) for n in range(60)]

    async def listed(**arguments: Any) -> tuple[list[int], bool]:
        found = await bench.call("list_task_messages", task_id=task_id, **arguments)
        shown = [one["message_id"] for one in found["messages"]]
        assert found["next_since"] == (shown[-1] if shown else arguments.get("since", 0))
        return shown, found["more"]

    assert await listed() == (ids[10:], True)
    assert await listed(limit=200) == (ids, False)
    assert await listed(limit=1) == (ids[59:], True)
    assert await listed(since=0) == (ids[:50], True)
    assert await listed(since=ids[49]) == (ids[50:], False)
    assert await listed(since=ids[59]) == ([], False)
    assert await listed(since=2**63 - 1) == ([], False)


async def test_a_thread_is_filtered_by_kind_and_tag(bench: ToolBench) -> None:
    """Tags are whole words and mind case, whatever characters they have."""
    task_id = await bench.create()
    tags = ["alpha", "Alpha", "alp", 'a","b', "a\\", '"', "\\", 'x,"\\', "%", "é", "ключ"]
    for n, tag in enumerate(tags):
        await say(bench, task_id, str(n), tags=[tag, "all"], kind=("message", "note", "log")[n % 3])
    await say(bench, task_id, "none")

    async def bodies(**arguments: Any) -> list[str]:
        return [
            one["body"] for one in (await bench.call("list_task_messages", task_id=task_id, **arguments))["messages"]
        ]

    for n, tag in enumerate(tags):
        assert await bodies(tag=tag) == [str(n)], tag
    assert await bodies(tag="_") == []
    assert await bodies(tag="all", kind=["note"]) == ["1", "4", "7", "10"]
    assert len(await bodies(kind=["note", "log"])) == 7
    assert len(await bodies(kind=[])) == len(tags) + 1


async def test_long_messages_shorten_the_page_and_nothing_is_lost(bench: ToolBench) -> None:
    """From since=0 on, page by page, every message comes once; without since the newest that fit come."""
    task_id = await bench.create()
    ids = [await say(bench, task_id, "x" * (8_000 - n), meta={"k": "v" * 900 * n}) for n in range(24)]
    seen: list[int] = []
    since = 0
    while True:
        found = await bench.call("list_task_messages", task_id=task_id, since=since, limit=200)
        size = sum(len(json.dumps(one, separators=(",", ":"))) + 1 for one in found["messages"])
        assert size <= shapes.LIST_CHARS_MAX or found["count"] == 1
        seen += [one["message_id"] for one in found["messages"]]
        since = found["next_since"]
        if not found["more"]:
            break
    assert seen == ids
    newest = await bench.call("list_task_messages", task_id=task_id)
    shown = [one["message_id"] for one in newest["messages"]]
    assert (shown, newest["more"]) == (ids[-len(shown) :], True)
    assert 0 < len(shown) < 24


async def test_a_thread_is_of_its_project(bench: ToolBench) -> None:
    """The task must be in the project that is named."""
    task_id = await bench.create()
    await bench.create(project_key="other")
    await bench.refused("NOT_FOUND", "list_task_messages", task_id=task_id, project_key="other")
    await bench.refused("NOT_FOUND", "post_task_message", task_id=task_id, project_key="other", body="x")


# --- task_history ----------------------------------------------------------------------------------------------------


async def test_history_comes_in_pages(bench: ToolBench) -> None:
    """Every line once, oldest first, seq growing; next_since is null at the end; notes do not break the bound."""
    task_id = await bench.create()
    for n in range(30):
        await bench.call("core_update_task", task_id=task_id, priority=PRIORITIES[n % 5], note="n" * 3_900)
    seen: list[dict[str, Any]] = []
    since: int | None = 0
    while since is not None:
        found = await bench.call("task_history", task_id=task_id, since=since, limit=7)
        assert 1 <= found["count"] <= 7
        assert len(json.dumps(found["events"])) <= shapes.LIST_CHARS_MAX + 4_500
        seen += found["events"]
        since = found["next_since"]
    assert [line["event"] for line in seen] == ["created"] + ["updated"] * 30
    assert [line["seq"] for line in seen] == sorted({line["seq"] for line in seen})
    whole = await bench.call("task_history", task_id=task_id, limit=200)
    assert (whole["count"] < 31, whole["next_since"]) == (True, whole["events"][-1]["seq"])


async def test_history_says_what_messages_say(bench: ToolBench) -> None:
    """A line that a message came tells its kind and how it begins; of live output the kind tells readers to pass it."""
    task_id = await bench.create()
    await bench.call("post_task_message", task_id=task_id, body="the second table is missing" + "x" * 300)
    (line,) = [line for line in (await bench.call("task_history", task_id=task_id))["events"] if "kind" in line]
    assert (line["event"], line["kind"], len(line["note"])) == ("message", "message", 200)
    assert line["note"].startswith("the second table is missing")


# --- explain and unblocks --------------------------------------------------------------------------------------------


async def why(bench: ToolBench, task_id: str) -> list[str]:
    """Return the codes of the reasons why a task is not running."""
    found = await bench.call("explain", task_id=task_id)
    assert all(reason["text"] and reason["next"] for reason in found["reasons"])
    assert all(reason["text"] in found["summary"] for reason in found["reasons"])
    assert found["running"] == (not found["reasons"])
    return [reason["code"] for reason in found["reasons"]]


@pytest.mark.parametrize(
    ("status", "codes"),
    [
        ("backlog", ["BACKLOG"]),
        ("blocked", ["BLOCKED"]),
        ("todo", ["NO_WORKER"]),
        ("in_progress", ["ORPHANED"]),
        ("in_review", ["IN_REVIEW"]),
        *((word, ["FINISHED"]) for word in ("completed", "failed", "cancelled", "skipped")),
    ],
)
async def test_each_status_has_its_reason(bench: ToolBench, status: str, codes: list[str]) -> None:
    """Without lock, dependency and worker."""
    assert await why(bench, await bench.put(status)) == codes


async def test_what_stands_in_the_way_is_named(bench: ToolBench) -> None:
    """Dependencies alive and dead, the lock, the assignee, the pause: all at once, with names and times."""
    alive, dead = await bench.create(), await bench.create()
    await bench.move(dead, "cancelled")
    task_id = await bench.create(depends_on=[alive, dead], assigned_to=BOB)
    assert await why(bench, task_id) == ["DEPENDENCY_FAILED", "WAITING_FOR_DEPENDENCIES", "ASSIGNED"]
    found = await bench.call("explain", task_id=task_id)
    assert all(ident in found["summary"] for ident in (alive, dead, BOB))
    other = await bench.create()
    number = (await bench.get(other))["id"]
    worker = Actor("agent", "w", "W")
    await bench.store.write(lambda tx: leases.claim(tx, Ref(number), worker, lease_ms=60_000))
    assert await why(bench, other) == ["QUEUED"]
    await bench.store.write(
        lambda tx: leases.release(tx, Ref(number), worker, token=1, delay_ms=30_000, reason="rate limit")
    )
    assert await why(bench, other) == ["BACKING_OFF"]
    text = (await bench.call("explain", task_id=other))["summary"]
    assert "30 s" in text
    assert "rate limit" in text
    bench.clock.step(31)
    assert await why(bench, other) == ["NO_WORKER"]
    await bench.claim(other)
    assert await why(bench, other) == ["LOCKED"]


async def test_a_running_task_has_no_reason_until_its_lock_runs_out(bench: ToolBench) -> None:
    """running=true while it is held and begun; LOST once the lock has run out and was not taken back yet."""
    task_id = await bench.create()
    await bench.start(task_id)
    assert await why(bench, task_id) == []
    bench.clock.step(LOCK_S)
    assert await why(bench, task_id) == ["LOST"]


async def test_a_ready_task_knows_its_place_in_line(bench: ToolBench) -> None:
    """NO_WORKER, then OFFERED to whoever listens on its channel or on all, IN_LINE behind more urgent ones."""
    channel = bench.project
    first, second = (
        await bench.create(priority="high", channel=channel),
        await bench.create(needs=["gpu"], channel=channel),
    )
    assert await why(bench, second) == ["NO_WORKER"]
    assert "gpu" in (await bench.call("explain", task_id=second))["summary"]
    await bench.store.write(lambda tx: listeners.report(tx, "p1", {"other": 1}))
    assert await why(bench, first) == ["NO_WORKER"]
    for heard in (channel, listeners.EVERY):
        await bench.store.write(lambda tx, heard=heard: listeners.report(tx, "p1", {heard: 1}))
        assert await why(bench, first) == ["OFFERED"]
        assert await why(bench, second) == ["IN_LINE"]
    bench.clock.step(listeners.STALE_MS / 1000 + 1)
    assert await why(bench, first) == ["NO_WORKER"]


async def test_unblocks_counts_what_stands_behind(bench: ToolBench) -> None:
    """frees: those that wait for this one alone; behind: all that follow, each once; the finished are not counted."""
    rows = [
        {"ref": "a", "title": "a"},
        {"ref": "b", "title": "b"},
        {"ref": "only", "title": "only", "depends_on": ["a"]},
        {"ref": "both", "title": "both", "depends_on": ["a", "b"]},
        {"ref": "gone", "title": "gone", "depends_on": ["a"], "status": "cancelled"},
        {"ref": "far", "title": "far", "depends_on": ["only", "both"]},
    ]
    ids = {row["ref"]: row["task_id"] for row in (await bench.call("create_graph", tasks=rows))["tasks"]}

    async def freed(ref: str) -> tuple[list[str], int]:
        found = await bench.call("unblocks", task_id=ids[ref])
        assert (found["frees_count"], found["counted_all"]) == (len(found["frees"]), True)
        return [row["title"] for row in found["frees"]], found["behind_count"]

    assert await freed("a") == (["only"], 3)
    assert await freed("b") == ([], 2)
    assert await freed("far") == ([], 0)
    await bench.move(ids["a"], "todo")
    await bench.complete(ids["a"])
    assert await freed("a") == ([], 0)
    assert await freed("b") == (["both"], 2)


async def test_unblocks_stays_small(bench: ToolBench) -> None:
    """Of 300 tasks behind one, at most a hundred are listed, all are counted."""
    first = await bench.create()
    for _ in range(2):
        rows = [{"ref": str(n), "title": "x" * 512, "depends_on": [first]} for n in range(150)]
        await bench.call("create_graph", tasks=rows)
    found = await bench.call("unblocks", task_id=first)
    assert (found["frees_count"], found["behind_count"], found["counted_all"]) == (300, 300, True)
    assert 0 < len(found["frees"]) <= 100
    assert len(json.dumps(found)) <= shapes.LIST_CHARS_MAX + 1_000


@pytest.mark.parametrize("status", [state.value for state in Status])
async def test_reading_changes_nothing(bench: ToolBench, status: str) -> None:
    """No read tool writes a line of history, extends a lock or wakes anybody."""
    task_id = await bench.put(status)
    heard: list[Any] = []
    hear = heard.extend
    bench.store.bus.listen(hear)
    async with bench.untouched(task_id):
        for name in ("explain", "unblocks", "task_history", "list_task_messages"):
            await bench.call(name, task_id=task_id)
        await bench.call("core_list_tasks", project_key=bench.project)
    bench.store.bus.forget(hear)
    assert heard == []
