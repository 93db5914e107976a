"""Processes that freeze and die: the tree goes, the task comes back, nothing is completed twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatch.runner import spool, tree
from dispatch.runner.tree import boottime
from tests.support.children import command
from tests.support.processes import eventually
from tests.support.promises import promised
from tests.support.runner_driver import FakeService, Worker, dead, dead_within

Start = Callable[..., Worker]


@pytest.fixture
def service() -> Iterator[FakeService]:
    """Serve the warden's releases."""
    server = FakeService()
    yield server
    server.close()


@pytest.fixture
def start(tmp_path: Path, service: FakeService) -> Iterator[Start]:
    """Start worker mains with a warden and one pool child; afterwards nothing of any attempt may be alive."""
    workers: list[Worker] = []

    def make(argv: list[str], **config: Any) -> Worker:
        config = {"main": True, "tasks_url": service.tasks_url, "linger_s": 60, **config}
        workers.append(Worker(tmp_path / f"worker{len(workers)}", argv, **config))
        return workers[-1]

    yield make
    left = [process for worker in workers for process in worker.close()]
    assert left == []


def family_of(worker: Worker) -> list[tree.Process]:
    """Wait for leader, child, setsid grandchild and daemon with a cleared environment."""
    family = worker.noted("../pids", 4)
    worker.pid("child")
    return family


def test_killed_pool_child_takes_its_tree_along_and_gives_the_task_back(
    start: Start, service: FakeService, tmp_path: Path
) -> None:
    """F1: kill -9 of the pool child: the tree is gone within 1 s, and the task released, counted, by the warden."""
    worker = start(command("family", tmp_path / "pids", "ignore"))
    family = family_of(worker)
    worker.signal("child", signal.SIGKILL)
    dead_within(family, 1.0)
    (request,) = eventually(lambda: service.requests)
    assert request["path"] == "/base/orgs/o/projects/p/tasks/7/release"
    body = request["body"]
    assert (body["fencing_token"], body["counted"], body["delay_ms"]) == (5, True, 0)
    assert body["reason"].startswith("worker_lost: ")
    assert request["headers"]["Authorization"] == "Bearer s3cret-t0ken"
    assert (request["headers"]["X-Actor-ID"], request["headers"]["X-Actor-Type"]) == ("actor-1", "agent")
    assert worker.reports() == []
    main = worker.pid("main")
    eventually(lambda: tree.children(main) == [worker.pid("warden")], "no zombies are left with the worker main")


def test_a_result_that_lies_on_disk_outlives_its_pool_child(start: Start, service: FakeService) -> None:
    """Work that is done is not given back to be done again: the report is free for whoever delivers it next."""
    worker = start(["echo", "precious"], moods={"complete.unavailable": None})
    worker.pid("child")
    eventually(lambda: worker.events("report_delayed"))
    eventually(lambda: len(worker.calls("complete")) > 1)
    box = spool.Spool(worker.directory / "data")
    (path,) = (worker.directory / "data" / "spool").glob("*.json")
    assert box.take(path) is None
    worker.signal("child", signal.SIGKILL)
    eventually(lambda: worker.lines("child_ended.jsonl"))
    kept = box.take(path)
    assert kept is not None
    kept.let_go()
    assert kept.report is not None
    assert kept.report.outputs == [{"response": "precious\n"}]
    # A warden that has lost its main releases what it owes before it leaves.
    warden = tree.Process(worker.pid("warden"), tree.starttime(worker.pid("warden")) or 0)
    worker.signal("main", signal.SIGKILL)
    dead_within([warden], 5.0)
    assert service.requests == []
    assert not worker.events("warden_killed")


def test_a_release_is_tried_until_the_service_answers(start: Start, service: FakeService, tmp_path: Path) -> None:
    """A service that is away for a moment gets the release afterwards; a 409 ends the tries."""
    service.statuses = [503, 500, 409]
    worker = start(command("hang", tmp_path / "pid"))
    (leader,) = worker.noted("../pid", 1)
    worker.signal("child", signal.SIGKILL)
    dead_within([leader], 1.0)
    released = eventually(lambda: worker.events("warden_released"))
    assert released[0]["status"] == 409
    assert len(service.requests) == 3


def test_killed_worker_main_takes_everything_along(start: Start, service: FakeService, tmp_path: Path) -> None:
    """F2: kill -9 of the worker main: all gone within 1 s, task released, and then the warden leaves."""
    worker = start(command("family", tmp_path / "pids", "ignore"))
    family = family_of(worker)
    warden = tree.Process(worker.pid("warden"), tree.starttime(worker.pid("warden")) or 0)
    worker.signal("main", signal.SIGKILL)
    dead_within(family, 1.0)
    eventually(lambda: service.requests)
    eventually(lambda: dead([warden]), "the end of the warden")


def test_killed_warden_is_replaced_and_the_attempt_goes_on(start: Start, service: FakeService, tmp_path: Path) -> None:
    """F3: kill -9 of the warden: a new one takes over the running attempt, and guards it like the first."""
    worker = start(command("family", tmp_path / "pids", "ignore"))
    family = family_of(worker)
    worker.signal("warden", signal.SIGKILL)
    eventually(lambda: len(worker.events("warden_started")) == 2)
    assert all(tree.alive(process) for process in family)
    assert worker.lines("results.jsonl") == []
    # The new one must have heard of the attempt before it can be tested.
    replacement = worker.events("warden_started")[1]["pid"]
    eventually(lambda: len(tree.read_proc(replacement, "cmdline")) > 0)
    eventually(lambda: len(list(Path(f"/proc/{replacement}/fd").iterdir())) >= 8, "its connections")
    worker.signal("child", signal.SIGKILL)
    dead_within(family, 1.0)
    eventually(lambda: service.requests)


def test_frozen_pool_child_loses_its_tree_before_its_lease(start: Start, tmp_path: Path, service: FakeService) -> None:
    """F5: SIGSTOP past the lease: the warden kills the tree in time, and after SIGCONT nothing is reported."""
    lease_s = 2.4
    worker = start(command("family", tmp_path / "pids", "ignore"), lease_s=lease_s)
    family = family_of(worker)
    eventually(lambda: worker.calls("renew"), "the first renewal")
    worker.signal("child", signal.SIGSTOP)
    renewed = worker.calls("renew")[-1]["at"]
    with promised(renewed + lease_s - boottime(), "the end of the tree"):
        eventually(lambda: dead(family), "the end of the tree")
    time.sleep(max(0.0, renewed + lease_s + 0.1 - boottime()))
    worker.signal("child", signal.SIGCONT)
    result = worker.result()
    assert result["reason"] == "lease_lost"
    assert worker.reports() == []
    assert service.requests == []


def test_success_that_the_frost_hid_is_not_reported(start: Start, tmp_path: Path) -> None:
    """A child that exited 0 while its pool child was frozen past the lease completes nothing."""
    os.mkfifo(tmp_path / "go")
    worker = start(["sh", "-c", f"echo $$ > {tmp_path}/pid; read x < {tmp_path}/go; echo late"], lease_s=2.4)
    (leader,) = worker.noted("../pid", 1)
    worker.signal("child", signal.SIGSTOP)
    (tmp_path / "go").write_text("\n")
    eventually(lambda: dead([leader]), "the end of the command")
    time.sleep(2.5)  # past the lease
    worker.signal("child", signal.SIGCONT)
    assert worker.result()["reason"] == "lease_lost"
    assert worker.reports() == []


def test_a_start_that_was_granted_late_is_guarded_anew(start: Start, service: FakeService, tmp_path: Path) -> None:
    """The first deadline passed while the service did not answer: that ends no later attempt, nor its guard."""
    worker = start(command("family", tmp_path / "pids", "ignore"), lease_s=1.2, moods={"start.unavailable": 4})
    family = family_of(worker)
    begun_at, granted_at = (worker.calls("start")[place]["at"] for place in (0, -1))
    assert granted_at - begun_at > 1.2
    eventually(lambda: len(worker.calls("renew")) >= 4, "renewals beyond the first deadline")
    assert worker.lines("results.jsonl") == []
    worker.signal("child", signal.SIGKILL)
    dead_within(family, 1.0)
    eventually(lambda: service.requests)


def test_frozen_worker_main_changes_nothing(start: Start, tmp_path: Path) -> None:
    """A frozen worker main does not stop renewals of its pool child's attempt."""
    os.mkfifo(tmp_path / "go")
    worker = start(["sh", "-c", f"echo $$ > {tmp_path}/pid; read x < {tmp_path}/go; echo ok"], lease_s=2.0)
    worker.noted("../pid", 1)
    worker.signal("main", signal.SIGSTOP)
    try:
        renewed = len(worker.calls("renew"))
        eventually(lambda: len(worker.calls("renew")) >= renewed + 5, "renewals for longer than the lease")
        (tmp_path / "go").write_text("\n")
        assert worker.result()["reason"] == "success"
    finally:
        worker.signal("main", signal.SIGCONT)


def test_warden_keeps_its_hands_off_what_ends_well(start: Start, service: FakeService) -> None:
    """Many attempts that end by themselves, and the end of their process, release nothing and kill nothing."""
    worker = start(["true"], attempts=30, linger_s=0)
    assert worker.wait() == 0
    assert len(worker.calls("complete")) == 30
    assert service.requests == []
    assert worker.events("warden_killed") == []
    assert worker.events("warden_unreachable") == []


def test_stop_pipe_drains(start: Start, tmp_path: Path) -> None:
    """F8: closing the stop pipe lets the attempt run for drain_s, then stops and releases it, uncounted."""
    worker = start(
        command("family", tmp_path / "pids", "ignore"), linger_s=0, execution={"drain_s": 0.4, "grace_s": 0.2}
    )
    family = family_of(worker)
    worker.signal("main", signal.SIGTERM)
    result = worker.result()
    assert result["reason"] == "shutdown"
    assert result["detail"].startswith("the worker shut down")
    (report,) = worker.reports()
    assert (report["op"], report["counted"]) == ("release", False)
    assert dead(family)
    assert worker.wait() == 0


def test_byte_in_the_stop_pipe_stops_at_once(start: Start, tmp_path: Path) -> None:
    """A byte before the end of the stop pipe skips the drain."""
    worker = start(command("hang", tmp_path / "pid"), linger_s=0, execution={"drain_s": 60, "grace_s": 1})
    worker.noted("../pid", 1)
    with promised(1.5, "the stop"):
        worker.signal("main", signal.SIGUSR2)
        assert worker.result()["reason"] == "shutdown"
    assert worker.wait() == 0


def test_signals_to_the_group_miss_the_warden(start: Start, tmp_path: Path) -> None:
    """TERM, INT and HUP to the worker's process group, or to the warden itself, leave the warden running."""
    worker = start(command("hang", tmp_path / "pid"))
    worker.noted("../pid", 1)
    warden = worker.pid("warden")
    assert os.getsid(warden) == warden
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(warden, number)
    worker.signal("child", signal.SIGKILL)
    eventually(lambda: worker.events("warden_killed"))
    assert worker.events("warden_died") == []


def test_warden_holds_no_secret_in_argv_or_environment(start: Start, tmp_path: Path) -> None:
    """The token is in neither, and an attempt's process cannot speak to the warden as if it were a pool child."""
    worker = start(command("hang", tmp_path / "pid"))
    worker.noted("../pid", 1)
    warden = worker.pid("warden")
    assert b"s3cret" not in tree.read_proc(warden, "cmdline") + tree.read_proc(warden, "environ")
    assert b"s3cret" not in tree.read_proc(worker.pid("child"), "environ")


def test_stranger_cannot_make_the_warden_release(start: Start, service: FakeService, tmp_path: Path) -> None:
    """A process that is no child of the worker main is not listened to."""
    forger = (
        "import json,os,socket,sys;"
        "names=[l.split()[-1] for l in open('/proc/net/unix') if l.split()[-1].startswith('@')];"
        "tag=os.environ['DISPATCH_ATTEMPT'];"
        "message=json.dumps({'op':'begin','task':'99','attempt':1,'token':1,'tag':tag,'mark':0,'deadline':9e9,"
        "'actor':{'type':'agent','id':'x','name':'x'}}).encode()\n"
        "for name in names:\n"
        "  s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n"
        "  try: s.connect('\\0'+name[1:]); s.send(message)\n"
        "  except OSError: continue\n"
        f"open({str(tmp_path / 'pid')!r},'w').write(str(os.getpid()))\n"
    )
    worker = start(["python3", "-c", forger], linger_s=60)
    assert worker.result()["reason"] == "success"
    eventually(lambda: worker.events("warden_refused_peer"))
    assert service.requests == []


def test_warden_is_small(start: Start, tmp_path: Path) -> None:
    """The warden's own memory stays below 12 MB."""
    worker = start(command("hang", tmp_path / "pid"))
    worker.noted("../pid", 1)
    rollup = tree.read_proc(worker.pid("warden"), "smaps_rollup").decode()
    pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss_kib < 12 * 1024
