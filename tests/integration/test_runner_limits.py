"""Attempts that want more of their host than they may have: they end, with the reason, and nobody else does.

Where the kernel can hold limits for a child of this test (control groups of version 1 that may be written), that is
tried beside watching; elsewhere watching alone is, and what the kernel does is not. Version 2 is never tried here: a
test process shares its group with others, so that no worker of it may use it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatch.runner import tree
from tests.support.children import command
from tests.support.groups import BY_KERNEL, groups_of, is_in_group_of
from tests.support.processes import eventually
from tests.support.runner_driver import FakeService, Worker, dead, dead_within

Start = Callable[..., Worker]
MIB = 1 << 20
MEMORY = {"attempt_memory_bytes_max": 64 * MIB}
PROCESSES = {"attempt_processes_max": 64}
BOTH = pytest.mark.parametrize(
    "by_kernel", [True, False] if BY_KERNEL else [False], ids=lambda on: "auto" if on else ""
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start worker mains with a warden and one pool child; afterwards no process and no group of any may be left."""
    workers: list[Worker] = []
    service = FakeService()

    def make(argv: list[str], *, by_kernel: bool, execution: dict[str, Any], **config: Any) -> Worker:
        execution = {**execution, "attempt_limits": "auto" if by_kernel else "watched"}
        config = {"main": True, "tasks_url": service.tasks_url, "linger_s": 60, "execution": execution, **config}
        workers.append(Worker(tmp_path / f"worker{len(workers)}", argv, **config))
        return workers[-1]

    yield make
    pids = [worker.pid("child") for worker in workers]
    left = [process for worker in workers for process in worker.close()]
    service.close()
    assert left == []
    assert [group for pid in pids for group in groups_of(pid)] == []


@BOTH
def test_too_much_memory_ends_one_attempt_and_no_other(start: Start, tmp_path: Path, by_kernel: bool) -> None:
    """The whole attempt ends with a reason of its own and counts, though only a child took too much; others go on."""
    neighbour = start(command("hang", tmp_path / "neighbour"), by_kernel=by_kernel, execution=MEMORY)
    (bystander,) = neighbour.noted("../neighbour", 1)
    worker = start(command("hog", tmp_path / "pids", 256, "child"), by_kernel=by_kernel, execution=MEMORY)
    result = worker.result()
    held = "killed by the kernel" if by_kernel else "stopped by the worker, which watches it"
    assert result["reason"] == "oom"
    assert result["detail"] == f"it needed more than its 64 MiB of memory (attempt_memory_bytes_max); {held}"
    (report,) = worker.reports()
    assert (report["op"], report["counted"], report["reason"]) == ("release", True, result["detail"])
    assert not worker.strays()
    assert tree.alive(bystander)
    assert is_in_group_of([bystander.pid], neighbour.pid("child")) is by_kernel


@BOTH
def test_a_fork_bomb_is_bounded_and_leaves_nothing(start: Start, tmp_path: Path, by_kernel: bool) -> None:
    """The kernel refuses what is too much, which the reason says; who watches stops the attempt."""
    worker = start(command("bomb", tmp_path / "pids"), by_kernel=by_kernel, execution=PROCESSES)
    result = worker.result()
    if by_kernel:
        assert result["reason"] == "exit"
        assert result["detail"].startswith(
            "exit code 3; it was refused more than its 64 processes and threads (attempt_processes_max): refused 20 of "
        )
        assert len((tmp_path / "pids").read_text().split()) == 63
    else:
        assert result["reason"] == "process_limit"
        assert result["detail"].startswith("it had more than its 64 processes (attempt_processes_max); stopped by")
    assert not worker.strays()


@pytest.mark.parametrize("victim", ["child", "main"])
def test_no_group_outlives_its_worker(start: Start, tmp_path: Path, victim: str) -> None:
    """After kill -9 of pool child or worker main the tree and its group are gone within seconds."""
    worker = start(command("family", tmp_path / "pids", "ignore"), by_kernel=BY_KERNEL, execution=PROCESSES)
    family = worker.noted("../pids", 4)
    child = worker.pid("child")
    assert is_in_group_of([process.pid for process in family], child) is BY_KERNEL
    worker.signal(victim, signal.SIGKILL)
    dead_within(family, 1.0)
    eventually(lambda: not groups_of(child), f"groups {groups_of(child)}")


def test_a_drained_worker_leaves_no_group(start: Start, tmp_path: Path) -> None:
    """An attempt that is stopped for a drain is given back uncounted, whatever its limits."""
    worker = start(
        command("family", tmp_path / "pids", "ignore"),
        by_kernel=BY_KERNEL,
        execution={**PROCESSES, **MEMORY, "drain_s": 0.1, "grace_s": 0.1, "attempt_memory_bytes_max": 512 * MIB},
    )
    family = worker.noted("../pids", 4)
    child = worker.pid("child")
    worker.signal("main", signal.SIGTERM)
    eventually(lambda: dead(family), "the end of the tree")
    assert worker.result()["reason"] == "shutdown"
    eventually(lambda: not groups_of(child))
    assert worker.reports()[0]["counted"] is False


def test_what_dead_workers_left_is_removed_at_the_next_start(start: Start, tmp_path: Path) -> None:
    """With main, warden and pool child all killed at once nobody is left to clear away; the next worker does."""
    first = start(command("family", tmp_path / "pids", "ignore"), by_kernel=BY_KERNEL, execution=PROCESSES)
    family = first.noted("../pids", 4)
    child = first.pid("child")
    for which in ("main", "warden", "child"):
        first.signal(which, signal.SIGSTOP)
    for which in ("warden", "main", "child"):
        first.signal(which, signal.SIGKILL)
    assert all(tree.alive(process) for process in family)
    assert bool(groups_of(child)) is BY_KERNEL
    second = start(["true"], by_kernel=BY_KERNEL, execution=PROCESSES)
    eventually(lambda: dead(family), "the end of the tree")
    assert second.result()["reason"] == "success"
    eventually(lambda: not groups_of(child))


def test_an_executor_may_have_limits_of_its_own(start: Start, tmp_path: Path) -> None:
    """What stands at the executor wins over the settings, 0 for no limit too, and is what the reason names."""
    argv = command("hog", tmp_path / "pids", 256)
    tables = {"default": {"command": argv, "memory_bytes_max": 48 * MIB, "processes_max": 0}}
    worker = start(argv, by_kernel=BY_KERNEL, execution={"attempt_processes_max": 1}, routing={"executors": tables})
    assert worker.result()["detail"].startswith(
        "it needed more than its 48 MiB of memory (memory_bytes_max in [executors.default]); "
    )


def test_without_limits_there_is_no_group(start: Start, tmp_path: Path) -> None:
    """Whoever sets no limit pays for none: the command is started as ever, in the group of its worker."""
    worker = start(command("hang", tmp_path / "pids"), by_kernel=True, execution={})
    (leader,) = worker.noted("../pids", 1)
    assert not groups_of(worker.pid("child"))
    assert Path(f"/proc/{leader.pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()
