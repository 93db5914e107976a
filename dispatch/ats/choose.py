"""Which gateway a service needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dispatch.ats import answers, protocol
from dispatch.ats.fenced import FencedGateway
from dispatch.ats.plain import PlainGateway
from dispatch.errors import GatewayUnavailableError

if TYPE_CHECKING:
    from redis import Redis

    from dispatch.ats.client import Client
    from dispatch.ats.gateway import TaskGateway


def extensions_of_health(answer: Any) -> frozenset[str]:
    """Return what a service announces in its answer to ``/health``.

    Raises GatewayUnavailableError when the answer is not that of a task service.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("status"), str):
        raise GatewayUnavailableError(
            "What answers there is not a task service: its /health has no status. Check DISPATCH_ATS_URL."
        )
    return answers.extensions_of(answer)


def has_fencing(extensions: frozenset[str]) -> bool:
    """Say whether the fleet may rely on the service's own fencing tokens."""
    return extensions >= answers.FENCING_EXTENSIONS


def connect_gateway(client: Client, redis: Redis, *, lease_s: float, actor_name: str = "dispatch") -> TaskGateway:
    """Ask the service what it can do and return the gateway for it.

    ``redis`` is used for services without fencing tokens only. Raises what
    ``Client.send`` raises.
    """
    if has_fencing(extensions_of_health(client.send(protocol.health()))):
        return FencedGateway(client, lease_s=lease_s, actor_name=actor_name)
    return PlainGateway(client, redis, lease_s=lease_s, actor_name=actor_name)
