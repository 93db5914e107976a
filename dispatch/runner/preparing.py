"""From a granted start to what is run: the task unsealed, its executor chosen, its argv and input made."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispatch.core import results
from dispatch.core.prompt import build_prompt
from dispatch.runner import executors
from dispatch.runner.unsealing import NotNowError

if TYPE_CHECKING:
    from typing import Any

    from dispatch.ats.gateway import AttemptRef
    from dispatch.ats.model import Grant, Task
    from dispatch.core.limits import Allowance
    from dispatch.core.routing import Choice, Routing
    from dispatch.crypto.opening import Opened
    from dispatch.runner.unsealing import Unsealing, Work
    from dispatch.settings import Execution


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the attempt is told, what was decided about it, and what is started."""

    work: Work
    choice: Choice
    start: executors.Start
    allowance: Allowance

    @property
    def review(self) -> bool:
        """Whether a result waits for somebody's approval: the route says so, or the task itself."""
        payload = self.work.payload
        return self.choice.review or (isinstance(payload, dict) and payload.get("review") is True)

    def variables(self, ref: AttemptRef, task: Task) -> dict[str, str]:
        """Return what the child finds about its task in its environment."""
        handed = {"ATS_DEPENDENCIES": self.work.environment_value()} if self.work.dependencies else {}
        return {
            "ATS_TASK_ID": ref.task_id,
            "ATS_CHANNEL": task.channel,
            "ATS_ATTEMPT": str(ref.attempt),
            "ATS_FENCING_TOKEN": str(ref.token),
            **handed,
        }


@dataclass(frozen=True, slots=True)
class Preparing:
    """Prepares attempts by one routing; ``execution`` says what every child may see and use."""

    routing: Routing
    execution: Execution
    log: Any

    def executor_of_sealed(self, task: Task, opened: Opened) -> str:
        """Return the executor of a task that was opened: whether its sender may use it is checked before it is run."""
        return executors.choice_of(self.routing, task, opened.sender.name, opened.content.payload).executor

    def prepare(self, ref: AttemptRef, grant: Grant, unsealing: Unsealing) -> tuple[Work, Choice]:
        """Open the task if it is sealed and decide about it. Raises what ``Unsealing.prepare`` raises."""
        work = unsealing.prepare(ref, grant)
        sender = None if work.opened is None else work.opened.sender.name
        return work, executors.choice_of(self.routing, grant.task, sender, work.payload)

    def assign(self, ref: AttemptRef, task: Task, work: Work, choice: Choice) -> Prepared:
        """Return what is to be started. Raises NotAcceptedError, and NotNowError where this host cannot run it."""

        def prompt() -> bytes:
            boundaries = iter(lambda: secrets.token_hex(8), None)
            blocks = results.blocks(work.dependencies)
            for found in (work.earlier, work.review):
                blocks |= {} if found is None else found.blocks()
            text = build_prompt(work.title, work.description, work.payload, boundaries, blocks)
            return text.encode("utf-8", "replace")

        try:
            executor = self.routing.executors.get(choice.executor)
            if executor is None:
                raise executors.UnusableError("it is not in the settings of its worker")
            start = executors.Assignment(ref, task, work, prompt).start_of(executor, os.environ, self.execution.env)
        except executors.UnusableError as exc:
            ids = {"task": ref.task_id, "attempt": ref.attempt, "token": ref.token}
            why = f"Host {os.uname().nodename} cannot run the executor {choice.executor}: {exc}."
            self.log.error("executor_unusable", executor=choice.executor, error=why, **ids)  # noqa: TRY400
            raise NotNowError(f"{why} Mend that, or route such tasks to a queue of hosts that can.") from None
        return Prepared(work, choice, start, executors.allowance_of(executor, self.execution))
