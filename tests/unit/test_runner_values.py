"""Output, reasons, environment, marks and lease values: what needs no child process."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.ats.gateway import AttemptRef
from dispatch.ats.model import Grant, Task
from dispatch.core.retry import EndReason
from dispatch.errors import GatewayUnavailableError, LeaseLostError
from dispatch.runner import attempt, owner, process, spool, tree
from dispatch.runner.lease_keeper import Lease, LeaseKeeper, _Watch
from dispatch.runner.output import HeadTail
from tests.support.processes import eventually
from workers.late_reports import deliver_late

if TYPE_CHECKING:
    from collections.abc import Callable

REF = AttemptRef("7", 2, 5, "actor")


class Recorder:
    """A logger that keeps the names of events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattr__(self, _level: str) -> Callable[..., None]:
        return lambda event, **_: self.events.append(event)


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(4, 200))
def test_output_is_the_same_however_it_is_chunked(data: bytes, sizes: list[int], cap: int) -> None:
    """What is kept depends on the bytes alone: both ends of what was written, never more than the cap."""
    whole, pieces = HeadTail(cap), HeadTail(cap)
    whole.feed(data)
    at = 0
    for size in sizes * (len(data) // sum(sizes) + 1):
        pieces.feed(data[at : at + size])
        at += size
    result = whole.result()
    assert pieces.result() == result
    assert (result.total_bytes, result.truncated) == (len(data), len(data) > cap)
    if not result.truncated:
        assert result.text == data.decode("utf-8", "replace").replace("\0", "")
    result.text.encode()


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=30, max_size=200))
def test_a_cut_never_falls_into_a_character(text: str) -> None:
    """Where the middle is left out, both edges are whole characters: a cut makes no output binary."""
    kept = HeadTail(16)
    kept.feed(text.encode())
    result = kept.result()
    assert result.binary is False
    head, _, rest = result.text.partition("\n[...")
    assert text.startswith(head)
    if result.truncated:
        assert text.endswith(rest.partition("...]\n")[2])


def test_memory_of_tiny_chunks_is_bounded() -> None:
    """Single bytes, many of them, are kept in place, not as objects."""
    kept = HeadTail(1000)
    for _ in range(10_000):
        kept.feed(b"x")
    assert len(kept._head) == 250
    assert len(kept._tail) <= 1501


def test_detail_is_capped_and_keeps_the_last_lines() -> None:
    """A failure sentence has at most 4,000 characters, the end of stderr among them."""
    detail = attempt.describe(EndReason.EXIT, 3, "x" * 9_000 + "the reason", timeout_s=1)
    assert len(detail) == attempt.DETAIL_CHARS_MAX
    assert detail.startswith("exit code 3: ...")
    assert detail.endswith("the reason")
    assert attempt.describe(EndReason.SIGNAL, -64, "", timeout_s=1) == "ended by signal 64 (SIGRTMAX)"
    assert attempt.describe(EndReason.SIGNAL, -50, "", timeout_s=1) == "ended by signal 50 (50)"
    assert attempt.describe(EndReason.TIMEOUT, None, " said \n", timeout_s=2.5) == "timed out after 2.5 s: said"
    assert len(attempt.cut("y" * 5_000)) == attempt.DETAIL_CHARS_MAX


def test_environment_is_an_allow_list() -> None:
    """Only listed and configured names pass, and no setting of dispatch does, even when configured."""
    env = process.child_environment(
        {"PATH": "p", "LC_ALL": "C", "SECRET": "s", "DISPATCH_ATS_TOKEN": "t", "MINE": "m"},
        ("MINE", "DISPATCH_ATS_TOKEN"),
        {"ATS_TASK_ID": "7"},
    )
    assert env == {"PATH": "p", "LC_ALL": "C", "MINE": "m", "ATS_TASK_ID": "7"}


@pytest.mark.parametrize("what", ["ATS_TASK_ID", "prompt"])
def test_text_that_no_process_can_carry_is_a_spawn_error(tmp_path: Path, what: str) -> None:
    """A NUL in an environment variable is refused with a sentence, not an exception of the library; fds are closed."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    env = {"PATH": "/bin:/usr/bin", "ATS_TASK_ID": "a\0b" if what == "ATS_TASK_ID" else "\udcff"}
    if what == "prompt":
        child = process.spawn(["true"], prompt=b"a\0b", cwd=str(tmp_path), env=env)
        child.popen.wait()
        child.close()
    else:
        with pytest.raises(process.SpawnError, match="a NUL"):
            process.spawn(["true"], prompt=b"", cwd=str(tmp_path), env=env)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_missing_work_directory_is_named(tmp_path: Path) -> None:
    """S7: a work directory that is gone is told apart from a command that is gone."""
    with pytest.raises(process.SpawnError, match="work directory is missing"):
        process.spawn(["true"], prompt=b"", cwd=str(tmp_path / "gone"), env={"PATH": "/bin:/usr/bin"})


@pytest.mark.parametrize(
    ("argv", "door", "words"),
    [
        (["no-such-program"], "door", "The command no-such-program was not found."),
        (["true"], "missing/door", "The command true could not be started: it could not be put into its control group"),
    ],
)
def test_a_door_that_is_shut_is_told_apart_from_a_command_that_is_gone(
    tmp_path: Path, argv: list[str], door: str, words: str
) -> None:
    """The step into the control groups fails with its own sentence, the command with its usual one; no fd stays."""
    (tmp_path / "door").touch()
    before = len(list(Path("/proc/self/fd").iterdir()))
    env = {"PATH": "/bin:/usr/bin"}
    with pytest.raises(process.SpawnError) as caught:
        process.spawn(argv, prompt=b"", cwd=str(tmp_path), env=env, doors=[str(tmp_path / door)])
    assert str(caught.value).startswith(words)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@given(st.integers(1, 4_194_304), st.integers(0, 1 << 40))
def test_marks_name_their_owner(pid: int, starttime: int) -> None:
    """A mark is a limit that the kernel takes, far too large to bound anything, and differs between owners."""
    one = owner.Owner("boot-1", pid, starttime)
    assert 1 << 62 <= one.mark < resource.RLIM_INFINITY % (1 << 64)
    assert one.mark != owner.Owner("boot-1", pid ^ 1, starttime).mark
    assert one.mark != owner.Owner("boot-1", pid, starttime ^ 1).mark
    assert (one.mark >> 22) & 0x3FFFFF == pid & 0x3FFFFF


def test_processes_without_marks_have_no_owner() -> None:
    """This test process and init belong to nobody, so no janitor touches them."""
    host = owner.host_id()
    assert owner.mark_of(os.getpid()) is None
    assert not owner.owner_dead(os.getpid(), host)
    assert not owner.owner_dead(1, host)


def test_a_pid_that_was_given_away_is_not_signalled() -> None:
    """A process is its pid and its start time; a wrong start time is another process."""
    started = tree.starttime(os.getpid())
    assert started is not None
    assert tree.alive(tree.Process(os.getpid(), started))
    assert not tree.alive(tree.Process(os.getpid(), started - 1))
    assert tree.send(tree.Process(os.getpid(), started - 1), 9) is False


def test_trust_that_ended_stays_ended() -> None:
    """A renewal whose answer comes after the end of trust does not bring the lease back."""
    now = 100.0
    lease = Lease(100.0, 10.0, clock=lambda: now)
    assert lease.trusted_until == 107.5
    assert 107.5 < lease.warden_deadline < 110.0
    now = 106.0
    assert lease.renewed(105.0, 10.0)
    assert lease.trusted_until == 112.5
    now = 113.0
    assert not lease.renewed(112.0, 10.0)
    assert lease.over(112.0)


class Service:
    """A gateway whose renewals do what a list says, and which remembers the messages."""

    def __init__(self, *outcomes: Exception | float) -> None:
        self.outcomes = list(outcomes)
        self.messages: list[str | None] = []
        self.changed = threading.Event()

    def renew(self, _ref: AttemptRef, *, message: str | None = None) -> Grant:
        """Answer with the next outcome, then with full leases."""
        self.messages.append(message)
        self.changed.set()
        outcome = self.outcomes.pop(0) if self.outcomes else 0.4
        if isinstance(outcome, Exception):
            raise outcome
        return Grant(Task(id="7"), 5, outcome)


def keep(service: Any, lease: Lease) -> Any:
    """Start a keeper on a lease; return it with the events that it raised."""
    told = threading.Event()
    renewed: list[float] = []
    keeper = LeaseKeeper(service, wake=None, rand=lambda: 0.5, log=Recorder())
    keeper.watch(REF, lease, started_at=lease.sent_at, notify=told.set, on_renewed=renewed.append)
    return keeper, told, renewed


def test_heartbeat_goes_with_a_renewal_once_a_minute() -> None:
    """A renewal carries "Still processing" when a minute has passed since the last message, else nothing."""
    now = 0.0
    service = Service(*[80.0] * 12)
    lease = Lease(0.0, 80.0, clock=lambda: now)
    keeper = LeaseKeeper(service, wake=None, rand=lambda: 0.5, log=Recorder(), clock=lambda: now)  # type: ignore[arg-type]
    watch = _Watch(REF, lease, 0.0, 20.0, notify=lambda: None, on_renewed=lambda _: None, said_at=0.0)
    keeper._watch = watch
    for now in (20.0, 40.0, 60.0, 80.0, 100.0, 125.0):  # noqa: B007 - read by the clock
        keeper._renew(watch)
    keeper.close()
    first, second = "Still processing (attempt 2, 60s)", "Still processing (attempt 2, 125s)"
    assert service.messages == [None, None, first, None, None, second]


def test_keeper_tells_the_warden_and_goes_on_after_failures() -> None:
    """Failures are retried within the trust, successes move the deadline of the warden."""
    service = Service(GatewayUnavailableError("away"), RuntimeError("a defect"), 0.4)
    began = tree.boottime()
    keeper, told, renewed = keep(service, Lease(began, 1.6))
    while len(renewed) < 2:
        assert not told.wait(0.01)
        assert tree.boottime() - began < 60
    keeper.close()
    assert renewed == sorted(renewed)
    assert renewed[0] > began + 0.4 + 0.35


@pytest.mark.parametrize(("status", "cancelled"), [("cancelled", True), ("in_progress", False)])
def test_refused_renewal_is_told_at_once(status: str, cancelled: bool) -> None:
    """A refusal ends the keeping; the status says whether somebody cancelled."""
    service = Service(LeaseLostError("gone", status=409, facts={"status": status}))
    lease = Lease(tree.boottime(), 0.4)
    keeper, told, _ = keep(service, lease)
    assert told.wait(60)
    keeper.close()
    assert (lease.cancelled, bool(lease.lost), lease.refused) == (cancelled, not cancelled, True)
    assert len(service.messages) == 1


def test_unreadable_spool_files_are_put_aside(tmp_path: Path) -> None:
    """A file that is no report blocks nothing and is not tried again."""
    box = spool.Spool(tmp_path)
    box.put(spool.Report(spool.Kind.FAIL, REF, reason="why"))
    (tmp_path / "spool" / "a.json").write_text("{")
    (tmp_path / "spool" / "b.json").write_text('{"kind": "nonsense"}')
    sent: list[str] = []

    class Gateway:
        def fail(self, ref: AttemptRef, reason: str) -> None:
            sent.append(reason)

    assert spool.replay(Gateway(), box, rand=lambda: 0.5, log=Recorder()) == 0  # type: ignore[arg-type]
    assert sent == ["why"]
    assert sorted(path.name for path in (tmp_path / "spool").iterdir()) == ["a.bad", "b.bad"]


class Failing:
    """A service that takes failures as its moods say."""

    def __init__(self, *moods: Exception | None) -> None:
        self.moods = list(moods)
        self.reasons: list[str] = []

    def fail(self, ref: AttemptRef, reason: str) -> None:
        """Take a failure, or refuse it."""
        if (mood := self.moods.pop(0) if self.moods else None) is not None:
            raise mood
        self.reasons.append(reason)


def reports_in(box: spool.Spool, *tokens: int) -> None:
    """Leave reports there whose reasons are their tokens."""
    for token in tokens:
        box.put(spool.Report(spool.Kind.FAIL, AttemptRef("7", 1, token, "actor"), reason=str(token)))


def test_a_report_that_somebody_delivers_is_nobody_elses(tmp_path: Path) -> None:
    """While one process holds it another leaves it alone; a descriptor that a fork took along keeps it from nobody."""
    box, service, log = spool.Spool(tmp_path), Failing(), Recorder()
    kept = box.keep(spool.Report(spool.Kind.FAIL, REF, reason="why"))
    inherited = os.dup(kept.fd)
    assert spool.replay(service, box, rand=lambda: 0.0, log=log) == 1  # type: ignore[arg-type]
    assert service.reasons == []
    kept.let_go()
    assert spool.replay(service, box, rand=lambda: 0.0, log=log) == 0  # type: ignore[arg-type]
    os.close(inherited)
    assert service.reasons == ["why"]
    assert log.events == ["spool_replayed"]
    assert box.take(kept.path) is None


def test_a_slot_that_gives_up_leaves_its_report_to_others(tmp_path: Path) -> None:
    """It is on disk and held while it is tried, and free afterwards."""
    box, held = spool.Spool(tmp_path), list[bool]()

    def wait(_seconds: float) -> bool:
        (path,) = (tmp_path / "spool").iterdir()
        held.append(box.take(path) is None)
        return len(held) < 2

    away = Failing(GatewayUnavailableError("away"), GatewayUnavailableError("away"))
    report = spool.Report(spool.Kind.FAIL, REF, reason="why")
    how = {"wait": wait, "rand": lambda: 0.5, "log": Recorder()}
    assert spool.deliver(report, away, box, **how) is spool.Outcome.LEFT  # type: ignore[arg-type]
    assert held == [True, True]
    assert [kept.report for kept in box.leftovers(0.0)] == [report]


def test_a_service_that_is_away_is_asked_once_a_round(tmp_path: Path) -> None:
    """The round ends there, and begins elsewhere the next time: one that is never taken does not hide the others."""
    box, log = spool.Spool(tmp_path), Recorder()
    reports_in(box, 1, 2, 3)
    service = Failing(None, GatewayUnavailableError("away"))
    assert spool.replay(service, box, rand=lambda: 0.4, log=log) == 2  # type: ignore[arg-type]
    assert service.reasons == ["2"]
    assert spool.replay(service, box, rand=lambda: 0.9, log=log) == 0  # type: ignore[arg-type]
    assert service.reasons == ["2", "3", "1"]
    assert log.events == ["spool_replayed", "report_delayed", "report_left_in_spool", *["spool_replayed"] * 2]


def test_a_report_that_comes_too_late_is_told_and_kept(tmp_path: Path) -> None:
    """It changes nothing at the service; people find what it said, and it is not tried again."""
    box, log = spool.Spool(tmp_path), Recorder()
    reports_in(box, 5)
    service = Failing(LeaseLostError("stale", status=409))
    assert spool.replay(service, box, rand=lambda: 0.0, log=log) == 0  # type: ignore[arg-type]
    assert log.events == ["report_refused", "report_too_late"]
    assert [path.name for path in (tmp_path / "spool" / "refused").iterdir()] == ["7-5-fail.json"]


def test_late_reports_are_tried_until_the_service_is_back(tmp_path: Path) -> None:
    """Again and again while it is away, also after a defect, and no more once the worker drains."""
    box, log, is_over = spool.Spool(tmp_path), Recorder(), threading.Event()
    reports_in(box, 1)
    service = Failing(GatewayUnavailableError("away"), RuntimeError("a defect"), GatewayUnavailableError("away"))
    how = {"lease_s": 0.04, "is_over": is_over.is_set, "log": log}
    thread = threading.Thread(target=deliver_late, args=(service, box), kwargs=how)
    thread.start()
    eventually(lambda: service.reasons == ["1"])
    eventually(lambda: box.waiting() == 0)
    is_over.set()
    thread.join(5)
    assert not thread.is_alive()
    assert log.events.count("late_reports_failed") == 1
    assert log.events[-1] == "spool_replayed"


def test_reports_that_were_never_written_whole_are_cleared(tmp_path: Path) -> None:
    """What a killed process left half written goes after an hour; what may be being written, and reports, stay."""
    box = spool.Spool(tmp_path)
    path = box.put(spool.Report(spool.Kind.FAIL, REF, reason="why"), refused="no")
    for directory in (path.parent, path.parents[1]):
        (directory / "new.1.part").touch()
        (directory / "old.1.part").touch()
        os.utime(directory / "old.1.part", (1, 1))
    os.utime(path, (1, 1))
    assert box.clear_partial() == 2
    assert sorted(one.name for one in (tmp_path / "spool").rglob("*.*")) == [path.name, "new.1.part", "new.1.part"]


def test_retry_after_of_the_service_is_kept(tmp_path: Path) -> None:
    """T4: a report that is answered 429 with Retry-After 7 is not repeated sooner."""
    pauses: list[float] = []

    class Gateway:
        def fail(self, ref: AttemptRef, reason: str) -> None:
            raise GatewayUnavailableError("busy", retry_after_s=7.0)

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) < 3

    report = spool.Report(spool.Kind.FAIL, REF, reason="why")
    outcome = spool.deliver(
        report,
        Gateway(),
        spool.Spool(tmp_path),
        wait=wait,
        rand=lambda: 0.5,
        log=Recorder(),  # type: ignore[arg-type]
    )
    assert (outcome, pauses) == (spool.Outcome.LEFT, [7.0, 7.0, 7.0])
