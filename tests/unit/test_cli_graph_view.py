"""Graphs as trees and pictures."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dispatch.ats.model import Task, parse_task
from dispatch.cli.graph_view import MISSING, Graph, as_json, dot, mermaid, tree

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def graph(needs: dict[int, list[Any]], **of_all: Any) -> Graph:
    """Return a graph of pending tasks."""
    tasks: dict[str, Task] = {}
    for ident, others in needs.items():
        tasks[str(ident)] = parse_task(
            {"id": ident, "title": f"t{ident}", "status": "pending", "depends_on": others, **of_all}
        )
    return Graph(tasks, NOW)


def lines(made: Graph, *, drawn: bool = False) -> list[str]:
    """Return the tree's lines."""
    return [str(line) for line in tree(made, made.roots(), drawn=drawn)]


def test_a_shared_task_is_shown_once() -> None:
    """In a diamond the second place only refers to the first."""
    assert lines(graph({1: [], 2: [1], 3: [1], 4: [2, 3]}), drawn=True) == [
        "#4 pending t4 (waits for #2 pending, #3 pending)",
        "├─ #2 pending t2 (waits for #1 pending)",
        "│  └─ #1 pending t1 (ready)",
        "└─ #3 pending t3 (waits for #1 pending)",
        "   └─ #1 pending t1 (see above)",
    ]


def test_circles_end_and_are_called_so() -> None:
    """Tasks in circles, which no root reaches, are shown after the others."""
    shown = lines(graph({1: [2], 2: [1], 3: [3], 4: []}))
    assert shown == [
        "#3 pending t3 (waits for #3 pending)",
        "  #3 pending t3 (waits for itself: a circle)",
        "#4 pending t4 (ready)",
        "#1 pending t1 (waits for #2 pending)",
        "  #2 pending t2 (waits for #1 pending)",
        "    #1 pending t1 (waits for itself: a circle)",
    ]


def test_what_does_not_exist_is_shown() -> None:
    """A dependency that nobody has is a line of its own, and counts as missing."""
    made = graph({1: [99, "never"]})
    assert [(line.id, line.status, line.note) for line in tree(made, ["1"], drawn=False)][1:] == [
        ("99", MISSING, "does not exist"),
        ("never", MISSING, "does not exist"),
    ]
    assert as_json(made, truncated=False)["missing"] == [99, "never"]


def test_a_chain_of_ten_thousand_is_shown() -> None:
    """No depth is too deep, and the lines do not grow with it."""
    count = 10_000
    shown = lines(graph({ident: [ident - 1] if ident > 1 else [] for ident in range(1, count + 1)}), drawn=True)
    assert len(shown) == count
    assert max(map(len, shown)) < 300
    assert "[9999] #1 pending" in shown[-1]


def test_a_task_of_another_project_counts_as_missing() -> None:
    """Though it is completed, whoever depends on it waits, and is told why."""
    made = graph({1: [], 2: [1], 3: [1]}, status="completed", project_id=1)
    tasks = {**made.tasks, "2": graph({2: [1]}, project_id=2).tasks["2"], "3": graph({3: [1]}, project_id=1).tasks["3"]}
    made = Graph(tasks, NOW)
    assert made.note("2") == "waits for #1 missing (it is in another project)"
    assert made.note("3") == "ready"
    assert [one["waits_for"] for one in as_json(made, truncated=False)["tasks"]] == [[], [1], []]


def test_states_say_since_when_and_why() -> None:
    """Running, failed, completed and paused tasks have their times and reasons."""
    times = {"created_at": "2026-01-01T11:00:00Z", "started_at": "2026-01-01T11:58:00Z"}
    ended = {**times, "completed_at": "2026-01-01T11:58:30Z"}
    cases = [
        ({"status": "in_progress", **times}, "running for 2 min"),
        ({"status": "in_progress"}, "claimed"),
        ({"status": "completed", **ended, "reason": "old"}, "took 30 s"),
        ({"status": "failed", **ended, "reason": "exit\ncode 1"}, "exit code 1, took 30 s"),
        ({"status": "failed", **ended, "started_at": None, "reason": "Blocked: ..."}, "Blocked: ..."),
        ({"not_before": "2026-01-01T12:00:20Z"}, "pauses for 20 s"),
        ({"status": "backlog"}, ""),
    ]
    assert [graph({1: []}, **fields).note("1") for fields, _ in cases] == [note for _, note in cases]


def test_titles_cannot_break_a_picture() -> None:
    """Quotes, brackets, line ends and control characters in titles stay inside their labels."""
    title = 'a"] --> x["\n}\\" ; \x1b[31m click <b>'
    made = graph({1: [], 2: [1]}, title=title)
    drawing = list(mermaid(made))
    assert len(drawing) == 6
    labels = [line[line.index("[") + 2 : -2].replace("<br/>", "") for line in drawing[1:5:2]]
    assert not [label for label in labels if any(char in label for char in '"[]<>')]
    digraph = list(dot(made))
    assert len(digraph) == 6
    assert digraph[2].startswith('  "1" [label="#1 a\\"] --> x[\\" }\\\\\\" ;  click <b>\\npending"')
