"""What is started for an attempt: the argv, what it reads, and what it may see, by the kind of its executor.

Every kind ends as one child process, so that time limits, cancelling, lost
leases and the clearing away are the same for all of them.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dispatch.core import template
from dispatch.core.limits import Allowance, Limit
from dispatch.core.prompt import INTERNAL_FIELDS
from dispatch.core.routing import DEFAULT, Executor, Routing, TaskTraits, choose, traits_of
from dispatch.runner.unsealing import NotAcceptedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dispatch.ats.gateway import AttemptRef
    from dispatch.ats.model import Task
    from dispatch.core.routing import Choice
    from dispatch.runner.unsealing import Work
    from dispatch.settings import Execution

_HERE: Final = Path(__file__).parent
_FROM_ENV: Final = "env:"


class UnusableError(Exception):
    """This host cannot run the executor; another one may. Its text is the end of a sentence: what is missing here."""


@dataclass(frozen=True, slots=True)
class Start:
    """What to start. ``stdin`` may hold secrets; ``argv`` never does."""

    argv: tuple[str, ...]
    stdin: bytes = field(repr=False)
    env: tuple[str, ...]
    """Names of the worker's environment that the child may see."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What it is given besides, and is not to be shown."""
    streams: bool = True
    """Whether what it writes is output to be shown while it runs, rather than an answer that comes at once."""


def routing_of(routing: Routing | None, execution: Execution) -> Routing:
    """Return the routing; without one, everything goes to the command of the settings."""
    if routing is not None:
        return routing
    return Routing(
        executors={DEFAULT: Executor(command=execution.command)},
        timeout_s=execution.timeout_s,
        max_attempts=execution.max_attempts,
        idle_s=execution.idle_s,
    )


def allowance_of(executor: Executor, execution: Execution) -> Allowance:
    """Return what an attempt by this executor may use: what is said of it, else what the settings say for all."""
    own = f"[executors.{executor.name}]"
    memory, processes = executor.memory_bytes_max, executor.processes_max
    return Allowance(
        Limit(execution.attempt_memory_bytes_max, "attempt_memory_bytes_max")
        if memory is None
        else Limit(memory, f"memory_bytes_max in {own}"),
        Limit(execution.attempt_processes_max, "attempt_processes_max")
        if processes is None
        else Limit(processes, f"processes_max in {own}"),
    )


def controllers_of(routing: Routing, execution: Execution) -> frozenset[str]:
    """Return the controllers that are needed to hold the limits of every executor; none when nothing is limited."""
    return frozenset().union(
        *(allowance_of(executor, execution).controllers() for executor in routing.executors.values())
    )


def attempts_max(routing: Routing) -> int:
    """Return how many attempts a task may have at most, whatever it is."""
    return max([routing.max_attempts, *(route.max_attempts for route in routing.routes if route.max_attempts)])


def choice_of(routing: Routing, task: Task, sender: str | None, payload: Any) -> Choice:
    """Decide about a task; ``payload`` is what its author wrote, opened if it was sealed."""
    return choose(routing, TaskTraits(task.channel, task.type, sender, traits_of(payload)))


def task_json(ref: AttemptRef, task: Task, work: Work) -> dict[str, Any]:
    """Return the task as executors read it: what its author wrote, without what steers dispatch."""
    payload = work.payload
    if isinstance(payload, dict):
        payload = {name: value for name, value in payload.items() if name not in INTERNAL_FIELDS}
    return {
        "id": ref.task_id,
        "uuid": task.uuid,
        "attempt": ref.attempt,
        "channel": task.channel,
        "type": task.type,
        "priority": task.priority,
        "title": work.title,
        "description": work.description,
        "payload": payload,
        "dependencies": list(work.dependencies),
        **({} if work.earlier is None else {"earlier_attempt": work.earlier.as_json()}),
        **({} if work.review is None else {"review": work.review.as_json()}),
    }


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt of a task for an executor. ``prompt`` is made when it is wanted."""

    ref: AttemptRef
    task: Task
    work: Work
    prompt: Callable[[], bytes]

    def start_of(self, executor: Executor, environ: Mapping[str, str], env: tuple[str, ...]) -> Start:
        """Return what to start; ``env`` are the names that every child may see.

        Raises NotAcceptedError when the task cannot be done by this executor at all, UnusableError when this host
        cannot run it.
        """
        if executor.kind == "http":
            headers = _headers(executor, environ)
            order = {"url": executor.url, "headers": headers, "body": {"task": self._task()}}
            return replace(_ours("http_call.py", order, env), secrets=_secret(executor, headers), streams=False)
        names = (*env, *executor.env)
        if executor.kind == "python":
            order = {"function": executor.function, "task": self._task(), "path": sys.path}
            return _ours("python_call.py", order, names)
        program = placed(executor.command[0])
        if executor.name != DEFAULT and shutil.which(program, path=environ.get("PATH")) is None:
            # Not every host has every program; the task's attempts are for one that has it.
            is_file = "/" in program and Path(program).is_file()
            raise UnusableError(f"{program} may not be executed" if is_file else f"{program} is not there")
        return Start((program, *self._argv(executor)[1:]), self._stdin(executor), names)

    def _task(self) -> dict[str, Any]:
        return task_json(self.ref, self.task, self.work)

    def _argv(self, executor: Executor) -> tuple[str, ...]:
        if self.work.opened is not None and template.payload_fields(executor.command):
            raise NotAcceptedError(
                f"The executor {executor.name} puts fields of the payload into its arguments, which others on its host"
                " can read; it does not do sealed tasks."
            )
        facts = {
            "id": self.ref.task_id,
            "channel": self.task.channel,
            "type": self.task.type,
            "attempt": self.ref.attempt,
        }
        try:
            return template.fill(executor.command, facts, self.work.payload)
        except template.TemplateError as exc:
            raise NotAcceptedError(f"{exc} (executor {executor.name})") from None

    def _stdin(self, executor: Executor) -> bytes:
        if executor.stdin == "task":
            return json.dumps(self._task(), ensure_ascii=False).encode("utf-8", "replace")
        return self.prompt() if executor.stdin == "prompt" else b""


def placed(program: str) -> str:
    """Return a program as a child can name it, which has a work directory of its own: a path is meant from here."""
    if "/" not in program:
        return program
    return str(Path.home() / program[2:] if program.startswith("~/") else Path.cwd() / program)


def _headers(executor: Executor, environ: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in executor.headers.items():
        variable = value.removeprefix(_FROM_ENV) if value.startswith(_FROM_ENV) else None
        if variable is not None and not environ.get(variable):
            raise UnusableError(f"the environment variable {variable} is not set in its worker")
        found[name] = value if variable is None else environ[variable]
        if any(character in found[name] for character in "\r\n\0"):
            raise UnusableError(f"the header {name} would have a line end in it")
    return found


def _secret(executor: Executor, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values that came from the environment, whole and without the scheme before them (Bearer)."""
    values = [headers[name] for name, value in executor.headers.items() if value.startswith(_FROM_ENV)]
    return tuple(part for value in values for part in (value, *value.split()[-1:]))


def _ours(module: str, order: Mapping[str, Any], env: tuple[str, ...]) -> Start:
    # As a file and not with -m: the child's work directory and environment then decide nothing about what it imports.
    return Start((sys.executable, "-P", str(_HERE / module)), json.dumps(order).encode(), env)
