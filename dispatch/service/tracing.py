"""What the service tells of tasks as spans: that they were created, and that they ended.

It is told what was committed, like the feed; so whichever face or tool made a
task, or ended it, there is a span, and none for what was rolled back. Of several
services over one database each tells of what it did itself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from dispatch.core import spans
from dispatch.core.lifecycle import FINISHED
from dispatch.core.trace_ids import link_of
from dispatch.service.origin import ORIGIN, Origin
from dispatch.service.wire import word_of
from dispatch.traces import recorder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.core.spans import Span
    from dispatch.core.trace_ids import TaskTrace
    from dispatch.service.events import Event
    from dispatch.service.store import Store

_ENDS: Final = frozenset({"task.completed", "task.failed", "task.cancelled", "task.rejected", "task.recovered"})


def watch(store: Store) -> None:
    """Tell of what the store commits from now on."""
    store.on_committed = _tell


def note_origin(scope: Any) -> None:
    """Remember when a request came and in which span its caller made it; called in the task that serves it."""
    named = [value for name, value in scope["headers"] if name == b"traceparent"]
    # Of two of them nobody knows which one is meant.
    link = link_of(named[0].decode("latin-1")) if len(named) == 1 else None
    ORIGIN.set(Origin(time.time_ns(), link))


def _tell(events: Sequence[Event], origin: Origin | None) -> None:
    for event in events:
        if event.type != "task.created" and (event.type not in _ENDS or event.task.status not in FINISHED):
            continue
        trace = recorder.trace_of(event.task.uuid, str(event.task.id))
        if trace is not None and trace.is_sampled:
            recorder.record(_created(trace, event, origin) if event.type == "task.created" else _ended(trace, event))


def _created(trace: TaskTrace, event: Event, origin: Origin | None) -> Span:
    row = event.task
    facts = spans.TaskFacts(
        str(row.id), row.uuid, row.channel, row.type, row.priority, title=row.title, is_sealed=bool(row.sealed)
    )
    now_ns = time.time_ns()
    began_ns, link = (now_ns, None) if origin is None else (origin.came_ns, origin.link)
    return spans.create(trace, facts, event.actor_id, (began_ns, now_ns), link)


def _ended(trace: TaskTrace, event: Event) -> Span:
    row = event.task
    return spans.end(trace, str(row.id), word_of(row.status), event.actor_id, event.seq, time.time_ns())
