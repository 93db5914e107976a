"""Queues and concurrency classes on real parts: who runs what, how many at once, and what holds up nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes import eventually
from tests.support.stack import Stack
from tests.support.witness import most_at_once, spans_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = """
[classes.gpu]
limit = 1
[classes.two]
limit = 2
[[routes]]
payload = { big = true }
queue = "big"
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack with routes and classes: the service, an ingress, and a worker of four slots on the usual queue."""
    config = tmp_path / "dispatch.toml"
    config.write_text(CONFIG)
    found = Stack({"DISPATCH_CONFIG": str(config)})
    try:
        found.start(slots=4)
        yield found
    except BaseException:
        print(found.report())
        found.abort()
        raise
    found.close()


def create(stack: Stack, duration_s: float = 0.3, **switches: Any) -> str:
    """Create a task with switches in its payload."""
    return str(stack.create(tick={"duration_s": duration_s}, payload=switches)["id"])


def started_by(process: Any) -> set[str]:
    """Return the tasks whose attempts a worker has started."""
    return {str(event["task"]) for event in process.events if event["event"] == "attempt_started"}


def holders(stack: Stack, name: str) -> set[str]:
    """Return which tasks have a place in a class, as Redis shows it."""
    with stack.redis.client() as client:
        return {key.decode() if isinstance(key, bytes) else key for key in client.hkeys(f"dispatch:class:{name}")}


def test_queues_and_classes(stack: Stack) -> None:
    """A queue is served by its workers only; a class lets so many run at once; neither holds up anybody else."""
    waiting = [create(stack, big=True) for _ in range(3)]
    gpu = [create(stack, gpu=True) for _ in range(3)]
    two = [create(stack, two=True) for _ in range(5)]
    both = [create(stack, gpu=True, two=True) for _ in range(2)]
    plain = [create(stack, gpu=False) for _ in range(3)]
    for task_id in (*gpu, *two, *both, *plain):
        stack.wait_task(task_id, "completed")
    assert most_at_once(stack, gpu + both) == 1
    assert most_at_once(stack, two + both) == 2
    first_plain = min(span[0] for task_id in plain for span in spans_of(stack, task_id))
    assert first_plain < max(span[1] for task_id in gpu for span in spans_of(stack, task_id))
    assert {stack.task(task_id)["status"] for task_id in waiting} == {"pending"}
    big = stack.start_worker(2, {}, queues="big")
    for task_id in waiting:
        stack.wait_task(task_id, "completed")
    assert started_by(big) == set(waiting)
    eventually(lambda: not holders(stack, "gpu") and not holders(stack, "two"), "all places given back")
