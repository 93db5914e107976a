"""Which executor does a task, from which queue, within which limits. Pure.

An operator writes executors, routes and classes into the settings. The first
route whose conditions all hold decides; what it leaves open is the default's.
Conditions look at the task's channel, type and sender and at its *traits*: the
short plain values at the top of its payload, which is all of a payload that
the fleet needs to see to decide where a task goes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.idle import IdleLimit
from dispatch.core.prompt import INTERNAL_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEFAULT: Final = "default"
"""The executor of tasks that no route names one for."""
GPU: Final = "gpu"
"""The class that existing payloads ask for with ``gpu: true``."""
TRAITS_MAX: Final = 32
TRAIT_CHARS_MAX: Final = 64

Trait = bool | int | str


@dataclass(frozen=True, slots=True)
class Executor:
    """How a task is done. Which fields count depends on ``kind``: command, http or python."""

    name: str = DEFAULT
    kind: str = "command"
    command: tuple[str, ...] = ()
    """The argv; ``{id} {channel} {type} {attempt} {payload.NAME}`` in it stand for the task's. Never a shell."""
    stdin: str = "prompt"
    """What a command reads: ``prompt``, ``task`` (the task as JSON) or ``nothing``."""
    env: tuple[str, ...] = ()
    """Further variables of the worker's environment that this executor may see."""
    url: str = ""
    """Where kind http posts the task."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers of that request; a value ``env:NAME`` is taken from the worker's environment."""
    function: str = ""
    """``module:function`` of kind python."""
    memory_bytes_max: int | None = None
    """Memory of an attempt, 0 for no limit; None: what the settings say. The same for processes."""
    processes_max: int | None = None
    idle_s: float | None = None
    """How long an attempt may be quiet before it counts as hanging, 0 for ever; None: what the settings say."""

    def called(self) -> str:
        """Return what does the work, for logs: the program, the function, or that it is a call of a URL."""
        return {"command": self.command[0] if self.command else "", "python": self.function}.get(self.kind, self.kind)


@dataclass(frozen=True, slots=True)
class Route:
    """Conditions, and what follows where all of them hold; None leaves a condition or a consequence out.

    ``channel`` and ``type`` are patterns with ``*`` and ``?``. ``sender`` is the
    name of a trusted sender of sealed tasks, ``*`` for any. ``payload`` maps
    traits to values.
    """

    channel: str | None = None
    type: str | None = None
    sender: str | None = None
    payload: Mapping[str, Trait] = field(default_factory=dict)

    executor: str | None = None
    queue: str | None = None
    timeout_s: float | None = None
    idle_s: float | None = None
    max_attempts: int | None = None
    classes: tuple[str, ...] | None = None
    review: bool | None = None
    notify: bool | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """All that decides about where tasks go."""

    executors: Mapping[str, Executor] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    classes: Mapping[str, int] = field(default_factory=lambda: {GPU: 1})
    """Class -> how many of its tasks run at once in the whole fleet."""
    queue: str = "dispatch"
    timeout_s: float = 3600.0
    max_attempts: int = 3
    idle_s: float = 0.0

    def timeout_s_max(self) -> float:
        """Return the longest time limit that any task can have, seconds."""
        return max([self.timeout_s, *(route.timeout_s for route in self.routes if route.timeout_s is not None)])

    def idle_limit(self, route: Route) -> IdleLimit:
        """Return the idle limit of tasks on a route: its own, else its executor's, else that of the settings.

        A call over HTTP waits for its answer all the time, which is quiet by its nature: the settings' is not for it.
        """
        if route.idle_s is not None:
            return IdleLimit(route.idle_s, "idle_s of its route")
        name = route.executor or DEFAULT
        executor = self.executors.get(name, Executor())
        if executor.idle_s is not None:
            return IdleLimit(executor.idle_s, f"idle_s in [executors.{name}]")
        return IdleLimit(0.0 if executor.kind == "http" else self.idle_s)

    def idle_limits(self) -> list[tuple[IdleLimit, float]]:
        """Return every idle limit that a task can have, each with the time limit beside it."""
        return [
            (self.idle_limit(route), self.timeout_s if route.timeout_s is None else route.timeout_s)
            for route in (Route(), *self.routes)
        ]

    def without_route(self, queues: Iterable[str]) -> tuple[str, ...]:
        """Return those queues that no task is ever put in."""
        known = self.queues()
        return tuple(queue for queue in queues if queue not in known)

    def queues(self) -> tuple[str, ...]:
        """Return every queue that a task may be put in, the default first."""
        return tuple(dict.fromkeys([self.queue, *(route.queue for route in self.routes if route.queue)]))


@dataclass(frozen=True, slots=True)
class TaskTraits:
    """What a decision looks at. ``sender`` is None for a task in the open, "" for a sealed one not yet opened."""

    channel: str
    type: str = "task"
    sender: str | None = None
    traits: Mapping[str, Trait] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided about one task."""

    executor: str
    queue: str
    timeout_s: float
    max_attempts: int
    classes: tuple[str, ...] = ()
    """In the order in which they must be taken: sorted, so that two tasks never wait for each other."""
    review: bool = False
    notify: bool = True
    idle: IdleLimit = IdleLimit()


def traits_of(payload: Any) -> dict[str, Trait]:
    """Return the short plain values at the top of a payload, without those that steer dispatch.

    At most TRAITS_MAX, in the order of their names; true and false come first, so that however much else stands in
    a payload no class is lost.
    """
    if not isinstance(payload, dict):
        return {}
    found = {
        name: value
        for name, value in payload.items()
        if isinstance(name, str)
        and len(name) <= TRAIT_CHARS_MAX
        and name not in INTERNAL_FIELDS
        and (isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= TRAIT_CHARS_MAX))
        and not (isinstance(value, int) and abs(value) >= 2**53)
    }
    return {
        name: found[name] for name in sorted(found, key=lambda name: (type(found[name]) is not bool, name))[:TRAITS_MAX]
    }


def choose(routing: Routing, task: TaskTraits) -> Choice:
    """Decide about a task. Total: there is always an answer."""
    route = next((route for route in routing.routes if _holds(route, task)), Route())
    classes = set(route.classes or ())
    for name in routing.classes:
        said = task.traits.get(name)
        if said is True:
            classes.add(name)
        elif said is False:
            classes.discard(name)
    return Choice(
        executor=route.executor or DEFAULT,
        queue=route.queue or routing.queue,
        timeout_s=routing.timeout_s if route.timeout_s is None else route.timeout_s,
        max_attempts=routing.max_attempts if route.max_attempts is None else route.max_attempts,
        classes=tuple(sorted(classes)),
        review=bool(route.review),
        notify=route.notify is not False,
        idle=routing.idle_limit(route),
    )


def shadowed(routes: Sequence[Route]) -> list[tuple[int, int]]:
    """Return the routes that never decide, each with an earlier one that holds wherever it does; numbered from 1."""
    found = []
    for at, later in enumerate(routes):
        first = next((before for before in range(at) if _covers(routes[before], later)), None)
        if first is not None:
            found.append((at + 1, first + 1))
    return found


def _covers(earlier: Route, later: Route) -> bool:
    return (
        _covers_pattern(earlier.channel, later.channel)
        and _covers_pattern(earlier.type, later.type)
        and (earlier.sender in (None, later.sender) or (earlier.sender == "*" and later.sender is not None))
        and all(_same(later.payload.get(name), wanted) for name, wanted in earlier.payload.items())
    )


def _covers_pattern(earlier: str | None, later: str | None) -> bool:
    if earlier in (None, "*", later):
        return True
    return later is not None and not set("*?") & set(later) and _fits(later, str(earlier))


def _holds(route: Route, task: TaskTraits) -> bool:
    return (
        (route.channel is None or _fits(task.channel, route.channel))
        and (route.type is None or _fits(task.type, route.type))
        and (route.sender is None or (bool(task.sender) and route.sender in ("*", task.sender)))
        and all(_same(task.traits.get(name), wanted) for name, wanted in route.payload.items())
    )


def _fits(name: str, pattern: str) -> bool:
    # Brackets are signs of fnmatch, and letters of names here.
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def _same(found: Trait | None, wanted: Trait) -> bool:
    # In Python True equals 1.
    return type(found) is type(wanted) and found == wanted
