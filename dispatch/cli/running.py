"""How far running tasks are, for ``dispatch status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.ats import answers, protocol
from dispatch.cli.fleet_view import runs_at
from dispatch.cli.thread import shown_progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dispatch.ats.model import Task
    from dispatch.cli.options import State

RUNNING_MAX: Final = 5
"""How many of the tasks that run are shown."""
LOOKED_AT: Final = 5
"""How many messages are looked at to see how far a task is: each that shows output says it anew."""
COLUMNS: Final = ("ID", "PROGRESS", "RUNNER", "TITLE")


def progress_of(state: State, tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Return id, title, runner, where or by whom (``at``), progress (percent) and its text of the first few tasks.

    Raises the GatewayError family.
    """
    found = []
    for task in list(tasks)[:RUNNING_MAX]:
        messages = answers.messages_of(state.client.send(protocol.list_messages(task.id, limit=LOOKED_AT)))
        percent, text = answers.progress_of(messages, task) or (None, None)
        said = {"progress": percent, "text": text}
        found.append({"id": task.id, "title": task.title, "runner": task.runner, "at": runs_at(task), **said})
    return found


def row(one: dict[str, Any]) -> tuple[Any, ...]:
    """Return what ``progress_of`` found of one task as a row of COLUMNS."""
    progress = None if one["progress"] is None else (one["progress"], one["text"] or "")
    return one["id"], shown_progress(progress) or "-", one["at"] or "-", one["title"]
