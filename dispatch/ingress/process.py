"""The ingress process from outside: who it is, whether the service takes it for that, and its signals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvloop

from dispatch import metrics
from dispatch.asynchronous import end_the_rest, on_stop
from dispatch.ats import answers, protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.choose import extensions_of_health
from dispatch.ats.model import Actor
from dispatch.errors import ConfigurationError
from dispatch.ingress.identity import Identity
from dispatch.ingress.main import Ingress
from dispatch.log import get_logger
from dispatch.traces import recorder

if TYPE_CHECKING:
    from dispatch.settings import Settings


def _check_identity(wanted: str, known_as: str) -> None:
    """Raise ConfigurationError when the key makes us somebody else: our own claims would look like another's."""
    if known_as not in ("", wanted):
        raise ConfigurationError(
            f"The key of this ingress acts as {known_as}, not as {wanted}. Set DISPATCH_ACTOR_ID to {known_as}, or to"
            f" {known_as}-HOST where several ingresses share the key; or use a key whose actor begins {wanted}."
        )


async def _serve(settings: Settings, actor: Actor) -> None:
    async with AsyncClient(protocol.endpoint_of(settings.ats), actor) as client:
        extensions = extensions_of_health(await client.send(protocol.health()))
        if "auth.me" in extensions:
            _check_identity(actor.id, answers.me_of(await client.send(protocol.me()))[0])
    if settings.metrics.ingress_port:
        metrics.begin(metrics.INGRESS)
        metrics.serve(settings.metrics.bind, settings.metrics.ingress_port, get_logger("ingress"))
    ats_url = protocol.endpoint_of(settings.ats).base_url
    recorder.begin(recorder.INGRESS, settings, get_logger("ingress"), ats_url=ats_url)
    ingress = Ingress(settings, actor, extensions=extensions)
    on_stop(ingress.stop)
    try:
        await ingress.run()
    finally:
        await end_the_rest()


def run(settings: Settings) -> None:
    """Run one ingress until SIGTERM, SIGINT or SIGHUP.

    Raises DispatchError (with its exit code) when it cannot start. The caller has
    configured logging and run the preflight.
    """
    identity = Identity.take(settings.ats.actor_id, settings.local.data_dir / "ingress")
    try:
        actor = Actor("agent", identity.actor_id, settings.ats.actor_name)
        uvloop.run(_serve(settings, actor))
    finally:
        recorder.end()
        identity.release()
