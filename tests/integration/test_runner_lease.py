"""The lease of a running attempt, and the report at its end, with a service that is slow, away or says no."""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dispatch import log
from dispatch.runner import spool
from tests.support.children import command
from tests.support.processes import eventually
from tests.support.promises import promised
from tests.support.runner_driver import Worker, dead
from tests.support.runner_host import ScriptedGateway

if TYPE_CHECKING:
    from pathlib import Path

Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start workers in the test's directory; afterwards nothing of any attempt may be alive."""
    workers: list[Worker] = []

    def make(argv: list[str], **config: Any) -> Worker:
        workers.append(Worker(tmp_path / f"worker{len(workers)}", argv, **config))
        return workers[-1]

    yield make
    left = [process for worker in workers for process in worker.close()]
    assert left == []


def files(worker: Worker, *parts: str) -> list[str]:
    """Return the names of report files in the spool."""
    directory = worker.directory.joinpath("data", "spool", *parts)
    return sorted(path.name for path in directory.glob("*.json"))


def test_lease_is_renewed_at_a_quarter(start: Start) -> None:
    """Renewals come every quarter of the lease, and an attempt may outlive many leases."""
    worker = start(["sleep", "2.8"], lease_s=2.0)
    assert worker.result()["reason"] == "success"
    times = [call["at"] for call in worker.calls("renew")]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) >= 3
    # One of them may be late on a busy machine; a wrong period makes all of them so.
    assert 0.45 < statistics.median(gaps) < 1.0


def test_short_attempts_pay_for_no_keeper(start: Start) -> None:
    """An attempt that ends at once makes two calls and starts no thread."""
    worker = start(["true"], attempts=3)
    (left,) = eventually(lambda: worker.lines("left.jsonl"))
    assert left["threads"] == 1
    assert [call["op"] for call in worker.lines("calls.jsonl")] == ["start", "complete"] * 3


def test_cancel_by_wake_up_kills_the_tree_within_a_second(start: Start, tmp_path: Path) -> None:
    """T10: a wake-up makes the keeper ask, and a cancelled task's stubborn tree is dead within 1 s, unreported."""
    os.mkfifo(tmp_path / "wake")
    worker = start(command("family", tmp_path / "pids", "ignore"), wake=str(tmp_path / "wake"))
    family = worker.noted("../pids", 4)
    eventually(lambda: worker.events("attempt_started"))
    worker.mood("renew.cancelled")
    fd = os.open(tmp_path / "wake", os.O_WRONLY)
    with promised(1.0, "the end of the tree"):
        os.write(fd, b"8\n")
        os.write(fd, b"7\n")
        eventually(lambda: dead(family), "the end of the tree")
    os.close(fd)
    assert worker.result()["reason"] == "cancelled"
    assert worker.reports() == []


def test_wake_up_for_another_task_costs_nothing(start: Start, tmp_path: Path) -> None:
    """A wake-up that names another task makes no call."""
    os.mkfifo(tmp_path / "wake")
    worker = start(["sh", "-c", f"sleep 0.3; echo 8 > {tmp_path}/wake; sleep 0.2"], wake=str(tmp_path / "wake"))
    assert worker.result()["reason"] == "success"
    assert worker.calls("renew") == []


def test_cancel_is_heard_with_the_renewal(start: Start, tmp_path: Path) -> None:
    """Without any wake-up the next renewal brings the news."""
    worker = start(command("hang", tmp_path / "pid"), lease_s=2.0)
    worker.noted("../pid", 1)
    worker.mood("renew.cancelled")
    assert worker.result()["reason"] == "cancelled"
    assert worker.reports() == []


def test_cancel_works_while_draining(start: Start, tmp_path: Path) -> None:
    """Renewals, and with them cancel, go on during a drain."""
    worker = start(command("hang", tmp_path / "pid"), lease_s=2.0, execution={"drain_s": 60})
    worker.noted("../pid", 1)
    worker.signal("child", 15)
    count = len(worker.calls("renew"))
    eventually(lambda: len(worker.calls("renew")) > count + 1)
    worker.mood("renew.cancelled")
    assert worker.result()["reason"] == "cancelled"


@pytest.mark.parametrize("grace_s", [0.0, 30.0])
def test_lost_lease_kills_at_once(start: Start, tmp_path: Path, grace_s: float) -> None:
    """T3: a stale token on renewal kills without grace, reports nothing, and loses no time."""
    worker = start(command("family", tmp_path / "pids", "ignore"), lease_s=2.0, execution={"grace_s": grace_s})
    family = worker.noted("../pids", 4)
    worker.mood("renew.stale")
    with promised(2.0, "the end of the attempt"):
        assert worker.result()["reason"] == "lease_lost"
    assert dead(family)
    assert worker.reports() == []


def test_silent_service_ends_the_attempt_before_the_lease(start: Start, tmp_path: Path) -> None:
    """T2: whatever keeps renewals from succeeding, they are tried again until three quarters, then the tree dies."""
    lease_s = 2.4
    worker = start(command("hang", tmp_path / "pid"), lease_s=lease_s)
    (leader,) = worker.noted("../pid", 1)
    eventually(lambda: worker.calls("renew"))
    worker.mood("renew.unavailable")
    worker.mood("renew.auth", 1)
    worker.mood("renew.unknown", 1)
    result = worker.result()
    assert result["reason"] == "lease_lost"
    granted_at = [call["at"] for call in worker.calls("renew")]
    failures = worker.events("lease_renewal_failed")
    assert len(failures) >= 3
    # The last success was the last call before the failures began.
    last_success = granted_at[-len(failures) - 1]
    assert 0.75 * lease_s - 0.05 < result["at"] - last_success < lease_s
    assert dead([leader])
    assert worker.reports() == []


def test_short_outage_kills_nothing(start: Start) -> None:
    """T1: a service that comes back before three quarters of the lease finds the attempt alive."""
    worker = start(["sleep", "3"], lease_s=4.0)
    eventually(lambda: worker.calls("renew"))
    worker.mood("renew.unavailable", 5)
    assert worker.result()["reason"] == "success"
    assert len(worker.events("lease_renewal_failed")) == 5


def test_hanging_renewal_does_not_hold_the_kill(start: Start, tmp_path: Path) -> None:
    """T7: a renewal that never returns does not keep the main thread from stopping the attempt in time."""
    worker = start(command("hang", tmp_path / "pid"), lease_s=2.0)
    worker.noted("../pid", 1)
    worker.mood("renew.hang")
    with promised(2.5, "the end of the attempt"):
        assert worker.result()["reason"] == "lease_lost"


def test_report_survives_an_outage(start: Start) -> None:
    """T5: a result that cannot be delivered is on disk, private, while the lease is kept; then delivered once."""
    worker = start(["echo", "precious"], lease_s=2.0, moods={"complete.unavailable": None})
    eventually(lambda: files(worker) == ["7-5-complete.json"])
    path = worker.directory / "data" / "spool" / "7-5-complete.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    eventually(lambda: len(worker.calls("renew")) >= 4, "the lease is kept past its first length")
    worker.better("complete.unavailable")
    assert worker.result()["reason"] == "success"
    eventually(lambda: worker.events("report_delivered"))
    assert files(worker) == []
    outputs = [call["outputs"] for call in worker.calls("complete")]
    assert all(output == [{"response": "precious\n"}] for output in outputs)


def test_refused_key_keeps_the_report(start: Start) -> None:
    """T2: a key that is refused on complete is a reason to wait, not to throw the result away."""
    worker = start(["echo", "precious"], moods={"complete.auth": 2})
    assert worker.result()["reason"] == "success"
    assert len(worker.calls("complete")) == 3


def test_stale_completion_leaves_a_copy(start: Start) -> None:
    """T3: a completion refused with 409 is not repeated; the result is kept on this host for people."""
    worker = start(["echo", "precious"], moods={"complete.stale": None})
    worker.result()
    assert len(worker.calls("complete")) == 1
    assert files(worker) == []
    (name,) = files(worker, "refused")
    kept = json.loads((worker.directory / "data" / "spool" / "refused" / name).read_text())
    assert kept["outputs"] == [{"response": "precious\n"}]
    assert kept["refused"] == "stale token"


def test_result_that_is_too_large_is_cut(start: Start) -> None:
    """A result that the service finds too large is cut, not lost and not failed."""
    worker = start(command("spam", "out", 900_000), moods={"complete.too_large": 1})
    worker.result()
    first, second = worker.calls("complete")
    assert len(first["outputs"][0]["response"]) == 900_000
    assert len(second["outputs"][0]["response"]) < 66_000
    assert second["outputs"][0]["truncated"] is True


def test_result_that_is_refused_fails_the_task(start: Start) -> None:
    """A result that the service will never take ends the task with a reason instead of running it again."""
    worker = start(["echo", "odd"], moods={"complete.invalid": None})
    worker.result()
    assert [report["op"] for report in worker.reports()] == ["complete", "fail"]
    assert worker.reports()[1]["reason"].startswith("The task service refused the result: ")


def test_report_that_a_drain_cut_off_is_replayed(start: Start) -> None:
    """A result that could not be delivered before the shutdown lies in the spool; the next start delivers it."""
    worker = start(["echo", "precious"], moods={"complete.unavailable": None}, execution={"drain_s": 0.2})
    eventually(lambda: files(worker))
    worker.signal("child", 15)
    worker.result()
    worker.wait()
    assert files(worker) == ["7-5-complete.json"]
    worker.better("complete.unavailable")
    gateway = ScriptedGateway(worker.directory, {})
    box = spool.Spool(worker.directory / "data")
    assert spool.replay(gateway, box, rand=random.random, log=log.get_logger("test")) == 0
    assert files(worker) == []
    assert worker.calls("complete")[-1]["outputs"] == [{"response": "precious\n"}]


def test_full_disk_keeps_the_report_in_memory(start: Start) -> None:
    """S10: where the spool cannot be written the result waits in memory and is delivered all the same."""
    worker = start(["sh", "-c", "echo precious; echo > ../../spool"], moods={"complete.unavailable": 2})
    assert worker.result()["reason"] == "success"
    assert worker.events("spool_write_failed")
    assert len(worker.calls("complete")) == 3
