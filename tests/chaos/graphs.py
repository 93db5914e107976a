"""Does a history keep the promises about graphs? Pure, as the checker is.

I14: no task is alive before everything that it depends on was completed, and a
task that depends on something that ended otherwise never lives and is failed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tests.chaos.verdict import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.history import History

ENDED_BADLY = frozenset({"failed", "cancelled", "skipped"})


def check_graph(history: History) -> Iterator[Violation]:
    """Check I14."""
    status = {task.id: task.status for task in history.tasks}
    completed = {event.task_id: event.at for event in history.events if event.to_status == "completed"}
    began: dict[str, float] = defaultdict(lambda: float("inf"))
    for tick in history.ticks:
        began[tick.task_id] = min(began[tick.task_id], tick.at)
    for creation in history.creations:
        if creation.task_id is None or creation.task_id not in status:
            continue
        for needed in creation.needs:
            if needed not in status:
                yield Violation("I14", creation.task_id, f"depends on task {needed}, which is lost")
            elif began[creation.task_id] < completed.get(needed, float("inf")):
                early_s = completed.get(needed, history.ended_at) - began[creation.task_id]
                sentence = f"was alive {early_s:.3f} s before task {needed} was completed ({status[needed]})"
                yield Violation("I14", creation.task_id, sentence)
        bad = [needed for needed in creation.needs if status.get(needed) in ENDED_BADLY]
        if bad and status[creation.task_id] not in ENDED_BADLY:
            sentence = f"is {status[creation.task_id]}, and task {bad[0]} that it depends on {status[bad[0]]}"
            yield Violation("I14", creation.task_id, sentence)
