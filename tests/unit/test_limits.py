"""Limits of attempts: the choice of a mechanism, what a look at a host finds, the words, and the files of a group.

The files are written into plain directories here. What a kernel makes of them is seen in
tests/integration/test_runner_limits.py, for version 1.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from dispatch.core import limits
from dispatch.core.limits import Allowance, Grounds, Limit
from dispatch.core.retry import EndReason
from dispatch.errors import ConfigurationError
from dispatch.runner import attempt, cgroups, delegation, executors, owner, telling
from dispatch.runner.attempt import AttemptEnd
from dispatch.runner.cgroups import Place
from dispatch.runner.limits import set_up
from dispatch.settings import load

NONE: frozenset[str] = frozenset()
MEMORY = frozenset({"memory"})
BOTH = frozenset({"memory", "pids"})
MOUNTS2 = "30 24 0:26 {root} {mount} rw,nosuid - cgroup2 cgroup rw\n"
MOUNTS1 = """\
31 24 0:27 {root} {mount}/memory rw - cgroup cgroup rw,memory
32 24 0:28 {root} {mount}/pids rw - cgroup cgroup rw,pids
"""


@pytest.mark.parametrize(
    ("needed", "demanded", "version2", "version1", "expected"),
    [
        (BOTH, "auto", BOTH, BOTH, "cgroup2"),
        (BOTH, "auto", MEMORY, BOTH, "cgroup1"),
        (MEMORY, "auto", MEMORY, NONE, "cgroup2"),
        (BOTH, "auto", MEMORY, frozenset({"pids"}), "watched"),
        (BOTH, "auto", NONE, NONE, "watched"),
        (BOTH, "kernel", NONE, BOTH, "cgroup1"),
        (BOTH, "kernel", MEMORY, NONE, None),
        (BOTH, "watched", BOTH, BOTH, "watched"),
    ],
)
def test_the_strongest_mechanism_that_has_all_it_needs(
    needed: frozenset[str], demanded: str, version2: frozenset[str], version1: frozenset[str], expected: str | None
) -> None:
    """Version 2 before 1 before watching, each only with every controller; what is demanded and not there is None."""
    assert limits.choose(needed, demanded, Grounds(version2, version1)) == expected


@pytest.mark.parametrize(
    ("needed", "demanded", "there", "is_well", "words"),
    [
        (
            NONE,
            "auto",
            BOTH,
            True,
            "Nothing limits what an attempt may use; the kernel can hold limits here (cgroup2).",
        ),
        (BOTH, "auto", BOTH, True, "Attempts have limits; the kernel can hold limits here (cgroup2)."),
        (BOTH, "auto", NONE, False, "Limits of attempts would only be watched: from here the kernel cannot"),
        (BOTH, "kernel", NONE, False, "A worker started from here would not start: from here the kernel cannot"),
        (BOTH, "watched", BOTH, True, "Attempts have limits; watched by the worker, as the settings want it."),
    ],
)
def test_what_the_doctor_says(
    needed: frozenset[str], demanded: str, there: frozenset[str], is_well: bool, words: str
) -> None:
    """Watching is a warning unless it is wished for, and says what is in the way and what to do."""
    found = limits.finding(needed, demanded, Grounds(there, NONE, "other processes are in /g (pid 1)"))
    assert found[0] is is_well
    assert found[1].startswith(words)
    assert bool(found[2]) is not is_well
    if not is_well:
        assert "other processes are in /g (pid 1)" in found[1]


def group2(path: Path, pids: str, controllers: str = "cpu memory pids") -> Path:
    """A directory that looks like a group of version 2."""
    path.mkdir(parents=True)
    for name, text in (
        ("cgroup.procs", pids),
        ("cgroup.controllers", controllers),
        ("cgroup.subtree_control", ""),
        ("cgroup.type", "domain"),
    ):
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize(
    ("root", "group", "where"),
    [("/", "/a/b", "a/b"), ("/docker/1", "/docker/1", ""), ("/docker/1", "/docker/1/x", "x"), ("/", "/", "")],
)
def test_the_own_group_is_found_below_its_mount(tmp_path: Path, root: str, group: str, where: str) -> None:
    """Of a whole hierarchy or of a part of it, as containers have it; a group outside the mount is not found."""
    mounts = MOUNTS2.format(root=root, mount=tmp_path) + "33 24 0:29 / /proc rw - proc proc rw\n"
    assert delegation._own(mounts, f"0::{group}\n") == {"": str(tmp_path / where).rstrip("/")}
    assert delegation._own(MOUNTS2.format(root="/other", mount=tmp_path), f"0::{group}\n") == {}


@pytest.mark.parametrize(
    ("pids", "controllers", "offered", "hindrance"),
    [
        (f"{os.getpid()}\n", "cpu memory pids", BOTH, ""),
        (f"{os.getpid()}\n", "memory", MEMORY, ""),
        (f"{os.getpid()}\n", "cpu io", NONE, "has neither of the controllers"),
        (f"1\n{os.getpid()}\n7\n", "memory pids", NONE, "other processes are in {} (pid 1, 7)"),
    ],
    ids=["all", "one", "none", "others are there"],
)
def test_version_2_is_offered_to_whoever_is_alone(
    tmp_path: Path, pids: str, controllers: str, offered: frozenset[str], hindrance: str
) -> None:
    """A group with other processes or without controllers is of no use, and the reason names it."""
    group = group2(tmp_path / "unit", pids, controllers)
    found = delegation.look(MOUNTS2.format(root="/", mount=tmp_path), "0::/unit\n").grounds
    assert found.version2 == offered
    assert (hindrance.format(group) in found.hindrance) if hindrance else found.hindrance == ""


def test_in_the_leaf_the_group_above_counts(tmp_path: Path) -> None:
    """A worker that systemd put into dispatch-worker (DelegateSubgroup=) makes its groups beside it."""
    unit = group2(tmp_path / "unit", "")
    group2(unit / "dispatch-worker", f"{os.getpid()}\n")
    host = delegation.look(MOUNTS2.format(root="/", mount=tmp_path), "0::/unit/dispatch-worker\n")
    assert host.grounds.version2 == BOTH
    unit.joinpath("cgroup.procs").write_text("1\n")
    assert not delegation.look(MOUNTS2.format(root="/", mount=tmp_path), "0::/unit/dispatch-worker\n").grounds.version2


def test_version_1_is_offered_by_controller(tmp_path: Path) -> None:
    """Each hierarchy has a place of its own; one that is missing is not offered."""
    (tmp_path / "memory/x").mkdir(parents=True)
    groups = "4:pids:/x\n3:memory:/x\n2:cpu,cpuacct:/\n"
    host = delegation.look(MOUNTS1.format(root="/", mount=tmp_path), groups)
    assert (host.grounds.version1, host.bases1) == (MEMORY, {"memory": str(tmp_path / "memory/x")})
    assert host.grounds.hindrance == "control groups of version 2 are not mounted"


def test_a_group_of_version_2_is_written_and_read_as_the_kernel_documents_it(tmp_path: Path) -> None:
    """Its limits without swap, killed as a whole; an OOM of its own and one of the host are told apart."""
    group = cgroups.Group(Place(2, {"": str(tmp_path)}), "g", BOTH)
    path = tmp_path / "g"
    with pytest.raises(FileNotFoundError):
        group.make(1 << 29, 64)
    for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cgroup.kill"):
        (path / name).touch()
    path.rename(tmp_path / "files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "mkdir", lambda made, mode: Path(tmp_path / "files").rename(made))
        group.make(1 << 29, 64)
    group.kill()
    written = {file.name: file.read_text() for file in path.iterdir()}
    assert written == {
        "memory.max": "536870912",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "64",
        "cgroup.kill": "1",
    }
    assert group.doors == (f"{path}/cgroup.procs",)
    assert group.events() == cgroups.Events()
    (path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 0\noom_kill 2\noom_group_kill 0\n")
    (path / "pids.events").write_text("max 3\n")
    assert group.events() == cgroups.Events(2, is_own_limit=False, refused_forks=3)
    (path / "memory.events").write_text("max 7\noom 1\noom_kill 2\n")
    assert group.events().is_own_limit


def test_a_host_without_groups_is_refused_watched_or_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Demanding the kernel means exit 78 and what to do; else limits are watched, and the log says it."""
    bare = delegation.Host(Grounds(hindrance="/g is not delegated to this user"), "", {})
    monkeypatch.setattr(delegation, "look", lambda: bare)
    said: list[str] = []
    log = SimpleNamespace(warning=lambda event, **_: said.append(event))
    with pytest.raises(ConfigurationError, match=r"/g is not delegated to this user.*Delegate=memory pids") as caught:
        set_up(BOTH, "kernel", log)
    assert caught.value.exit_code == 78
    assert set_up(BOTH, "watched", log).mechanism == set_up(NONE, "kernel", log).mechanism == "watched"
    assert said == []
    assert set_up(BOTH, "auto", log).mechanism == "watched"
    assert said == ["limits_only_watched"]


def test_groups_name_their_owner(tmp_path: Path) -> None:
    """Only groups of dead pool children of this boot are stale, and an owner's are told from those of another."""
    place = Place(2, {"": str(tmp_path)})
    me = owner.Owner.current()
    dead, alien = owner.Owner(me.host, me.pid, me.starttime + 1), owner.Owner("boot-1", me.pid, me.starttime + 1)
    names = {who: cgroups.name_of(who, number) for number, who in enumerate((me, dead, alien))}
    for name in (*names.values(), "dispatch-worker", "dispatch-trial-7", "user.slice"):
        (tmp_path / name).mkdir()
    assert cgroups.stale(place) == [str(tmp_path / names[dead])]
    assert cgroups.owned_by(place, me) == [str(tmp_path / names[me])]
    assert cgroups.clear(cgroups.stale(place)) == 0
    assert cgroups.stale(place) == [] == cgroups.stale(None)
    assert Place.of_json(list(place)) == place
    assert Place.of_json(None) is Place.of_json("x") is None


def test_reasons_name_the_limit_and_its_setting() -> None:
    """What stands in a reason: the limit exactly, whose it is, who acted; stderr comes after it."""
    memory, processes = Limit(512 << 20, "attempt_memory_bytes_max"), Limit(64, "attempt_processes_max")
    said = limits.over_memory(memory, by_kernel=True)
    assert said == "it needed more than its 512 MiB of memory (attempt_memory_bytes_max); killed by the kernel"
    assert attempt.describe(EndReason.OOM, -9, " Killed\n", timeout_s=1, limit=said) == f"{said}: Killed"
    refused = limits.refused_processes(processes)
    assert attempt.describe(EndReason.EXIT, 1, "fork: again", timeout_s=1, limit=refused) == (
        "exit code 1; it was refused more than its 64 processes and threads (attempt_processes_max): fork: again"
    )
    assert attempt.describe(EndReason.SUCCESS, 0, "", timeout_s=1, limit=refused) == ""
    assert limits.host_out_of_memory(memory).endswith("it was within its own 512 MiB (attempt_memory_bytes_max)")
    assert limits.host_out_of_memory(Limit()).endswith("the group of its worker, was out of memory")
    assert limits.refused_processes(Limit()).startswith("it was refused a process: its host")
    assert [limits.shown_bytes(size) for size in (1 << 30, 3 << 29, 1 << 10, 1000, 1025)] == [
        "1 GiB",
        "1536 MiB",
        "1 KiB",
        "1000 bytes",
        "1025 bytes",
    ]


def test_the_reason_of_a_sealed_task_has_the_limit_and_no_content() -> None:
    """What a limit did is said of a task that nobody may read; what its command said is not."""
    said = limits.over_memory(Limit(1 << 30, "attempt_memory_bytes_max"), by_kernel=True)
    end = AttemptEnd(EndReason.OOM, signal=9, detail=f"{said}: canary", limit=said)
    assert telling.without_content(end, 1.0).reason == said
    refused = limits.refused_processes(Limit(64, "attempt_processes_max"))
    end = AttemptEnd(EndReason.EXIT, exit_code=1, detail=f"exit code 1; {refused}: canary", limit=refused)
    assert telling.without_content(end, 1.0).reason == f"exit code 1; {refused}"


def test_an_executor_says_what_it_needs(tmp_path: Path) -> None:
    """Its own limit wins, 0 too; controllers are those that any executor needs; nonsense is refused with its bounds."""
    config = tmp_path / "dispatch.toml"
    config.write_text("[execution]\nattempt_processes_max = 9\n[executors.x]\ncommand = 'x'\nprocesses_max = 0\n")
    settings = load({"DISPATCH_CONFIG": str(config)})
    by_name = settings.routing.executors
    assert executors.allowance_of(by_name["x"], settings.execution) == Allowance(
        Limit(0, "attempt_memory_bytes_max"), Limit(0, "processes_max in [executors.x]")
    )
    assert executors.allowance_of(by_name["default"], settings.execution).processes.value == 9
    assert executors.controllers_of(settings.routing, settings.execution) == {"pids"}
    assert executors.controllers_of(load({}).routing, load({}).execution) == NONE
    config.write_text("[executors.x]\ncommand = 'x'\nmemory_bytes_max = 1000\n")
    with pytest.raises(
        ConfigurationError, match=r"\[executors.x\]: memory_bytes_max must be 0 for no limit, or a whole"
    ):
        load({"DISPATCH_CONFIG": str(config)})
    with pytest.raises(ConfigurationError, match="must be 0 or at least 16777216"):
        load({"DISPATCH_ATTEMPT_MEMORY_BYTES_MAX": "1000"})
