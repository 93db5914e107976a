"""One attempt from message to report, in named steps.

``execute`` runs in the main thread of a pool child, one attempt at a time. It
raises nothing for anything that a task, a service or a network can do.
"""

from __future__ import annotations

import os
import random
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dispatch.ats.model import Actor
from dispatch.core import results, retry
from dispatch.core.prompt import build_prompt
from dispatch.core.retry import Action, EndReason
from dispatch.errors import AuthenticationError, GatewayError, GatewayUnavailableError
from dispatch.runner import attempt, pool_child, process, spool, tree
from dispatch.runner.attempt import AttemptEnd
from dispatch.runner.lease_keeper import Lease
from dispatch.runner.loop import AttemptLoop, Limits, Wiring

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dispatch.ats.gateway import AttemptRef, TaskGateway
    from dispatch.ats.model import Grant
    from dispatch.runner.lease_keeper import WakeSource
    from dispatch.runner.pool_child import PoolChild
    from dispatch.runner.warden_client import WardenClient
    from dispatch.settings import Execution

START_PATIENCE_S: Final = 10.0
"""How long ``start`` is tried while the service does not answer; afterwards the lease brings the task back."""
REPORT_PATIENCE_S: Final = 3_600.0
"""How long a slot waits with a report that nobody takes; afterwards the spool keeps it."""
DRAIN_PATIENCE_S: Final = 10.0
"""The same while the worker drains, at most."""
_START_PAUSE_S: Final = 0.2
STARTED_MESSAGE: Final = "Agent processing started"


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """What an attempt needs of its process; made once per pool child.

    ``gateway`` is used by two threads at once (reports and renewals).
    ``stop_fd`` is the read end of the worker's stop pipe: closing the write end
    asks for a drain, a byte ``C`` written before that for a stop at once. It is
    shared by all pool children and never read. ``rand`` returns numbers in [0, 1).
    """

    gateway: TaskGateway
    execution: Execution
    data_dir: Path
    ats_url: str
    runner: str
    """Name of this worker, shown to people; a nonce per attempt is appended."""
    log: Any
    actor_name: str = "dispatch"
    warden: WardenClient | None = None
    wake: WakeSource | None = None
    stop_fd: int | None = None
    rand: Callable[[], float] = field(default=random.random)


def execute(ref: AttemptRef, ctx: RunnerContext) -> AttemptEnd | None:
    """Run one attempt and report it; None when it was dropped before anything was started."""
    child = pool_child.current(ctx.data_dir)
    with child.inbox.listening():
        return _Execution(ref, ctx, child).run()


class _Execution:
    """The steps of one attempt, and what they hand on to each other."""

    def __init__(self, ref: AttemptRef, ctx: RunnerContext, child: PoolChild) -> None:
        self._ref = ref
        self._ctx = ctx
        self._child = child
        self._spool = spool.Spool(ctx.data_dir)
        self._lease: Lease | None = None
        self._kept = False
        self._ids = {"task": ref.task_id, "attempt": ref.attempt, "token": ref.token}

    def run(self) -> AttemptEnd | None:
        if self._ref.attempt > self._ctx.execution.max_attempts:
            self._ctx.log.warning("attempt_poison", **self._ids)
            self._deliver(spool.Kind.FAIL, reason=retry.poison_reason(self._ctx.execution.max_attempts))
            return None
        if self._child.stopping(self._ctx.stop_fd):
            self._ctx.log.info("attempt_returned", **self._ids)
            self._deliver(spool.Kind.RELEASE, reason="the worker is shutting down")
            return None
        self._begin_ward()
        grant = self._start()
        if grant is None:
            self._end_ward()
            return None
        try:
            end = self._run_guarded(grant)
            self._report(end)
        finally:
            self._child.stop_watching()
        self._end_ward()
        return end

    # Start

    def _start(self) -> Grant | None:
        ctx, ref = self._ctx, self._ref
        runner = f"{ctx.runner}/{os.getpid()}/{secrets.token_hex(4)}"
        give_up_at = tree.boottime() + START_PATIENCE_S
        pause_s = _START_PAUSE_S
        while True:
            sent_at = tree.boottime()
            try:
                grant = ctx.gateway.start(ref, runner=runner, message=STARTED_MESSAGE)
            except (GatewayUnavailableError, AuthenticationError) as exc:
                asked_s = exc.retry_after_s if isinstance(exc, GatewayUnavailableError) else None
                wait_s = max(pause_s * (0.5 + 0.5 * ctx.rand()), asked_s or 0.0)
                if tree.boottime() + wait_s >= give_up_at or self._child.stopping(ctx.stop_fd):
                    ctx.log.warning("attempt_not_started", error=str(exc), **self._ids)
                    return None
                ctx.log.warning("attempt_start_delayed", error=str(exc), **self._ids)
                self._child.wait(wait_s)
                pause_s *= 2
            except GatewayError as exc:
                ctx.log.info("attempt_dropped", error=str(exc), **self._ids)
                return None
            else:
                self._lease = Lease(sent_at, grant.ttl_s)
                if ctx.warden is not None and abs(grant.ttl_s - ctx.execution.lease_s) > 0.05 * grant.ttl_s:
                    ctx.warden.extend(self._lease.warden_deadline)
                return grant

    # The warden

    def _begin_ward(self) -> None:
        ctx, ref = self._ctx, self._ref
        if ctx.warden is None:
            return
        owner = self._child.owner
        warded = ctx.warden.begin(
            ref,
            tag=owner.tag(ref.task_id, ref.token),
            mark=owner.mark,
            deadline=Lease(tree.boottime(), ctx.execution.lease_s).warden_deadline,
            actor=Actor("agent", ref.actor_id, ctx.actor_name),
        )
        if not warded:
            ctx.log.warning("warden_unreachable", **self._ids)

    def _end_ward(self) -> None:
        if self._ctx.warden is not None:
            self._ctx.warden.end()

    # Run

    def _run_guarded(self, grant: Grant) -> AttemptEnd:
        try:
            with self._child.work_directory() as directory:
                return self._run(grant, directory)
        except process.SpawnError as exc:
            return AttemptEnd(EndReason.SPAWN_ERROR, detail=str(exc))
        except Exception as exc:
            # A defect of ours. It counts as a failed attempt, or it would be tried for ever.
            self._ctx.log.exception("attempt_crashed", **self._ids)
            return AttemptEnd(EndReason.WORKER_LOST, detail=f"the worker failed: {type(exc).__name__}: {exc}")

    def _environment(self, grant: Grant) -> dict[str, str]:
        ref, ctx = self._ref, self._ctx
        handed = {"ATS_DEPENDENCIES": results.environment_value(grant.dependencies)} if grant.dependencies else {}
        return process.child_environment(
            os.environ,
            ctx.execution.env,
            {
                "ATS_TASK_ID": ref.task_id,
                "ATS_URL": ctx.ats_url,
                "ATS_CHANNEL": grant.task.channel,
                "ATS_ATTEMPT": str(ref.attempt),
                "ATS_FENCING_TOKEN": str(ref.token),
                "DISPATCH_ATTEMPT": self._child.owner.tag(ref.task_id, ref.token),
                **handed,
            },
        )

    def _run(self, grant: Grant, directory: str) -> AttemptEnd:
        ctx, lease, task = self._ctx, self._lease, grant.task
        if lease is None:
            raise RuntimeError("an attempt is run only after its start was granted")
        boundaries = iter(lambda: secrets.token_hex(8), None)
        extra = results.blocks(grant.dependencies)
        prompt = build_prompt(task.title, task.description, task.payload, boundaries, extra).encode("utf-8", "replace")
        running = process.spawn(ctx.execution.command, prompt=prompt, cwd=directory, env=self._environment(grant))
        ctx.log.info("attempt_started", pid=running.pid, **self._ids)
        limits = Limits(
            ctx.execution.timeout_s, ctx.execution.grace_s, ctx.execution.drain_s, ctx.execution.output_bytes_max
        )
        wiring = Wiring(
            inbox=self._child.inbox,
            lease=lease,
            stop_fd=ctx.stop_fd,
            warden=ctx.warden,
            start_keeper=self._start_keeper,
            baseline=self._child.baseline,
        )
        return AttemptLoop(running, limits, wiring).run()

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
        policy = retry.RetryPolicy(ctx.execution.max_attempts, ctx.execution.retry_backoff_s, ctx.execution.cooldown_s)
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
        if decision.action is Action.COMPLETE:
            self._deliver(spool.Kind.COMPLETE, outputs=[_output(end)])
        elif decision.action is Action.FAIL:
            poison = retry.poison_reason(ctx.execution.max_attempts)
            self._deliver(spool.Kind.FAIL, reason=attempt.cut(f"{poison}: {end.detail}" if end.detail else poison))
        elif decision.action is not Action.LET_GO:
            self._deliver(
                spool.Kind.RELEASE,
                reason=attempt.cut(end.detail),
                counted=decision.action is Action.RETRY,
                delay_s=decision.delay_s,
            )

    def _deliver(self, kind: spool.Kind, **fields: Any) -> None:
        give_up_at = tree.boottime() + REPORT_PATIENCE_S

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

        report = spool.Report(kind, self._ref, **fields)
        spool.deliver(report, self._ctx.gateway, self._spool, wait=wait, rand=self._ctx.rand, log=self._ctx.log)


def _output(end: AttemptEnd) -> dict[str, Any]:
    output: dict[str, Any] = {"response": end.stdout.text}
    if end.stdout.truncated:
        output |= {"truncated": True, "output_bytes": end.stdout.total_bytes}
    return output
