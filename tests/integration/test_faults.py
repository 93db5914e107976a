"""Every process is killed, frozen or drained in the middle of a task, for real.

The children write down themselves when they are alive (tests/support/tick.py);
what is asserted is what they wrote and what the service says, not what anybody
believes. What kills something and leaves a fleet behind that works is done to one fleet, test after test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatch.broker import KEY_PREFIX, PRESENCE_CHANNEL, WORKER_KEY
from dispatch.core.presence import PRESENCE_TTL_S, WorkerPresence, dump
from tests.support.processes import children_of, eventually, is_running
from tests.support.promises import promised
from tests.support.redis import free_port

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.processes import LogProcess
    from tests.support.stack import Stack

GONE_S = 1.0
"""An old tree is dead this long after its worker."""
AGAIN_S = 10.0
"""A task runs again this long after its worker died on a living host."""


def running(stack: Stack, task_id: int, attempt: int = 1) -> dict[str, Any]:
    """Wait until an attempt's child has begun and return its first tick."""

    def begun() -> dict[str, Any] | None:
        lines = [t for t in stack.tick_lines(task_id) if t["attempt"] == attempt and t["role"] == "leader"]
        return lines[0] if lines else None

    return eventually(begun, f"attempt {attempt} of task {task_id} running")


def gone(pids: Iterable[int]) -> None:
    """All processes of an old tree die within a second."""
    with promised(GONE_S, "the end of the old tree"):
        eventually(lambda: not any(map(is_running, pids)), "the end of the old tree")


def pool_children(worker: LogProcess) -> list[int]:
    """Return the pids of a worker's pool children (its warden is a child as well)."""

    def is_warden(pid: int) -> bool:
        return b"warden" in Path(f"/proc/{pid}/cmdline").read_bytes()

    return [pid for pid in children_of(worker.pid) if not is_warden(pid)]


def pidfds_of(pid: int) -> int:
    """Return how many processes a process watches."""
    with contextlib.suppress(FileNotFoundError):
        return sum("pidfd" in str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return 0


def parent_of(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def assert_never_two_alive(stack: Stack, task_id: int) -> None:
    """I5: intervals of different attempts, as the children wrote them, do not overlap."""
    spans: dict[int, list[float]] = {}
    for line in stack.tick_lines(task_id):
        spans.setdefault(line["token"], []).append(line["at"])
    ordered = sorted((min(at), max(at), token) for token, at in spans.items())
    for (_, end, earlier), (begin, _, later) in zip(ordered, ordered[1:], strict=False):
        assert end < begin, f"attempts with tokens {earlier} and {later} were alive together"


def moves_of(stack: Stack, task_id: int) -> list[str]:
    """Return the terminal states that a task reached, in order, from its history."""
    with closing(sqlite3.connect(stack.directory / "data" / "tasks.db")) as db:
        rows = db.execute("SELECT type FROM events WHERE task_id = ? ORDER BY seq", (task_id,))
        return [kind.removeprefix("task.") for (kind,) in rows]


def assert_ended_once(stack: Stack, task_id: int, status: str = "completed") -> dict[str, Any]:
    """The task reached one terminal state, once, and no two attempts were ever alive together."""
    task = stack.wait_task(task_id)
    assert status == task["status"], task["reason"]
    ends = [verb for verb in moves_of(stack, task_id) if verb in ("completed", "failed", "cancelled", "rejected")]
    assert [status] == ends
    assert_never_two_alive(stack, task_id)
    return task


def test_kill_pool_child(fleet):
    """F1: kill -9 of a pool child: tree gone within a second, daemon included, running again soon, counted once."""
    stack = fleet(slots=1)
    task = stack.create(tick={"duration_s": [300, 0.3], "daemon_s": 300})
    first = running(stack, task["id"])
    pids = {line["pid"] for line in stack.tick_lines(task["id"])}
    with promised(AGAIN_S, "the next attempt"):
        os.kill(parent_of(first["pid"]), signal.SIGKILL)
        gone(pids)
        running(stack, task["id"], attempt=2)
    assert assert_ended_once(stack, task["id"])["attempts"] == 2


def test_kill_warden(fleet):
    """F3: kill -9 of the warden: it is replaced, the attempt goes on, and the new one guards it."""
    stack = fleet(slots=1)
    worker = stack.processes[-1]
    task = stack.create(tick={"duration_s": [300, 0.3]})
    first = running(stack, task["id"])
    (warden,) = set(children_of(worker.pid)) - set(pool_children(worker))
    os.kill(warden, signal.SIGKILL)
    started = worker.wait_event("warden_started")
    worker.wait_event("warden_ready")
    # The worker main and the pool child: from then on the new warden watches both.
    eventually(lambda: pidfds_of(started["pid"]) >= 2, "the new warden knowing the pool child")
    os.kill(parent_of(first["pid"]), signal.SIGKILL)
    gone([first["pid"]])
    assert assert_ended_once(stack, task["id"])["attempts"] == 2


def test_kill_service(fleet):
    """T1, B3: kill -9 of the service mid-task: the child runs on, its result is delivered after the restart, once."""
    stack = fleet(slots=1)
    service = stack.processes[0]
    task = stack.create(tick={"duration_s": 1.5})
    first = running(stack, task["id"])
    service.kill()
    # The child ends while nobody can be told.
    eventually(lambda: not is_running(first["pid"]), "the end of the child")
    stack.start_service()
    ended = assert_ended_once(stack, task["id"])
    assert ended["attempts"] == 1
    assert ended["outputs"][0]["response"].startswith("done")


def test_kill_ingress(fleet):
    """F4, A4: kill -9 of the ingress: what runs goes on, what is queued or new runs after its restart, once."""
    stack = fleet(slots=1)
    ingress = stack.processes[1]
    first = stack.create(tick={"duration_s": 2})
    running(stack, first["id"])
    queued = [stack.create(tick={"duration_s": 0.1}) for _ in range(5)]
    ingress.kill()
    later = stack.create(tick={"duration_s": 0.1})
    stack.start_ingress()
    for task in [first, *queued, later]:
        assert assert_ended_once(stack, task["id"])["attempts"] == 1
    moves = [verb for verb in moves_of(stack, first["id"]) if verb != "message"]  # its output is on the thread too
    assert len(moves) == len(set(moves))


def test_cancel_kills_the_tree(fleet):
    """T10, B12: a cancel kills the running tree within a second, on whatever host, and completes nothing."""
    stack = fleet(slots=1)
    task = stack.create(tick={"duration_s": 300, "daemon_s": 300})
    running(stack, task["id"])
    pids = {line["pid"] for line in stack.tick_lines(task["id"])}
    with promised(GONE_S, "the end of the tree"):
        assert stack.call("POST", f"/tasks/{task['id']}/cancel")[0] == 200
        eventually(lambda: not any(map(is_running, pids)), "the end of the tree")
    assert_ended_once(stack, task["id"], "cancelled")
    after = stack.create(tick={"duration_s": 0.1})
    assert_ended_once(stack, after["id"])


def test_cancel_while_queued_never_starts(fleet):
    """T10: a task that is cancelled while it waits in the queue never starts."""
    stack = fleet(slots=1)
    go = stack.directory / "go"
    first = stack.create(tick={"duration_s": 300, "until": str(go)})
    running(stack, first["id"])
    queued = stack.create(tick={"duration_s": 0.1})
    stack.wait_task(queued["id"], "in_progress")
    stack.call("POST", f"/tasks/{queued['id']}/cancel")
    go.touch()
    last = stack.create(tick={"duration_s": 0.1})
    assert_ended_once(stack, last["id"])
    assert stack.tick_lines(queued["id"]) == []
    assert_ended_once(stack, queued["id"], "cancelled")


def test_kill_worker_main(fleet):
    """F2, B8: kill -9 of a worker: its tree is gone within a second and another worker runs the task soon."""
    stack = fleet(slots=1)
    worker = stack.processes[-1]
    task = stack.create(tick={"duration_s": [300, 0.3]})
    first = running(stack, task["id"])
    stack.start_worker(1)
    with promised(AGAIN_S, "the next attempt"):
        worker.kill()
        gone([first["pid"]])
        running(stack, task["id"], attempt=2)
    assert_ended_once(stack, task["id"])


def test_drain(fleet):
    """F8, A3: SIGTERM to a worker with a long task: released in time, running elsewhere soon, attempt not counted."""
    stack = fleet(slots=1)
    worker = stack.processes[-1]
    task = stack.create(tick={"duration_s": [300, 0.3]})
    first = running(stack, task["id"])
    stack.start_worker(1)
    with promised(AGAIN_S, "running elsewhere"):
        worker.signal(signal.SIGTERM)
        again = eventually(
            lambda: [t for t in stack.tick_lines(task["id"]) if t["token"] > first["token"]], "running elsewhere"
        )
    assert again[0]["attempt"] == 1
    assert worker.wait() == 0
    assert assert_ended_once(stack, task["id"])["attempts"] == 1


def test_group_sigterm_loses_nothing(fleet):
    """SIGTERM to every process of a worker at once, as service managers do, releases the task uncounted."""
    stack = fleet(slots=1)
    worker = stack.processes[-1]
    task = stack.create(tick={"duration_s": [300, 0.3]})
    running(stack, task["id"])
    stack.start_worker(1)
    for pid in (worker.pid, *pool_children(worker)):
        os.kill(pid, signal.SIGTERM)
    worker.wait()
    assert assert_ended_once(stack, task["id"])["attempts"] == 1


def test_frozen_worker_completes_nothing(fleet):
    """F5, B7: a worker stopped past its lease loses its tree before that, and completes nothing when resumed."""
    stack = fleet(slots=1)
    worker = stack.processes[-1]
    task = stack.create(tick={"duration_s": 300, "output": "too late"})
    first = running(stack, task["id"])
    frozen = [worker.pid, *pool_children(worker)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        with promised(6.0, "the warden's kill before the lease of 6 s ends"):
            eventually(lambda: not is_running(first["pid"]), "the warden's kill")
        eventually(lambda: stack.task(task["id"])["fencing_token"] == 2, "the next grant")
        stack.call("PATCH", f"/tasks/{task['id']}", {"payload": {"tick": {"dir": str(stack.ticks), "output": "new"}}})
        stack.start_worker(1)
        ended = stack.wait_task(task["id"])
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert ended["outputs"][0]["response"].strip() == "new"
    worker.wait_event("attempt_ended", reason="lease_lost")
    assert_ended_once(stack, task["id"])
    assert stack.task(task["id"])["outputs"] == ended["outputs"]


def test_empty_redis(fleet):
    """R2: FLUSHALL with tasks queued: all are enqueued again and each starts once."""
    stack = fleet(slots=1)
    first = stack.create(tick={"duration_s": 1.5})
    running(stack, first["id"])
    queued = [stack.create(tick={"duration_s": 0.1}) for _ in range(6)]
    stack.redis.flush()
    for task in [first, *queued]:
        assert assert_ended_once(stack, task["id"])["attempts"] == 1


def test_drain_lets_short_work_finish(fleet):
    """A drain lets an attempt finish that needs less than drain_s."""
    stack = fleet(slots=1)
    worker = stack.processes[-1]
    go = stack.directory / "go-on"
    task = stack.create(tick={"duration_s": 300, "until": str(go)})
    running(stack, task["id"])
    worker.ask()
    worker.wait_event("worker_draining")
    go.touch()
    assert worker.stop() == 0
    ended = assert_ended_once(stack, task["id"])
    assert ended["attempts"] == 1
    assert ended["fencing_token"] == 1


def test_asking_twice_does_not_wait_for_the_drain(fleet):
    """SIGQUIT during a long drain stops the attempt at once and gives it back uncounted."""
    stack = fleet(slots=1)
    stack.processes[-1].stop()
    worker = stack.start_worker(1, {"DISPATCH_DRAIN_S": "60"})
    task = stack.create(tick={"duration_s": 300})
    first = running(stack, task["id"])
    worker.signal(signal.SIGTERM)
    worker.wait_event("worker_draining")
    # The second wish counts as one only when it comes well after the first.
    time.sleep(1.5)
    assert is_running(first["pid"])
    worker.signal(signal.SIGQUIT)
    worker.wait()
    assert not is_running(first["pid"])
    back = stack.wait_task(task["id"], "pending")
    assert (back["attempts"], back["fencing_token"]) == (0, 1)


def test_recovery_kills_what_runs_before_it_runs_again(fleet):
    """core_recover_task on a running task: its tree is dead within a second, and only then does the task run again."""
    stack = fleet(slots=2)
    task = stack.create(tick={"duration_s": [300, 0, 0.3], "daemon_s": 300})
    running(stack, task["id"])
    pids = {line["pid"] for line in stack.tick_lines(task["id"])}
    note = {"task_id": task["uuid"], "to_status": "todo", "note": "it looks stuck"}
    status, found = stack.call("POST", "/tools/core_recover_task", note)
    assert (status, found["status"], found["lease_token"]) == (200, "todo", 2)
    gone(pids)
    assert assert_ended_once(stack, task["id"])["fencing_token"] == 3


def test_poison_that_kills_its_worker(fleet):
    """F10: a child that kills its pool process each time is failed after exactly three starts; others are unharmed."""
    stack = fleet(slots=2)
    poison = stack.create(tick={"kill_parent": True, "duration_s": 300})
    good = [stack.create(tick={"duration_s": 0.1}) for _ in range(4)]
    for task in good:
        assert_ended_once(stack, task["id"])
    ended = assert_ended_once(stack, poison["id"], "failed")
    assert ended["reason"].startswith("Exceeded max retry attempts (3)")
    begins = [t for t in stack.tick_lines(poison["id"]) if t["kind"] == "begin"]
    assert sorted({t["token"] for t in begins}) == [1, 2, 3]


def test_kill_redis(fleet):
    """R1: kill -9 of Redis with AOF: what runs is not disturbed, no attempt is burnt, new work is picked up after."""
    stack = fleet(slots=2)
    first = stack.create(tick={"duration_s": 3})
    running(stack, first["id"])
    stack.redis.kill()
    later = stack.create(tick={"duration_s": 0.1})
    stack.redis.start()
    with promised(AGAIN_S, "work after the return of Redis"):
        running(stack, later["id"])
    for task in (first, later):
        assert assert_ended_once(stack, task["id"])["attempts"] == 1


def test_a_failover_of_redis_disturbs_nothing(fleet):
    """A Redis that becomes a replica, and one that is full, refuse writes: what runs goes on, and the worker stays."""
    stack = fleet(slots=2)
    worker = stack.processes[-1]
    busy = stack.create(tick={"duration_s": 3})
    running(stack, busy["id"])
    with closing(stack.redis.client()) as client:
        client.replicaof("127.0.0.1", free_port())
        eventually(lambda: "read only replica" in worker.tail(), "the worker meeting the replica")
        client.replicaof("NO", "ONE")
        client.config_set("maxmemory", "1")
        waiting = stack.create(tick={"duration_s": 0.1})
        assert assert_ended_once(stack, busy["id"])["attempts"] == 1
        client.config_set("maxmemory", "0")
    done = assert_ended_once(stack, waiting["id"])
    assert done["attempts"] == 1
    assert done["fencing_token"] <= 3, "it is not claimed over and over for a Redis that takes nothing"
    assert worker.exit_code is None


def test_worker_survives_redis_while_it_is_idle_and_busy(fleet):
    """Celery 5.7.0 dies of a lost Redis in some states; ours goes on consuming after three losses."""
    stack = fleet(slots=2)
    worker = stack.processes[-1]
    for _ in range(3):
        busy = stack.create(tick={"duration_s": 0.6})
        running(stack, busy["id"])
        stack.redis.kill()
        stack.redis.start()
        assert_ended_once(stack, busy["id"])
    last = stack.create(tick={"duration_s": 0.1})
    assert_ended_once(stack, last["id"])
    assert worker.exit_code is None


def test_message_popped_by_a_worker_that_died(make_stack):
    """A message that a worker popped and did not live to accept is enqueued again, not renewed for ever."""
    stack = make_stack()
    stack.redis.start()
    stack.start_service()
    stack.start_ingress()
    with closing(stack.redis.client(decode_responses=True)) as client:
        ghost = WorkerPresence(node="ghost", host="here", pid=1, slots=1, queues=("dispatch",))
        client.set(WORKER_KEY + "ghost", dump(ghost), ex=PRESENCE_TTL_S)
        client.publish(PRESENCE_CHANNEL, "ghost")
        task = stack.create(tick={"duration_s": 0.1})
        message = eventually(lambda: client.rpop(KEY_PREFIX + "dispatch"), "the message")
        # As kombu.transport.redis does when it pops.
        client.zadd(KEY_PREFIX + "unacked_index", {"left-behind": time.time()})
        client.hset(KEY_PREFIX + "unacked", "left-behind", json.dumps([json.loads(message), "", "dispatch"]))
    stack.start_worker(1)
    ended = stack.wait_task(task["id"])
    assert ended["status"] == "completed"
    assert ended["attempts"] == 1


def test_service_back_after_a_while(make_stack):
    """A service that was away so long that the feed waits long to reconnect is noticed within seconds of its return."""
    stack = make_stack(DISPATCH_RECONCILE_S="30").start(slots=1)
    service, ingress = stack.processes[0], stack.processes[1]
    service.kill()
    ingress.wait_event("feed_disconnected", count=4)
    stack.start_service()
    with promised(AGAIN_S, "work after the return of the service"):
        task = stack.create(tick={"duration_s": 0.1})
        running(stack, task["id"])
    assert_ended_once(stack, task["id"])
    # The feed is up again, not only the timer: the next task comes by it.
    ingress.wait_event("feed_connected", count=2)
