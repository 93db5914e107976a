"""All tools in their order, and the toolbox that runs them on a store."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Final

from dispatch.errors import InvalidInputError, NotFoundError
from dispatch.service import strict
from dispatch.service.tools import changing, claiming_next, creating, explaining, locking, params, reading, thread
from dispatch.service.tools.model import Call, Tool, no_progress
from dispatch.service.tools.news import News

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from dispatch.service.access import Caller
    from dispatch.service.store import Store

_UNORDERED: Final = {
    tool.name: tool
    for module in (creating, reading, locking, changing, thread, claiming_next, explaining)
    for tool in module.TOOLS
}
_ORDER: Final = (
    "core_create_task",
    "core_get_task",
    "core_claim_task",
    "core_claim_and_start_task",
    "core_transition_task",
    "core_update_task",
    "core_list_tasks",
    "core_release_task_lock",
    "core_recover_task",
    "post_task_message",
    "list_task_messages",
    "claim_next",
    "explain",
    "unblocks",
    "task_history",
    "create_graph",
)
TOOLS: Final[Mapping[str, Tool]] = {name: _UNORDERED[name] for name in _ORDER}

_WORKER: Final = (
    "core_get_task",
    "core_claim_and_start_task",
    "core_transition_task",
    "core_release_task_lock",
    "post_task_message",
    "list_task_messages",
    "claim_next",
    "explain",
)
PROFILES: Final[Mapping[str, tuple[str, ...]]] = {
    "default": _ORDER,
    "page": _ORDER[:11],
    "worker": _WORKER,
    "reader": tuple(name for name in _ORDER if TOOLS[name].read_only),
}
"""Which tools a client is told of; every tool can be called under every profile."""


def definition(tool: Tool) -> dict[str, Any]:
    """Return what a client is told of a tool."""
    return {
        "name": tool.name,
        "title": tool.title,
        "description": tool.description,
        "inputSchema": params.input_schema(tool.params, tool.required),
        "outputSchema": dict(tool.output),
        "annotations": {
            "readOnlyHint": tool.read_only,
            "destructiveHint": tool.destructive,
            "idempotentHint": tool.idempotent,
            "openWorldHint": False,
        },
    }


class LocalToolbox:
    """The tools on a store of this process; see ``Toolbox``."""

    def __init__(self, store: Store, *, lock_ms: int) -> None:
        """``lock_ms`` is how long a lock lasts that names no length."""
        self._store = store
        self._lock_ms = lock_ms
        self._news = News(store.bus)

    async def definitions(self, profile: str = "default") -> Sequence[Mapping[str, Any]]:
        """Return what a client is told of each tool of a profile. Raises InvalidInputError."""
        names = PROFILES.get(profile)
        if names is None:
            raise InvalidInputError(f"There is no profile {profile[:40]!r}; there are {', '.join(PROFILES)}.")
        return [definition(TOOLS[name]) for name in names]

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        caller: Caller,
        progress: Callable[[float, float | None, str], Awaitable[None]] = no_progress,
    ) -> dict[str, Any]:
        """Run a tool. Raises TaskError."""
        tool = TOOLS.get(name)
        if tool is None:
            near = difflib.get_close_matches(name[:80], TOOLS, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" There are {', '.join(TOOLS)}."
            raise NotFoundError(f"There is no tool {name[:80]!r}.{hint}")
        caller.require(tool.access)
        strict.check_value(arguments)
        found = strict.parse_object(dict(arguments), params.parsers(tool.params), required=tool.required)
        return await tool.run(Call(self._store, caller, found, self._news, progress, self._lock_ms))
