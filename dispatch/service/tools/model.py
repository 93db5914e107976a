"""What a tool is, for the registry that makes tools and the faces that show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dispatch.service.access import Access
from dispatch.service.rows import OWN_WORDS, Ref

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.access import Caller
    from dispatch.service.store import Store
    from dispatch.service.tools.news import News

Progress = "Callable[[float, float | None, str], Awaitable[None]]"
"""Called with (seconds so far, seconds in all or None, what is going on); values rise."""


async def no_progress(_done: float, _total: float | None, _message: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool, its arguments read and within bounds."""

    store: Store
    caller: Caller
    arguments: dict[str, Any]
    news: News
    progress: Callable[[float, float | None, str], Awaitable[None]] = no_progress
    lock_ms: int = 3_600_000
    """How long a lock lasts that names no length."""

    def ref(self, name: str = "task_id") -> Ref:
        """Return the task that an argument names."""
        reporter = self.caller.reporter(self.arguments.get("lease_token"))
        return Ref(self.arguments[name], within=self.caller.projects, reporter=reporter, words=OWN_WORDS)

    def actor(self) -> Actor:
        """Return whom the call acts as. Raises ForbiddenError."""
        return self.caller.as_agent(self.arguments["agent_id"])

    def lease_ms(self) -> int | None:
        """Return the length of the lock that the call asks for; None never runs out."""
        asked = self.arguments.get("lease_s", self.lock_ms / 1000)
        return None if asked is None else round(asked * 1000)


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: how it is read (raises InvalidInputError) and what a client is told about it."""

    parse: Callable[[str, Any], Any]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. ``run`` returns the structured result, a JSON object, or raises TaskError."""

    name: str
    title: str
    description: str
    run: Callable[[Call], Awaitable[dict[str, Any]]]
    params: Mapping[str, Param]
    required: tuple[str, ...]
    output: Mapping[str, Any]
    """JSON schema of the result."""
    access: Access = Access.WRITE
    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False


class Toolbox(Protocol):
    """A set of tools that can be called, in this process or through a service elsewhere.

    Tools touch nothing but the task service: their ``openWorldHint`` is always false.
    """

    async def definitions(self, profile: str = "default") -> Sequence[Mapping[str, Any]]:
        """Return what a client is told of each tool, always in the same order.

        Keys: ``name title description inputSchema outputSchema annotations`` (with ``readOnlyHint
        destructiveHint idempotentHint openWorldHint``). Raises InvalidInputError for an unknown profile.
        """
        ...

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        caller: Caller,
        progress: Callable[[float, float | None, str], Awaitable[None]] = no_progress,
    ) -> dict[str, Any]:
        """Run a tool and return its result. Raises TaskError (NotFoundError for an unknown tool).

        A cancelled call has either happened as a whole or not at all.
        """
        ...
