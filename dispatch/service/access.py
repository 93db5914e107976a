"""Who calls, what they may do, and where: what authentication leaves behind for every face."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

from dispatch.ats.model import Actor
from dispatch.errors import ForbiddenError

_AGENTS: Final = uuid.UUID("6f1d3c1e-5d0b-5a57-9c0e-6d1f2b7a4c11")
"""The namespace in which actors that are no UUID themselves become agents."""


class Access(IntEnum):
    """What a key allows; each level includes those below it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Caller:
    """The one who makes a request. Without API keys everybody on this machine is an admin of everything."""

    actor: Actor
    access: Access = Access.ADMIN
    projects: frozenset[int] | None = None
    """Numbers of the projects that the key is for; None means all."""
    is_keyed: bool = False
    """An API key vouches for ``actor``."""
    key_id: str = ""
    """The public id of that key."""

    def require(self, access: Access) -> None:
        """Raise ForbiddenError unless the caller has at least this access."""
        if self.access < access:
            raise ForbiddenError(
                f"This needs a key with {access.name.lower()} access; the key of {self.actor.id} has"
                f" {self.access.name.lower()} access."
            )

    def reporter(self, token: int | None) -> Actor | None:
        """Return who must hold a task that the caller reports on by its fencing token; None where the token is enough.

        Everybody who may read sees the token, so of a key's agent more is asked, unless it may act as any agent.
        """
        is_bound = self.is_keyed and self.access < Access.ADMIN and self.actor.type == "agent"
        return self.actor if is_bound and token is not None else None

    def as_agent(self, agent_id: str) -> Actor:
        """Return whom a call with this ``agent_id`` (lower-case UUID) acts as.

        A key speaks for its own agent only, unless it is an admin's. Raises ForbiddenError.
        """
        if agent_id == agent_uuid(self.actor.type, self.actor.id):
            return self.actor
        if self.is_keyed and self.access < Access.ADMIN:
            raise ForbiddenError(
                f"The key of {self.actor.name} acts as agent {agent_uuid(self.actor.type, self.actor.id)},"
                f" not as {agent_id}.",
                agent_id=agent_uuid(self.actor.type, self.actor.id),
            )
        return Actor("agent", agent_id, f"agent-{agent_id[:8]}")


NOBODY: Final = Caller(Actor("agent", "anonymous", "anonymous"), Access.READ, frozenset())
"""Whoever asks for what everybody may see."""


@lru_cache(maxsize=4096)
def agent_uuid(kind: str, ident: str) -> str:
    """Return the agent's UUID that an actor is: its id if that is one, else UUIDv5 of type and id."""
    if kind == "agent" and len(ident) == 36:
        try:
            return str(uuid.UUID(ident))
        except ValueError:
            pass
    return str(uuid.uuid5(_AGENTS, f"{kind}:{ident}"))
