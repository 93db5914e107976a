"""One attempt from message to report, in named steps.

``execute`` runs in the main thread of a pool child, one attempt at a time. It
raises nothing for anything that a task, a service or a network can do.
"""

from __future__ import annotations

import os
import secrets
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dispatch.ats.model import Actor
from dispatch.core import retry
from dispatch.core.retry import Action, EndReason
from dispatch.crypto import opening
from dispatch.errors import AuthenticationError, GatewayError, GatewayUnavailableError, LeaseLostError
from dispatch.runner import attempt, attempt_log, executors, pool_child, process, spool, telling, tree
from dispatch.runner.attempt import AttemptEnd
from dispatch.runner.attempt_trace import AttemptTrace
from dispatch.runner.idle import IdleWatch
from dispatch.runner.lease_keeper import Lease
from dispatch.runner.live import LiveBuffer
from dispatch.runner.loop import AttemptLoop
from dispatch.runner.preparing import Prepared, Preparing
from dispatch.runner.redaction import Redactor, secrets_in
from dispatch.runner.streams import Streams
from dispatch.runner.unsealing import NotAcceptedError, NotNowError, Unsealing
from dispatch.runner.wiring import Limits, Wiring

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.ats.gateway import AttemptRef
    from dispatch.ats.model import Grant
    from dispatch.core.routing import Choice
    from dispatch.crypto.opening import Opened
    from dispatch.runner.context import RunnerContext
    from dispatch.runner.limits import Unlimited
    from dispatch.runner.pool_child import PoolChild
    from dispatch.runner.telling import Told

T = TypeVar("T")

START_PATIENCE_S: Final = 10.0
"""How long ``start`` is tried while the service does not answer; afterwards the lease brings the task back."""
DRAIN_PATIENCE_S: Final = 10.0
"""How long a slot waits with a report that nobody takes while the worker drains, at most."""
_START_PAUSE_S: Final = 0.2
STARTED_MESSAGE: Final = "Agent processing started"


def execute(ref: AttemptRef, ctx: RunnerContext, queue: str = "") -> AttemptEnd | None:
    """Run one attempt, which came from ``queue``, and report it; None when nothing was started."""
    child = pool_child.current(ctx.data_dir)
    with child.inbox.listening():
        return _Execution(ref, ctx, child, AttemptTrace(ref, queue)).run()


class _Execution:
    """The steps of one attempt, and what they hand on to each other."""

    def __init__(self, ref: AttemptRef, ctx: RunnerContext, child: PoolChild, trace: AttemptTrace) -> None:
        self._ref = ref
        self._ctx = ctx
        self._child = child
        self._trace = trace
        self._spool = spool.Spool(ctx.data_dir)
        self._lease: Lease | None = None
        self._kept = False
        self._warded_until = 0.0
        self._opened: Opened | None = None
        self._routing = executors.routing_of(ctx.routing, ctx.execution)
        self._choice: Choice | None = None
        self._review = False
        self._buffer: LiveBuffer | None = None
        self._ids = {"task": ref.task_id, "attempt": ref.attempt, "token": ref.token}

    def run(self) -> AttemptEnd | None:
        """Make all steps; None when nothing was run."""
        most = executors.attempts_max(self._routing)
        if self._ref.attempt > most:
            self._poison(most)
            return None
        if self._child.stopping(self._ctx.stop_fd):
            self._ctx.log.info("attempt_returned", **self._ids)
            self._deliver(spool.Kind.RELEASE, reason="the worker is shutting down")
            return None
        self._begin_ward(Lease(tree.boottime(), self._ctx.execution.lease_s))
        grant = self._start()
        if grant is None:
            self._end_ward()
            return None
        try:
            end = self._run_guarded(grant)
            if end is not None:
                self._report(end)
        finally:
            self._child.stop_watching()
        self._end_ward()
        self._trace.over(end)
        return end

    def _poison(self, max_attempts: int) -> None:
        self._ctx.log.warning("attempt_poison", **self._ids)
        self._deliver(spool.Kind.FAIL, reason=retry.poison_reason(max_attempts))

    # Start

    def _start(self) -> Grant | None:
        ctx, ref = self._ctx, self._ref
        runner = f"{ctx.runner}/{os.getpid()}/{secrets.token_hex(4)}"
        asked_ns = time.time_ns()

        def start() -> tuple[float, Grant]:
            sent_at = tree.boottime()
            return sent_at, ctx.gateway.start(ref, runner=runner, message=STARTED_MESSAGE)

        try:
            sent_at, grant = self._insist(start)
        except (GatewayUnavailableError, AuthenticationError) as exc:
            ctx.log.warning("attempt_not_started", error=str(exc), **self._ids)
            return None
        except GatewayError as exc:
            ctx.log.info("attempt_dropped", error=str(exc), **self._ids)
            return None
        self._trace.started(grant.task, asked_ns)
        self._lease = Lease(sent_at, grant.ttl_s)
        if abs(self._lease.warden_deadline - self._warded_until) > 0.05 * grant.ttl_s:
            # Not extended: the warden has forgotten what it was told if that is over.
            self._begin_ward(self._lease)
        return grant

    def _insist(self, call: Callable[[], T]) -> T:
        """Make a call before the child runs, and repeat it for START_PATIENCE_S while no answer comes."""
        ctx = self._ctx
        give_up_at = tree.boottime() + START_PATIENCE_S
        pause_s = _START_PAUSE_S
        while True:
            try:
                return call()
            except (GatewayUnavailableError, AuthenticationError) as exc:
                asked_s = exc.retry_after_s if isinstance(exc, GatewayUnavailableError) else None
                wait_s = max(pause_s * (0.5 + 0.5 * ctx.rand()), asked_s or 0.0)
                if tree.boottime() + wait_s >= give_up_at or self._child.stopping(ctx.stop_fd):
                    raise
                ctx.log.warning("attempt_start_delayed", error=str(exc), **self._ids)
                self._start_keeper()
                self._child.wait(wait_s)
                pause_s *= 2

    # The warden

    def _begin_ward(self, lease: Lease) -> None:
        ctx, ref = self._ctx, self._ref
        self._warded_until = lease.warden_deadline
        if ctx.warden is None:
            return
        owner = self._child.owner
        warded = ctx.warden.begin(
            ref,
            tag=owner.tag(ref.task_id, ref.token),
            mark=owner.mark,
            deadline=lease.warden_deadline,
            actor=Actor("agent", ref.actor_id, ctx.actor_name),
        )
        if not warded:
            ctx.log.warning("warden_unreachable", **self._ids)

    def _end_ward(self) -> None:
        if self._ctx.warden is not None:
            self._ctx.warden.end()

    # Run

    def _run_guarded(self, grant: Grant) -> AttemptEnd | None:
        try:
            prepared = self._prepare(grant)
            if prepared is None:
                return None
            bounded = self._ctx.holder.hold(prepared.allowance, self._child.owner, self._ctx.log)
            with self._child.work_directory() as directory, bounded as bounds:
                return self._run(grant, prepared, directory, bounds)
        except process.SpawnError as exc:
            return AttemptEnd(EndReason.SPAWN_ERROR, detail=str(exc))
        except Exception as exc:
            # A defect of ours. It counts as a failed attempt, or it would be tried for ever.
            if opening.is_sealed(grant.task.payload):
                return self._crashed_sealed(exc)
            self._ctx.log.exception("attempt_crashed", **self._ids)
            return AttemptEnd(EndReason.WORKER_LOST, detail=f"the worker failed: {type(exc).__name__}: {exc}")

    def _crashed_sealed(self, exc: Exception) -> AttemptEnd:
        """Tell of a defect without what the exception says, which may be what the task says."""
        what = type(exc).__name__
        frames = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(exc.__traceback__)]
        self._ctx.log.error("attempt_crashed", exception=f"{what} at {' > '.join(frames)}", **self._ids)
        return AttemptEnd(EndReason.WORKER_LOST, detail=f"the worker failed: {what}")

    def _prepare(self, grant: Grant) -> Prepared | None:
        """Return what the attempt is told and what runs it; None when it must not run, which is reported then."""
        ctx = self._ctx
        preparing = Preparing(self._routing, ctx.execution, ctx.log)
        unsealing = Unsealing(
            ctx.gateway, ctx.keys, preparing.executor_of_sealed, ctx.log, self._insist, self._before_reading
        )
        try:
            work, self._choice = preparing.prepare(self._ref, grant, unsealing)
            if self._ref.attempt > self._choice.max_attempts:
                self._poison(self._choice.max_attempts)
                return None
            prepared = preparing.assign(self._ref, grant.task, work, self._choice)
        except NotAcceptedError as exc:
            self._deliver(spool.Kind.FAIL, reason=str(exc))
        except NotNowError as exc:
            delay_s = ctx.execution.cooldown_s * (0.5 + 0.5 * ctx.rand())
            ctx.log.info("attempt_postponed", reason=str(exc), delay_s=round(delay_s, 3), **self._ids)
            self._deliver(spool.Kind.RELEASE, reason=str(exc), delay_s=delay_s)
        except LeaseLostError as exc:
            ctx.log.info("attempt_dropped", error=str(exc), **self._ids)
        else:
            self._opened, self._review = work.opened, prepared.review
            return prepared
        return None

    def _before_reading(self) -> None:
        self._start_keeper()
        lease = self._lease
        if self._child.stopping(self._ctx.stop_fd) or lease is None or lease.over(tree.boottime()) or lease.cancelled:
            raise NotNowError("There was no time left to read its dependencies.")

    def _environment(self, grant: Grant, prepared: Prepared) -> dict[str, str]:
        ref, ctx = self._ref, self._ctx
        own = {"ATS_URL": ctx.ats_url, "DISPATCH_ATTEMPT": self._child.owner.tag(ref.task_id, ref.token)}
        told = prepared.variables(ref, grant.task) | own | self._trace.spawning()
        return process.child_environment(os.environ, prepared.start.env, told)

    def _run(self, grant: Grant, prepared: Prepared, directory: str, bounds: Unlimited) -> AttemptEnd:
        ctx, lease, start = self._ctx, self._lease, prepared.start
        if lease is None:
            raise RuntimeError("an attempt is run only after its start was granted")
        if lease.over(tree.boottime()):
            return AttemptEnd(EndReason.LEASE_LOST, detail="the lease was lost")
        env, own = self._environment(grant, prepared), ctx.execution
        running = process.spawn(start.argv, prompt=start.stdin, cwd=directory, env=env, doors=bounds.doors)
        ctx.log.info("attempt_started", pid=running.pid, executor=prepared.choice.executor, **self._ids)
        limits = Limits(prepared.choice.timeout_s, own.grace_s, own.drain_s, own.output_bytes_max)
        streams = self._streams(prepared)
        wiring = Wiring(
            inbox=self._child.inbox,
            lease=lease,
            stop_fd=ctx.stop_fd,
            warden=ctx.warden,
            start_keeper=self._on_long,
            baseline=self._child.baseline,
            streams=streams,
            bounds=bounds,
            idle=IdleWatch(prepared.choice.idle),
        )
        try:
            end = AttemptLoop(running, limits, wiring).run()
        finally:
            streams.close()
        self._trace.ran(end, prepared.choice.executor)
        return end

    def _streams(self, prepared: Prepared) -> Streams:
        """Return where output goes. Of a sealed task nothing is shown and nothing is kept."""
        ctx, start = self._ctx, prepared.start
        redactor = Redactor([*ctx.secrets, *start.secrets, *secrets_in(os.environ, start.env)])
        if prepared.work.opened is not None:
            return Streams(progress=start.streams, redactor=redactor)
        path = attempt_log.path_of(ctx.data_dir, self._ref.task_id, self._ref.attempt)
        log = attempt_log.AttemptLog(path, ctx.execution.attempt_log_bytes_max, ctx.log)
        if start.streams and ctx.stream_s > 0:
            live = self._child.live(ctx.gateway, ctx.stream_s, ctx.log)
            self._buffer = LiveBuffer(redactor, where=log.where(ctx.runner), changed=live.changed)
        return Streams(progress=start.streams, redactor=redactor, log=log, live=self._buffer)

    def _on_long(self) -> None:
        """When the attempt has lived for more than a moment: keep its lease, and show what it writes."""
        self._start_keeper()
        if self._buffer is not None:
            self._child.live(self._ctx.gateway, self._ctx.stream_s, self._ctx.log).watch(self._ref, self._buffer)

    def _start_keeper(self) -> None:
        ctx, lease = self._ctx, self._lease
        if lease is None or self._kept:
            return
        self._kept = True
        warden = ctx.warden
        self._child.keeper(ctx.gateway, ctx.wake, ctx.rand, ctx.log).watch(
            self._ref,
            lease,
            started_at=lease.sent_at,
            notify=self._child.inbox.notify,
            on_renewed=(lambda _deadline: None) if warden is None else warden.extend,
        )

    # Report

    def _report(self, end: AttemptEnd) -> None:
        ctx = self._ctx
        max_attempts = self._routing.max_attempts if self._choice is None else self._choice.max_attempts
        policy = retry.RetryPolicy(max_attempts, ctx.execution.retry_backoff_s, ctx.execution.cooldown_s)
        decision = retry.decide(end.reason, self._ref.attempt, policy, ctx.rand())
        ctx.log.info(
            "attempt_ended",
            reason=end.reason.value,
            action=decision.action.value,
            exit_code=end.exit_code,
            signal=end.signal,
            duration_s=round(end.duration_s, 3),
            output_bytes=end.stdout.total_bytes,
            flags=sorted(end.flags),
            **self._ids,
        )
        if decision.action is Action.LET_GO:
            return
        told = self._told(end)
        if decision.action is Action.COMPLETE:
            self._deliver(spool.Kind.COMPLETE, outputs=told.outputs, smaller=told.smaller, review=self._review)
        elif decision.action is Action.FAIL:
            poison = retry.poison_reason(max_attempts)
            reason = attempt.cut(f"{poison}: {told.reason}" if told.reason else poison)
            self._deliver(spool.Kind.FAIL, reason=reason, note=told.note)
        else:
            self._deliver(
                spool.Kind.RELEASE,
                reason=attempt.cut(told.reason),
                counted=decision.action is Action.RETRY,
                delay_s=decision.delay_s,
                note=told.note,
            )

    def _told(self, end: AttemptEnd) -> Told:
        if self._opened is None:
            return telling.in_the_open(end)
        ref, timeout_s = self._ref, self._routing.timeout_s if self._choice is None else self._choice.timeout_s
        return telling.sealed(end, self._opened, task_id=ref.task_id, attempt_number=ref.attempt, timeout_s=timeout_s)

    def _deliver(self, kind: spool.Kind, **fields: Any) -> None:
        give_up_at = tree.boottime() + self._ctx.execution.report_patience_s

        def wait(seconds: float) -> bool:
            nonlocal give_up_at
            self._start_keeper()
            now = tree.boottime()
            if self._child.stopping(self._ctx.stop_fd):
                give_up_at = min(give_up_at, now + min(self._ctx.execution.drain_s, DRAIN_PATIENCE_S))
            if self._lease is not None and self._lease.refused:
                return False
            if now >= give_up_at:
                return False
            self._child.wait(min(seconds, give_up_at - now))
            return True

        report, began_ns = spool.Report(kind, self._ref, **fields), time.time_ns()
        outcome = spool.deliver(
            report,
            self._ctx.gateway,
            self._spool,
            wait=wait,
            rand=self._ctx.rand,
            log=self._ctx.log,
            # Should this process die now, its worker delivers the report: the warden must not give the task back.
            on_kept=self._end_ward,
        )
        self._trace.reported(kind, outcome, began_ns)
