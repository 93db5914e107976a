"""Decisions about graphs of tasks, iterative, so that no depth is too deep.

A task *needs* others (its dependencies) and is a *dependent* of each of them.
It may run when all that it needs are completed; when one of them has ended in
another way it is failed instead, and so is everything behind it.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeVar

from dispatch.core.lifecycle import ATS_WORD, FINISHED_ATS_WORDS, Status

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Mapping

Node = TypeVar("Node", bound="str | int")

GRAPH_MAX: Final = 100_000
"""Most tasks that one cascade names."""
MISSING: Final = "does not exist"
"""Stands for the status of a dependency that the service does not know."""
ELSEWHERE: Final = "does not exist in its project"
"""Stands for the status of a dependency that is a task of another project: its end opens nothing."""
COMPLETED: Final = ATS_WORD[Status.COMPLETED]

REASON_BEGINS: Final = "Blocked: dependency"
"""How the reason of a task begins that failed because of what it depends on."""
_ENDED: Final = re.compile(rf"#(\S+) \((failed|cancelled|rejected|{MISSING}|{ELSEWHERE})\)")
_REASON_CHARS_MAX: Final = 2_000


class Verdict(Enum):
    """What follows for a task from the states of what it needs."""

    WAIT = "wait"
    RELEASE = "release"
    FAIL = "fail"


def opens(status: str) -> bool:
    """Say whether a dependency in this state (an ATS word) lets its dependents run."""
    return status == COMPLETED


def is_settled(status: str) -> bool:
    """Say whether a dependency in this state decides something: it has ended, or never was."""
    return status in FINISHED_ATS_WORDS or status in (MISSING, ELSEWHERE)


def verdict(statuses: Iterable[str]) -> Verdict:
    """Return what follows from the states of all that a task needs."""
    known = set(statuses)
    if any(is_settled(status) and not opens(status) for status in known):
        return Verdict.FAIL
    return Verdict.RELEASE if all(opens(status) for status in known) else Verdict.WAIT


def ends_named(text: str) -> list[tuple[str, str]]:
    """Return the dependencies that ended badly, with how, of a text that names them as ``blocked_reason`` does."""
    return _ENDED.findall(text)


def ends_in(reason: str | None) -> list[tuple[str, str]]:
    """Return the dependencies, with how they ended, that the reason of a failure names; none of another failure."""
    return ends_named(reason) if reason is not None and reason.startswith(f"{REASON_BEGINS} ") else []


def blocked_reason(statuses: Mapping[str, str]) -> str:
    """Say why a task is failed whose dependencies are in these states: names all that ended badly, by number."""
    bad = sorted(
        (name for name, status in statuses.items() if is_settled(status) and not opens(status)),
        key=lambda name: (not name.isdigit(), len(name), name),
    )
    text = f"{REASON_BEGINS} " + ", ".join(f"#{name} ({statuses[name]})" for name in bad)
    return text if len(text) <= _REASON_CHARS_MAX else text[: _REASON_CHARS_MAX - 3] + "..."


def circle_reason(circle: Iterable[Node]) -> str:
    """Say that tasks depend on each other in a circle; the first is named again at the end."""
    names = [f"#{name}" for name in circle]
    if len(names) > 12:
        names = [*names[:10], "...", names[-1]]
    return f"Blocked: the dependencies form a circle: {' -> '.join(names)}"


def dependents_of(needs: Mapping[Node, Iterable[Node]]) -> dict[Node, list[Node]]:
    """Turn the graph around: for each task, those that need it."""
    found: dict[Node, list[Node]] = {}
    for node, others in needs.items():
        for other in others:
            found.setdefault(other, []).append(node)
    return found


def cascade(
    dependents: Mapping[Node, Iterable[Node]],
    root: Node,
    limit: int = GRAPH_MAX,
    *,
    ends: Container[Node] = (),
    known: Container[Node] = (),
) -> list[Node]:
    """Return everything behind ``root``, nearest first, each once and after one that it needs; at most ``limit``.

    This is what fails when ``root`` fails, and what waits for it while it has not ended. What is behind one of
    ``ends`` alone is left out; ``known`` are left out too, with what is behind them alone.
    """
    seen = {root}
    behind: list[Node] = []
    level: list[Node] = [root]
    while level:
        further: list[Node] = []
        for node in level:
            for dependent in () if node in ends else dependents.get(node, ()):
                if dependent not in seen and dependent not in known:
                    if len(behind) >= limit:
                        return behind
                    seen.add(dependent)
                    behind.append(dependent)
                    further.append(dependent)
        level = further
    return behind


def find_cycle(needs: Mapping[Node, Iterable[Node]]) -> list[Node]:
    """Return one circle of nodes, its first node again at its end, or an empty list.

    ``needs`` maps each node to those it depends on; others than its keys end the search.
    """
    done: set[Node] = set()
    for root in needs:
        if root in done:
            continue
        way: list[Node] = [root]
        on_way = {root}
        pending: list[Iterator[Node]] = [iter(needs[root])]
        while way:
            node = next((n for n in pending[-1] if n not in done), None)
            if node is None:
                pending.pop()
                on_way.discard(way[-1])
                done.add(way.pop())
            elif node in on_way:
                return [*way[way.index(node) :], node]
            else:
                way.append(node)
                on_way.add(node)
                pending.append(iter(needs.get(node, ())))
    return []


def reaching_cycle(needs: Mapping[Node, Collection[Node]]) -> set[Node]:
    """Return the nodes that are part of a circle, or need one in the end: they wait for ever."""
    dependents = dependents_of(needs)
    left = {node: len(others) for node, others in needs.items()}
    free = [node for node in (*dependents, *needs) if not left.get(node)]
    while free:
        for dependent in dependents.pop(free.pop(), ()):
            left[dependent] -= 1
            if not left[dependent]:
                free.append(dependent)
    return {node for node, count in left.items() if count}
