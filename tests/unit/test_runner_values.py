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
