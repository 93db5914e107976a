"""The store against a small model of it: random calls, random time, equal answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatch.ats.model import Actor
from dispatch.errors import TaskError
from dispatch.service import history, lapse, leases, moves, tasks
from dispatch.service.rows import Ref, fetch
from tests.support.service import STORES, SteppingClock

ACTORS = [Actor("agent", "ann", "Ann"), Actor("agent", "bob", "Bob"), Actor("human", "eve", "Eve")]
FINISHED = {"completed", "failed", "cancelled", "skipped"}
LEASE_S, REGRANT_S = 60, 15

actors = st.sampled_from(ACTORS)
refs = st.integers(0, 2)
tokens = st.integers(0, 4)


@dataclass
class Model:
    """What one task must look like."""

    status: str = "todo"
    token: int = 0
    holder: str | None = None
    runner: str | None = None
    attempts: int = 0
    losses: int = 0
    expires: float = 0.0
    result: tuple[Any, ...] | None = None


class StoreMachine(RuleBasedStateMachine):
    """Three tasks, three actors, tokens right and wrong."""

    engine = "sqlite"

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = SteppingClock()
        self.now = 0.0
        self.context = STORES[self.engine](self.clock)
        self.store = self.runner.run(self.context.__aenter__())
        self.models: list[Model] = []
        self.ids: list[int] = []

    def teardown(self) -> None:
        """Close the store and check the history of every task."""
        for ref, model in zip(self.ids, self.models, strict=True):
            lines = [e for e in self._read(lambda tx, ref=ref: history.of_task(tx, ref)) if e.to_status]
            grants = [e.token for e in lines if e.type == "task.claimed"]
            assert grants == list(range(1, model.token + 1))
            for before, after in pairwise(lines):
                assert before.to_status == after.from_status
                if before.to_status in FINISHED:
                    assert after.type == "task.reopened"
        self.runner.run(self.context.__aexit__(None, None, None))
        self.runner.close()

    def _write(self, work: Any) -> Any:
        async def run() -> Any:
            return await self.store.write(work)

        return self.runner.run(run())

    def _read(self, work: Any) -> Any:
        async def run() -> Any:
            return await self.store.read(work)

        return self.runner.run(run())

    def _try(self, use_case: Any, at: int, actor: Actor, **arguments: Any) -> bool:
        try:
            self._write(lambda tx: use_case(tx, Ref(self.ids[at]), actor, **arguments))
        except TaskError:
            return False
        return True

    def _live(self, model: Model) -> bool:
        return model.status == "in_progress" and model.expires > self.now

    def _may_report(self, model: Model, actor: Actor) -> bool:
        return not self._live(model) or actor.type != "agent" or actor.id == model.holder

    def _back(self, model: Model) -> None:
        model.status, model.holder, model.runner = "todo", None, None

    @initialize()
    def make_tasks(self) -> None:
        """Create the tasks."""
        for _ in range(3):
            row = self._write(lambda tx: tasks.create(tx, None, ACTORS[0], tasks.NewTask("t")))
            self.ids.append(row.id)
            self.models.append(Model())

    @rule(at=refs, actor=actors)
    def claim(self, at: int, actor: Actor) -> None:
        """A claim wins a task in todo, or extends the lease of its holder."""
        model = self.models[at]
        expected = model.status == "todo" or (model.status == "in_progress" and model.holder == actor.id)
        assert self._try(leases.claim, at, actor, lease_ms=LEASE_S * 1000) == expected
        if model.status == "todo":
            model.status, model.holder, model.runner, model.result = "in_progress", actor.id, None, None
            model.token += 1
        if expected:
            model.expires = self.now + LEASE_S

    @rule(at=refs, actor=actors)
    def claim_and_start(self, at: int, actor: Actor) -> None:
        """The two in a row, with the right token."""
        self.claim(at, actor)
        self.start(at, self.models[at].token, "r1")

    @rule(at=refs, token=tokens, runner=st.sampled_from(["r1", "r2"]))
    def start(self, at: int, token: int, runner: str) -> None:
        """A start needs the current token and no other runner."""
        model = self.models[at]
        expected = model.status == "in_progress" and token == model.token and model.runner in (None, runner)
        assert self._try(leases.start, at, ACTORS[0], token=token, runner=runner) == expected
        if expected:
            model.attempts += model.runner is None
            model.runner = runner
            model.expires = self.now + LEASE_S

    @rule(at=refs, token=tokens)
    def renew(self, at: int, token: int) -> None:
        """A renewal needs the current token."""
        model = self.models[at]
        expected = model.status == "in_progress" and token == model.token
        assert self._try(leases.renew, at, ACTORS[0], token=token) == expected
        if expected:
            model.expires = self.now + LEASE_S

    @rule(at=refs, token=tokens, counted=st.booleans())
    def release(self, at: int, token: int, *, counted: bool) -> None:
        """A release needs the current token; repeating it changes nothing."""
        model = self.models[at]
        report = ("release", counted, token)
        repeated = model.status == "todo" and model.result == report
        expected = model.status == "in_progress" and token == model.token
        assert self._try(leases.release, at, ACTORS[0], token=token, counted=counted) == (expected or repeated)
        if expected:
            model.attempts -= model.runner is not None and not counted
            self._back(model)
            model.result = report

    def _report(self, at: int, actor: Actor, token: int | None, end: str, use_case: Any, **arguments: Any) -> None:
        model = self.models[at]
        report = (end, *arguments.values())
        repeated = (
            model.status == end
            and model.result == report
            and (token == model.token if token is not None else actor.id == model.holder)
        )
        allowed = token == model.token if token is not None else self._may_report(model, actor)
        expected = model.status == "in_progress" and allowed
        assert self._try(use_case, at, actor, token=token, **arguments) == (expected or repeated)
        if expected:
            model.status, model.result = end, report

    @rule(at=refs, actor=actors, token=st.none() | tokens, output=st.integers(0, 1))
    def complete(self, at: int, actor: Actor, token: int | None, output: int) -> None:
        """A completion needs the token or the right; the same one again is the same answer."""
        self._report(at, actor, token, "completed", moves.complete, outputs=[output])

    @rule(at=refs, actor=actors, token=st.none() | tokens)
    def fail(self, at: int, actor: Actor, token: int | None) -> None:
        """A failure likewise."""
        self._report(at, actor, token, "failed", moves.fail, reason="no")

    @rule(at=refs, actor=actors)
    def cancel(self, at: int, actor: Actor) -> None:
        """Anybody cancels what is not finished."""
        model = self.models[at]
        expected = model.status in ("todo", "in_progress")
        assert self._try(moves.cancel, at, actor) == expected
        if expected:
            model.status = "cancelled"

    @precondition(lambda self: any(model.status in FINISHED for model in self.models))
    @rule(at=refs, actor=actors)
    def reopen(self, at: int, actor: Actor) -> None:
        """Only a finished task is reopened, and begins afresh."""
        model = self.models[at]
        expected = model.status in FINISHED
        assert self._try(moves.reopen, at, actor) == expected
        if expected:
            self._back(model)
            model.attempts, model.losses, model.result = 0, 0, None

    @rule(seconds=st.sampled_from([1, LEASE_S, LEASE_S + REGRANT_S - 1, LEASE_S + REGRANT_S]))
    def time_passes(self, seconds: int) -> None:
        """Leases that ran out at least the regrant delay ago are taken back."""
        self.clock.step(seconds)
        self.now += seconds
        self._write(lambda tx: lapse.expire(tx, REGRANT_S * 1000))
        for model in self.models:
            if model.status == "in_progress" and model.expires + REGRANT_S <= self.now:
                model.losses += model.runner is not None
                model.attempts -= model.runner is not None
                self._back(model)

    @invariant()
    def store_equals_model(self) -> None:
        """The rows are what the model says."""
        for ref, model in zip(self.ids, self.models, strict=True):
            row = self._read(lambda tx, ref=ref: fetch(tx, Ref(ref)))
            seen = (row.status, row.fencing_token, row.runner if row.held else None, row.attempts, row.lease_losses)
            runner = model.runner if model.status == "in_progress" else None
            assert seen == (model.status, model.token, runner, model.attempts, model.losses)
            assert row.held == (row.status == "in_progress") == (row.lease_expires_at is not None)
            if row.held:
                assert row.holder_id == model.holder


class PostgresMachine(StoreMachine):
    """The same on the other store."""

    engine = "postgresql"


TestSqliteAgainstModel = StoreMachine.TestCase
TestPostgresAgainstModel = PostgresMachine.TestCase
for case, examples in ((TestSqliteAgainstModel, 20), (TestPostgresAgainstModel, 6)):
    case.settings = settings(
        max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
del case  # else it would be collected once more
