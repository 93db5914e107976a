"""A graph of tasks as text: a tree for people, Mermaid and Graphviz for pictures. Pure and iterative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dispatch.ats.model import parse_time
from dispatch.cli.output import clean_line, duration
from dispatch.core.lifecycle import FINISHED_ATS_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from dispatch.ats.model import Task

MISSING: Final = "missing"
"""The status of what a task depends on and the service does not have."""
DEPTH_MAX: Final = 40
"""Deeper levels are not indented any further; their number stands before them."""
_NAMED_MAX: Final = 5
_TITLE_CHARS_MAX: Final = 60
_COLOURS: Final = {
    "pending": "#f5d76e",
    "in_progress": "#6bb9f0",
    "in_review": "#be90d4",
    "completed": "#87d37c",
    "failed": "#ec644b",
    MISSING: "#ec644b",
}
_OTHER_COLOUR: Final = "#bdc3c7"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the tree."""

    indent: str
    id: str
    status: str
    title: str
    note: str

    def __str__(self) -> str:
        parts = (f"#{self.id}", self.status, self.title, f"({self.note})" if self.note else "")
        return self.indent + " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Graph:
    """Tasks by id, and what each depends on. Ids that have no task do not exist."""

    tasks: Mapping[str, Task]
    now: datetime

    def status(self, ident: str) -> str:
        """Return an ATS word, or MISSING."""
        return self.tasks[ident].status if ident in self.tasks else MISSING

    def needs(self, ident: str) -> tuple[str, ...]:
        """Return what a task depends on, in order."""
        return tuple(sorted(self.tasks[ident].depends_on, key=_order)) if ident in self.tasks else ()

    def needed_status(self, ident: str, name: str) -> str:
        """Return the status of what a task depends on as the task has it: tasks of other projects are none for it."""
        return MISSING if self._is_elsewhere(ident, name) else self.status(name)

    def _is_elsewhere(self, ident: str, name: str) -> bool:
        one, other = (
            (self.tasks[key].raw or {}).get("project_id") if key in self.tasks else None for key in (ident, name)
        )
        return one is not None and other is not None and one != other

    def waits_for(self, ident: str) -> list[str]:
        """Return what of it is not completed."""
        return [name for name in self.needs(ident) if self.needed_status(ident, name) != "completed"]

    def roots(self) -> list[str]:
        """Return the tasks on which none of the others depends."""
        needed = {name for ident in self.tasks for name in self.needs(ident) if name != ident}
        return sorted((ident for ident in self.tasks if ident not in needed), key=_order)

    def title(self, ident: str) -> str:
        """Return a task's title on one line, cut."""
        text = clean_line(self.tasks[ident].title) if ident in self.tasks else ""
        return text if len(text) <= _TITLE_CHARS_MAX else text[: _TITLE_CHARS_MAX - 1] + "…"

    def note(self, ident: str) -> str:
        """Say why a task is where it is, and since when."""
        task = self.tasks.get(ident)
        if task is None:
            return "does not exist"
        raw = task.raw or {}
        created, begun, ended = (parse_time(raw.get(f"{what}_at")) for what in ("created", "started", "completed"))
        if task.status in FINISHED_ATS_WORDS:
            took = f"took {duration((ended - begun).total_seconds())}" if ended and begun else ""
            why = clean_line(task.reason)[:200] if task.status != "completed" else ""
            return ", ".join(part for part in (why, took) if part)
        if task.status == "in_progress":
            return f"running for {self._since(begun)}" if begun else "claimed"
        open_ones = self.waits_for(ident)
        if task.status != "pending":
            return ""
        if not open_ones:
            paused = task.not_before_at and task.not_before_at > self.now
            return f"pauses for {self._since(task.not_before_at)}" if paused else "ready"
        names = ", ".join(self._called(ident, name) for name in open_ones[:_NAMED_MAX])
        more = f" and {len(open_ones) - _NAMED_MAX} others" if len(open_ones) > _NAMED_MAX else ""
        waited = f", created {self._since(created)} ago" if created else ""
        return f"waits for {names}{more}{waited}"

    def _called(self, ident: str, name: str) -> str:
        where = " (it is in another project)" if self._is_elsewhere(ident, name) else ""
        return f"#{name} {self.needed_status(ident, name)}{where}"

    def _since(self, at: datetime | None) -> str:
        return duration((self.now - at).total_seconds()) if at else "?"


def _order(ident: str) -> tuple[int, int, str]:
    return (0, int(ident), "") if ident.isdigit() else (1, 0, ident)


def tree(graph: Graph, roots: list[str], *, drawn: bool) -> Iterator[Line]:
    """Yield the lines of a tree: each task above what it depends on; a shared one is shown once.

    ``drawn`` draws branches; otherwise levels are indented by two blanks. What
    no root reaches, because it stands in a circle, follows at the end.
    """
    printed: set[str] = set()
    for root in [*roots, *sorted(graph.tasks, key=_order)]:
        if root not in printed:
            yield from _branch(graph, root, printed, drawn=drawn)


def _branch(graph: Graph, root: str, printed: set[str], *, drawn: bool) -> Iterator[Line]:
    way: set[str] = set()
    # (id, depth, the indentation before its branch, its own branch), or an id alone when all below it is done.
    pending: list[tuple[str, int, str, str] | str] = [(root, 0, "", "")]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            way.discard(item)
            continue
        ident, depth, before, branch = item
        indent = before + branch + (f"[{depth}] " if depth > DEPTH_MAX else "")
        shown = graph.status(ident), graph.title(ident)
        if ident in way:
            yield Line(indent, ident, *shown, "waits for itself: a circle")
            continue
        if ident in printed:
            yield Line(indent, ident, *shown, "see above" if ident in graph.tasks else graph.note(ident))
            continue
        printed.add(ident)
        way.add(ident)
        yield Line(indent, ident, *shown, graph.note(ident))
        pending.append(ident)
        below = before + {"": "", "├─ ": "│  ", "└─ ": "   "}.get(branch, branch) if depth <= DEPTH_MAX else before
        children = graph.needs(ident)
        for at, child in reversed(list(enumerate(children))):
            last = at == len(children) - 1
            pending.append((child, depth + 1, below, ("└─ " if last else "├─ ") if drawn else "  "))


def as_json(graph: Graph, *, truncated: bool) -> dict[str, Any]:
    """Return the graph for programs."""
    tasks = []
    for ident in sorted(graph.tasks, key=_order):
        raw = graph.tasks[ident].raw or {}
        times = {name: raw.get(name) for name in ("created_at", "started_at", "completed_at")}
        task = graph.tasks[ident]
        tasks.append(
            {
                "id": _number(ident),
                "title": task.title,
                "status": task.status,
                "channel": task.channel,
                "depends_on": [_number(name) for name in graph.needs(ident)],
                "waits_for": [_number(name) for name in graph.waits_for(ident)],
                "reason": task.reason,
                **times,
            }
        )
    named = {name for ident in graph.tasks for name in graph.needs(ident)}
    missing = [_number(name) for name in sorted(named - graph.tasks.keys(), key=_order)]
    return {"tasks": tasks, "count": len(tasks), "missing": missing, "truncated": truncated}


def _number(ident: str) -> int | str:
    return int(ident) if ident.isdigit() else ident


def _picture(graph: Graph) -> tuple[list[str], list[tuple[str, str]]]:
    edges = [(name, ident) for ident in sorted(graph.tasks, key=_order) for name in graph.needs(ident)]
    idents = sorted({*graph.tasks, *(name for edge in edges for name in edge)}, key=_order)
    return idents, edges


def mermaid(graph: Graph) -> Iterator[str]:
    """Yield the lines of a Mermaid flowchart; arrows go from what is needed to what needs it."""
    idents, edges = _picture(graph)
    number = {ident: at for at, ident in enumerate(idents)}
    yield "flowchart TD"
    for ident in idents:
        label = f"#{ident} {graph.title(ident)}"
        safe = "".join(char if char.isalnum() or char in " .,:-_/()" else f"#{ord(char)};" for char in label)
        yield f'  t{number[ident]}["{safe}<br/>{graph.status(ident)}"]'
        yield f"  style t{number[ident]} fill:{_COLOURS.get(graph.status(ident), _OTHER_COLOUR)},color:#000"
    for before, after in edges:
        yield f"  t{number[before]} --> t{number[after]}"


def dot(graph: Graph) -> Iterator[str]:
    """Yield the lines of a Graphviz digraph; arrows go from what is needed to what needs it."""
    idents, edges = _picture(graph)
    yield "digraph tasks {"
    yield "  node [shape=box, style=filled];"
    for ident in idents:
        colour = _COLOURS.get(graph.status(ident), _OTHER_COLOUR)
        label = _quoted(f"#{ident} {graph.title(ident)}\n{graph.status(ident)}")
        yield f'  {_quoted(ident)} [label={label}, fillcolor="{colour}"];'
    for before, after in edges:
        yield f"  {_quoted(before)} -> {_quoted(after)};"
    yield "}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
