"""Results that no service took while their slots waited: the running worker delivers them when it is back."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from dispatch.ats.model import Actor
from dispatch.service import direct, moves
from dispatch.service.rows import Ref
from tests.support.processes import eventually
from tests.support.stack import Stack


@pytest.mark.slow
def test_a_result_is_recorded_without_a_restart_of_its_worker() -> None:
    """Its lease was extended when the service came back, so it counts; one that was cancelled meanwhile is too late."""
    stack = Stack({"DISPATCH_REPORT_PATIENCE_S": "0.2"})
    with ExitStack() as cleanup:
        cleanup.callback(stack.abort)
        service, _, worker = stack.start(2).processes
        done = stack.directory / "done"
        kept, lost = (stack.create(tick={"until": str(done), "duration_s": 60})["id"] for _ in range(2))
        for ident in (kept, lost):
            eventually(lambda ident=ident: stack.tick_lines(ident), f"task {ident} running")
        service.kill()
        done.touch()
        worker.wait_event("report_left_in_spool", count=2)
        url = f"sqlite:///{stack.directory / 'data' / 'tasks.db'}"
        boss = Actor("human", "boss", "Boss")
        direct.transaction(url, lambda tx: moves.cancel(tx, Ref(lost), boss))
        stack.start_service()

        task = stack.wait_task(kept, timeout_s=10)
        assert (task["status"], task["attempts"], task["outputs"]) == (
            "completed",
            1,
            [{"response": f"done {kept} 1\n"}],
        )
        worker.wait_event("spool_replayed", task=str(kept), outcome="accepted")
        worker.wait_event("report_too_late", task=str(lost), kind="complete")
        assert stack.task(lost)["status"] == "cancelled"
        spool = stack.directory / "data" / "spool"
        (refused,) = spool.rglob("*.json")
        assert json.loads(refused.read_text())["outputs"] == [{"response": f"done {lost} 1\n"}]
        assert len(worker.find("worker_ready")) == 1
        after = stack.create(tick={})["id"]
        assert stack.wait_task(after)["status"] == "completed"
        cleanup.pop_all()
    stack.close()


@pytest.mark.slow
def test_a_result_is_recorded_while_its_worker_drains() -> None:
    """A worker that finishes a long attempt before it stops goes on delivering what lies in the spool."""
    stack = Stack({"DISPATCH_REPORT_PATIENCE_S": "0.2", "DISPATCH_DRAIN_S": "60"})
    with ExitStack() as cleanup:
        cleanup.callback(stack.abort)
        service, _, worker = stack.start(2).processes
        done, over = stack.directory / "done", stack.directory / "over"
        early, late = (stack.create(tick={"until": str(path), "duration_s": 60})["id"] for path in (done, over))
        for ident in (early, late):
            eventually(lambda ident=ident: stack.tick_lines(ident), f"task {ident} running")
        service.kill()
        done.touch()
        worker.wait_event("report_left_in_spool")
        worker.ask()
        worker.wait_event("worker_draining")
        stack.start_service()

        assert stack.wait_task(early, timeout_s=10)["status"] == "completed"
        over.touch()
        assert stack.wait_task(late)["status"] == "completed"
        assert worker.wait() == 0
        cleanup.pop_all()
    stack.close()
