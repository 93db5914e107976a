"""The people around the fleet: one creates tasks, one cancels some, one talks with keys that are no longer valid.

Nobody here repeats a call blindly: a creation without an answer is written down
as such, and a cancel is repeated only after the task was read again.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from typing import TYPE_CHECKING, Any

from tests.chaos.collect import sightings
from tests.chaos.history import Call, Creation, Sighting

if TYPE_CHECKING:
    from tests.chaos.plan import Plan, PlannedTask
    from tests.support.stack import Stack

NO_ANSWER = (OSError, http.client.HTTPException, ValueError)
"""What a call raises while the service is away: whether it happened is not known."""
STALE_EVERY_S = 0.1
LOOK_EVERY_S = 0.3


class Load:
    """Two threads: the client, and the witness. ``start``, then ``finish`` when everything has come to rest."""

    def __init__(self, stack: Stack, plan: Plan) -> None:
        self.creations: list[Creation] = []
        self.calls: list[Call] = []
        self.sightings: list[Sighting] = []
        self.errors: list[BaseException] = []
        self._stack = stack
        self._plan = plan
        self._rand = random.Random(plan.seed)
        self._begun_at = 0.0
        self._over = threading.Event()
        self._to_cancel: dict[str, PlannedTask] = {}
        self._seen_at: dict[str, float] = {}
        self._ids: dict[int, str] = {}
        self._client = threading.Thread(target=self._guarded, args=(self._create_all,), name="client", daemon=True)
        self._witness = threading.Thread(target=self._guarded, args=(self._watch,), name="witness", daemon=True)

    def start(self) -> None:
        """Begin; the plan's times count from now."""
        self._begun_at = time.monotonic()
        self._client.start()
        self._witness.start()

    @property
    def busy(self) -> bool:
        """Whether something is still to be created or cancelled."""
        return self._client.is_alive() or bool(self._to_cancel)

    def finish(self) -> None:
        """Stop and wait. Raises what broke a thread."""
        self._over.set()
        self._client.join(15)
        self._witness.join(15)
        if self.errors:
            raise self.errors[0]

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001 - finish raises it in the main thread
            self.errors.append(exc)
            self._to_cancel.clear()

    # The client

    def _create_all(self) -> None:
        for place, task in enumerate(self._plan.tasks):
            if self._over.wait(max(0.0, self._begun_at + task.at - time.monotonic())):
                return
            self._create(place, task)

    def _create(self, place: int, task: PlannedTask) -> None:
        orders = {"dir": str(self._stack.ticks), **task.orders}
        payload: dict[str, Any] = {"tick": orders}
        needs = tuple(filter(None, (self._ids.get(place) for place in task.needs)))
        if needs:
            payload["depends_on"] = list(needs)
        body = {"title": task.title, "channel": self._stack.channel, "payload": payload}
        task_id = None
        try:
            status, answer = self._stack.call("POST", "/tasks", body)
            if status in (200, 201):
                task_id = self._ids[place] = str(answer.get("task", answer)["id"])
        except NO_ANSWER:
            pass
        if task_id is not None and task.cancel_after_s is not None:
            self._to_cancel[task_id] = task
        self.creations.append(Creation(task.title, task_id, time.time(), task.cut_short, task.ends, needs))

    # The witness

    def _watch(self) -> None:
        stale_at = look_at = time.monotonic()
        while not self._over.wait(0.03):
            now = time.monotonic()
            for task_id in list(self._to_cancel):
                self._cancel_when_seen(task_id)
            if now >= stale_at:
                stale_at = now + STALE_EVERY_S
                self._call_with_an_old_token()
            if now >= look_at:
                look_at = now + LOOK_EVERY_S
                self.sightings += sightings(self._stack.url)

    def _cancel_when_seen(self, task_id: str) -> None:
        if task_id not in self._seen_at:
            if not (self._stack.ticks / f"{task_id}.ticks").exists():
                return
            self._seen_at[task_id] = time.monotonic()
        if time.monotonic() < self._seen_at[task_id] + (self._to_cancel[task_id].cancel_after_s or 0.0):
            return
        try:
            _, answer = self._stack.call("GET", f"/tasks/{task_id}")
            if answer["task"]["status"] in ("cancelled", "failed", "completed"):
                del self._to_cancel[task_id]
            else:
                self._stack.call("POST", f"/tasks/{task_id}/cancel")
        except NO_ANSWER:
            return

    def _call_with_an_old_token(self) -> None:
        """Be the worker that did not hear: renew, end or start under an old token, or end again what has ended."""
        known = [c for c in self.creations[-100:] if c.task_id is not None]
        # Half of the time one that is granted more than once anyway.
        often = [c for c in known if c.title.startswith(("flaky", "failing", "poison", "hold"))]
        if not known:
            return
        task_id = self._rand.choice(often if often and self._rand.random() < 0.5 else known).task_id or ""
        try:
            _, answer = self._stack.call("GET", f"/tasks/{task_id}")
            task = answer["task"]
            current = task["fencing_token"]
            if task["status"] == "completed" and self._rand.random() < 0.3:
                body = {"outputs": task["outputs"], "fencing_token": current}
                self._say("complete", task_id, body, current, repeats=True)
            elif current >= 2:
                verb = self._rand.choice(["renew", "complete", "fail", "release", "start"])
                body = {"fencing_token": current - 1}
                body |= {"complete": {"outputs": [{"response": "too late"}]}, "start": {"runner": "late"}}.get(verb, {})
                self._say(verb, task_id, body, current)
        except NO_ANSWER:
            return

    def _say(self, verb: str, task_id: str, body: dict[str, Any], current: int, *, repeats: bool = False) -> None:
        status, _ = self._stack.call("POST", f"/tasks/{task_id}/{verb}", body, self._stack.late_actor)
        self.calls.append(Call(verb, task_id, body["fencing_token"], current, status, repeats))
