"""``dispatch deps``: which tasks wait for which, and why. Works with any task service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_task
from dispatch.cli import graph_view, sealed_needs
from dispatch.cli.options import State, TaskId, common_options
from dispatch.cli.output import STYLES
from dispatch.cli.tasks import status_option
from dispatch.errors import GatewayRejectedError, UnknownTaskError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatch.ats.model import Task

EXTENSION: Final = "depends_on"
"""What a service announces that knows dependencies itself."""
_FIELDS: Final = (
    "id,title,status,channel,project_id,depends_on,sealed,reason,not_before,created_at,started_at,completed_at"
)
_PAGE: Final = 500
_PLAIN_PAGE: Final = 100
_PLAIN_LISTED_MAX: Final = 10_000
"""How many tasks of a plain service are listed in search of those that depend on others."""
_PLAIN_READ_MAX: Final = 200
"""How many tasks of a plain service are read one by one."""


class _Gatherer:
    """Collects tasks until nothing is missing or there are enough."""

    def __init__(self, state: State, count_max: int) -> None:
        self._state = state
        self._client = state.client
        self._own = EXTENSION in answers.extensions_of(self._client.send(protocol.health()))
        self._max = count_max
        self.tasks: dict[str, Task] = {}
        self.truncated = False
        self.is_blind = False
        """Redis does not tell what stands inside sealed tasks."""
        self._gone: set[str] = set()
        self._read = 0

    def one(self, task_id: str) -> str:
        """Collect one task; return its id. Raises GatewayRejectedError when there is none."""
        try:
            task = parse_task(self._client.send(protocol.get(task_id)))
        except UnknownTaskError as exc:
            raise GatewayRejectedError(f"There is no task {task_id}.", status=404) from exc
        self.tasks[task.id] = self._opened([task])[0]
        return task.id

    def dependents(self, **filters: Any) -> None:
        """Collect every task that depends on others, the oldest first."""
        offset = 0
        page_size = _PAGE if self._own else _PLAIN_PAGE
        query = {"dependent": "true", "fields": _FIELDS} if self._own else {}
        seen: set[str] = set()
        while True:
            page = answers.tasks_of(
                self._client.send(
                    protocol.list_tasks(
                        **filters, **query, sort_by="created_at", sort_dir="asc", limit=page_size, offset=offset
                    )
                )
            )
            fresh = [task for task in page if task.id not in seen]
            seen |= {task.id for task in fresh}
            for task in self._opened(fresh):
                if task.depends_on:
                    self._keep(task)
            offset += len(page)
            if not fresh or self.truncated:
                break
            if not self._own and offset >= _PLAIN_LISTED_MAX:
                self.truncated = True
                break
        if self._own:
            self._sealed_dependents(**filters)

    def _sealed_dependents(self, *, status: str | None, channel: Sequence[str] | None) -> None:
        """Collect sealed tasks that wait: the service does not list them as such."""
        ids = [ident for ident in sealed_needs.waiting_ids(self._state) if ident not in self.tasks]
        for start in range(0, min(len(ids), self._max), _PAGE):
            found = sealed_needs.listed(self._state, ids[start : start + _PAGE], _FIELDS)
            for task in self._opened(found):
                if (not status or task.status in status.split(",")) and (not channel or task.channel in channel):
                    self._keep(task)

    def _opened(self, tasks: list[Task]) -> list[Task]:
        """Return the tasks, sealed ones with what they wait for as far as the fleet tells."""
        found = sealed_needs.with_inner_needs(self._state, tasks)
        self.is_blind = self.is_blind or found is None
        return tasks if found is None else found

    def complete(self) -> None:
        """Collect what the collected depend on, and so on."""
        while wanted := self._wanted():
            if len(self.tasks) >= self._max:
                self.truncated = True
                return
            found = self._by_list(wanted[:_PAGE]) if self._own else self._by_one(wanted)
            for task in self._opened(found):
                self._keep(task)
            self._gone |= set(wanted[:_PAGE]) - self.tasks.keys()
            if self.truncated:
                return

    def _wanted(self) -> list[str]:
        named = {name for task in self.tasks.values() for name in task.depends_on}
        return sorted(named - self.tasks.keys() - self._gone)

    def _by_list(self, wanted: list[str]) -> list[Task]:
        ids = [name for name in wanted if name.isdigit()]
        if not ids:
            return []
        return answers.tasks_of(self._client.send(protocol.list_tasks(ids=ids, fields=_FIELDS, limit=len(ids))))

    def _by_one(self, wanted: list[str]) -> list[Task]:
        found = []
        for name in wanted[:_PAGE]:
            if self._read >= _PLAIN_READ_MAX:
                self.truncated = True
                break
            self._read += 1
            try:
                task = parse_task(self._client.send(protocol.get(name)))
            except GatewayRejectedError:
                continue
            found.append(task)
        return found

    def _keep(self, task: Task) -> None:
        if len(self.tasks) >= self._max:
            self.truncated = True
        else:
            self.tasks[task.id] = task


@click.command()
@click.option("--task", "task_id", type=TaskId(), metavar="ID", help="Only this task and what it depends on.")
@status_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["tree", "json", "mermaid", "dot"]),
    default="tree",
    show_default=True,
    help="How to show it.",
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=2_000, show_default=True, help="How many at most.")
@common_options
@click.pass_obj
def deps(state: State, task_id: str | None, status: str | None, form: str, limit: int) -> None:
    """Show which tasks depend on which, and what each waits for.

    In the tree every task stands above what it depends on. What sealed tasks wait for is shown on hosts that reach
    Redis: ids and states, no more.

    \b
    Examples:
      dispatch deps
      dispatch deps --task 102
      dispatch deps --status pending --format mermaid
    """  # noqa: D301 - click's mark
    gatherer = _Gatherer(state, limit)
    root = None
    if task_id is not None:
        root = gatherer.one(task_id)
    else:
        gatherer.dependents(status=status, channel=state.channels)
    gatherer.complete()
    graph = graph_view.Graph(gatherer.tasks, datetime.now(UTC))
    if state.output.is_json or form == "json":
        state.output.json(graph_view.as_json(graph, truncated=gatherer.truncated))
        return
    if form == "tree":
        _print_tree(state, graph_view.tree(graph, graph.roots() if root is None else [root], drawn=_drawn(state)))
        if not gatherer.tasks:
            state.output.note("No task depends on another.")
    else:
        for line in graph_view.mermaid(graph) if form == "mermaid" else graph_view.dot(graph):
            click.echo(line)
    if gatherer.is_blind:
        state.output.note("Redis does not answer: what sealed tasks wait for is not shown.")
    if gatherer.truncated:
        state.output.note(f"The graph is larger; {len(gatherer.tasks)} tasks are shown. --task or --limit show others.")


def _drawn(state: State) -> bool:
    return state.output.is_terminal


def _print_tree(state: State, lines: Iterable[graph_view.Line]) -> None:
    if not state.output.is_terminal:
        for line in lines:
            click.echo(str(line))
        return
    from rich.text import Text

    for line in lines:
        style = "red" if line.status == graph_view.MISSING else STYLES.get(line.status, "")
        note = (f"  {line.note}" if line.note else "", "dim")
        head = Text.assemble((line.indent, "dim"), (f"#{line.id} ", "bold"), (line.status, style))
        state.output.console.print(head + Text.assemble(f" {line.title}", note), soft_wrap=True)
