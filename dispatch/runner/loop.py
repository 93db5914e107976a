"""Watch one running child in the main thread of a pool child: one ``poll``, one decision, one end.

Everything that can end an attempt arrives at the same place: the leader's
pidfd, the two output pipes, the worker's stop pipe, the self-pipe (signals and
the lease keeper), the warden's socket, and the clock. The end is decided once,
by whatever came first; what follows only carries it out.
"""

from __future__ import annotations

import math
import os
import select
from typing import TYPE_CHECKING, Final

from dispatch.core.retry import EndReason
from dispatch.runner import attempt, tree
from dispatch.runner.output import HeadTail
from dispatch.runner.process import Child, widen

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.runner.wiring import Limits, Wiring

READ_BYTES: Final = 65_536
DRAIN_PIPES_S: Final = 2.0
"""How long output is still read after the leader exited while somebody else holds the pipes."""
CANCEL_GRACE_S: Final = 0.5
"""From TERM to KILL for a cancelled tree, which must be gone within a second."""
LATE_STOP_S: Final = 0.3
"""How long a leader that died of a stop signal waits for word that the worker is being stopped too."""
KEEPER_AFTER_S: Final = 0.1
"""Attempts shorter than this never pay for a lease keeper."""
HOUSEKEEPING_S: Final = 10.0
_STOP_POLL_S: Final = 0.02
_ASKED_AGAIN_S: Final = 1.0
_IN: Final = select.POLLIN | select.POLLHUP | select.POLLERR


class AttemptLoop:
    """Runs one child to its end. Use once: ``run`` returns when no process of the attempt is left."""

    def __init__(
        self, child: Child, limits: Limits, wiring: Wiring, *, clock: Callable[[], float] = tree.boottime
    ) -> None:
        self._child = child
        self._limits = limits
        self._wiring = wiring
        self._clock = clock
        self._started_at = clock()
        self._stdout = HeadTail(limits.output_bytes_max)
        self._stderr = HeadTail(attempt.STDERR_BYTES_MAX)
        self._returncode: int | None = None
        self._drain_until: float | None = None
        self._terms_seen = 0
        self._stop_at_once = False
        self._keeper_at = self._started_at + KEEPER_AFTER_S
        self._housekeeping_at = self._started_at + HOUSEKEEPING_S
        self._look_at = self._started_at + wiring.bounds.every_s
        self._idle_at = wiring.idle.begin(self._started_at, tree.reaped_s())
        self._written_bytes = 0
        self._flags: set[str] = set()
        self._poll = select.poll()
        self._on: dict[int, Callable[[int], None]] = {}

    def run(self) -> attempt.AttemptEnd:
        """Watch, decide, stop what must be stopped, and return the end. The child is closed afterwards."""
        self._register()
        try:
            reason = self._watch()
            if reason is None:
                reason = self._after_exit()
            else:
                self._stop_tree(reason)
                reason = self._wiring.bounds.judge(reason)
            self._kill_leftovers()
        except BaseException:
            self._kill()
            raise
        finally:
            self._child.close()
        streams = self._wiring.streams
        stdout, stderr = streams.end("stdout", self._stdout), streams.end("stderr", self._stderr)
        # Some programs say on stdout what went wrong, agents among them.
        said = stderr.text if stderr.text.strip() else stdout.text
        code, limit = self._returncode, "; ".join(filter(None, (self._wiring.idle.said, self._wiring.bounds.said)))
        return attempt.AttemptEnd(
            reason=reason,
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            stdout=stdout,
            stderr=stderr,
            flags=frozenset(self._flags),
            duration_s=self._clock() - self._started_at,
            detail=attempt.describe(reason, code, said, timeout_s=self._limits.timeout_s, limit=limit),
            limit=limit,
        )

    # What is listened to

    def _register(self) -> None:
        child, wiring = self._child, self._wiring
        self._listen(child.pidfd, self._on_leader)
        self._listen(child.stdout, lambda _: self._read("stdout", self._stdout))
        self._listen(child.stderr, lambda _: self._read("stderr", self._stderr))
        if child.stdin is not None:
            self._on[child.stdin] = self._on_stdin
            self._poll.register(child.stdin, select.POLLOUT | select.POLLERR)
        self._listen(wiring.inbox.read_fd, self._on_inbox)
        if wiring.stop_fd is not None:
            self._listen(wiring.stop_fd, self._on_stop_pipe)
        self._listen_to_warden()

    def _listen(self, fd: int, handler: Callable[[int], None]) -> None:
        self._on[fd] = handler
        self._poll.register(fd, _IN)

    def _ignore(self, fd: int) -> None:
        if self._on.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _listen_to_warden(self) -> None:
        warden = self._wiring.warden
        if warden is not None and warden.fileno() >= 0:
            self._listen(warden.fileno(), self._on_warden)

    def _wait(self, timeout_s: float) -> None:
        for fd, events in self._poll.poll(max(0, math.ceil(timeout_s * 1000))):
            handler = self._on.get(fd)
            if handler is not None:
                handler(events)

    # What happens

    def _on_leader(self, _events: int) -> None:
        self._returncode = self._child.popen.poll()
        if self._returncode is not None:
            self._ignore(self._child.pidfd)

    def _read(self, name: str, sink: HeadTail) -> None:
        fd = getattr(self._child, name)
        try:
            chunk = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        if chunk:
            self._written_bytes += len(chunk)
            if sink.total_bytes == 0 and len(chunk) == READ_BYTES:
                widen(fd)
            sink.feed(self._wiring.streams.take(name, chunk))
            return
        self._ignore(fd)
        os.close(fd)
        setattr(self._child, name, -1)

    def _on_stdin(self, events: int) -> None:
        child = self._child
        fd = child.stdin
        if fd is None:
            return
        try:
            if events & select.POLLOUT:
                child.unsent = child.unsent[os.write(fd, child.unsent[:READ_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:
            # The child closed its stdin or is gone: it did not want the rest.
            child.unsent = child.unsent[:0]
        if not child.unsent or not events & select.POLLOUT:
            self._ignore(fd)
            os.close(fd)
            child.stdin = None

    def _on_inbox(self, _events: int) -> None:
        self._wiring.inbox.drain()

    def _on_stop_pipe(self, events: int) -> None:
        # The pipe is shared by all pool children, so it is never read: a byte in it shows as POLLIN to all of them.
        if events & select.POLLIN:
            self._stop_at_once = True
        self._begin_drain()
        if self._wiring.stop_fd is not None:
            self._ignore(self._wiring.stop_fd)

    def _on_warden(self, _events: int) -> None:
        warden = self._wiring.warden
        if warden is None:
            return
        fd = warden.fileno()
        for message in warden.read():
            if message.get("killed"):
                self._wiring.lease.lose("the warden found the lease at its end")
        if warden.fileno() != fd:
            self._ignore(fd)
            self._listen_to_warden()

    def _begin_drain(self) -> None:
        if self._drain_until is None:
            self._drain_until = self._clock() + self._limits.drain_s

    # The decision

    def _watch(self) -> EndReason | None:
        """Wait for the first thing that ends the attempt; None means the leader exited."""
        while True:
            now = self._clock()
            self._note_terms()
            if self._wiring.lease.over(now):
                return EndReason.LEASE_LOST
            if self._returncode is not None:
                return None
            reason = self._verdict(now)
            if reason is not None:
                return reason
            if now >= self._keeper_at:
                self._keeper_at = math.inf
                self._wiring.start_keeper()
            if now >= self._housekeeping_at:
                self._housekeeping_at = now + HOUSEKEEPING_S
                self._reap()
            self._wait(self._next_timer() - now)

    def _verdict(self, now: float) -> EndReason | None:
        if self._wiring.lease.cancelled:
            return EndReason.CANCELLED
        if self._wiring.inbox.soft_limit or now >= self._started_at + self._limits.timeout_s:
            return EndReason.TIMEOUT
        if self._stop_at_once or (self._drain_until is not None and now >= self._drain_until):
            return EndReason.SHUTDOWN
        if now >= self._idle_at and self._hangs(now):
            return EndReason.IDLE
        return self._look() if now >= self._look_at else None

    def _look(self) -> EndReason | None:
        """Say whether the attempt uses more than it may."""
        self._look_at = self._clock() + self._wiring.bounds.every_s
        return self._wiring.bounds.look(self._descendants)

    def _hangs(self, now: float) -> bool:
        """Say whether the attempt does nothing any more."""
        idle = self._wiring.idle
        self._idle_at = now + idle.every_s
        self._reap()
        # One that is found to have ended here does not hang.
        return self._returncode is None and idle.hangs(now, self._written_bytes, self._descendants, tree.reaped_s())

    def _note_terms(self) -> None:
        terms = self._wiring.inbox.terms
        if terms == self._terms_seen:
            return
        # Whoever asks again, well after the drain began, does not want to wait for its end. A signal to the
        # whole group, which arrives together with the end of the stop pipe, asks only once.
        began = math.inf if self._drain_until is None else self._drain_until - self._limits.drain_s
        if terms >= 2 or self._clock() - began > _ASKED_AGAIN_S:
            self._stop_at_once = True
        self._terms_seen = terms
        self._begin_drain()

    def _next_timer(self) -> float:
        return min(
            self._started_at + self._limits.timeout_s,
            self._wiring.lease.trusted_until,
            self._keeper_at,
            self._housekeeping_at,
            self._look_at,
            self._idle_at,
            math.inf if self._drain_until is None else self._drain_until,
        )

    # After the leader exited

    def _after_exit(self) -> EndReason:
        returncode = self._returncode or 0
        reason = self._wiring.bounds.judge(attempt.reason_of_exit(returncode))
        may_be = reason not in (EndReason.SUCCESS, EndReason.OOM) and attempt.may_be_shutdown(returncode)
        if may_be and self._stop_is_near():
            reason = EndReason.SHUTDOWN
        until = self._clock() + DRAIN_PIPES_S
        while self._pipes_open():
            left = until - self._clock()
            if left <= 0:
                self._flags.add(attempt.PIPES_HELD)
                break
            self._wait_for_output(min(left, self._wiring.bounds.every_s))
            if self._clock() >= self._look_at and self._look() is not None:
                break
        return reason

    def _stop_is_near(self) -> bool:
        """Say whether the worker is being stopped as well, waiting a moment for the word.

        Whoever signals a whole process group or control group reaches the child
        before we hear of it.
        """
        until = self._clock() + LATE_STOP_S
        while True:
            self._note_terms()
            if self._drain_until is not None:
                return True
            left = until - self._clock()
            if left <= 0:
                return False
            self._wait(left)

    def _pipes_open(self) -> bool:
        return self._child.stdout >= 0 or self._child.stderr >= 0

    def _wait_for_output(self, timeout_s: float) -> None:
        poll = select.poll()
        for fd in (self._child.stdout, self._child.stderr):
            if fd >= 0:
                poll.register(fd, _IN)
        for fd, events in poll.poll(max(0, math.ceil(timeout_s * 1000))):
            self._on[fd](events)

    # Stopping

    def _descendants(self) -> list[tree.Stat]:
        return tree.descendants(os.getpid(), without=self._wiring.baseline)

    def _living(self) -> set[tree.Process]:
        return {found.process for found in self._descendants()} | self._wiring.bounds.members()

    def _reap(self) -> None:
        """Collect the leader and descendants that were given to us; nobody else's children."""
        if self._returncode is None:
            self._on_leader(0)
        tree.reap(set(tree.children(os.getpid())) - self._wiring.baseline - {self._child.pid})

    def _stop_tree(self, reason: EndReason) -> None:
        grace_s = {
            EndReason.LEASE_LOST: 0.0,
            EndReason.OOM: 0.0,
            EndReason.PROCESS_LIMIT: 0.0,
            EndReason.CANCELLED: min(self._limits.grace_s, CANCEL_GRACE_S),
        }.get(reason, self._limits.grace_s)
        until = self._clock() + grace_s
        if grace_s > 0:
            tree.terminate(self._living())
        while self._clock() < until and not self._wiring.lease.over(self._clock()):
            self._wait(min(_STOP_POLL_S, until - self._clock()))
            self._reap()
            if not self._living():
                break
        else:
            self._flags.add(attempt.KILLED)
        self._kill()

    def _kill(self) -> int:
        self._wiring.bounds.kill()
        killed, left = tree.kill_all(self._living, reap=self._reap)
        if left:
            self._flags.add(attempt.UNKILLABLE)
        return len(killed)

    def _kill_leftovers(self) -> None:
        """Make sure that nothing outlives the attempt, then take what is left in the pipes."""
        if (_has_children() or self._wiring.bounds.members()) and self._kill():
            self._flags.add(attempt.LEFTOVERS_KILLED)
        while self._pipes_open():
            before = self._stdout.total_bytes + self._stderr.total_bytes
            was_open = (self._child.stdout, self._child.stderr)
            self._wait_for_output(0)
            same = was_open == (self._child.stdout, self._child.stderr)
            if same and before == self._stdout.total_bytes + self._stderr.total_bytes:
                return


def _has_children() -> bool:
    """Say cheaply whether this process has any child at all, dead or alive."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
