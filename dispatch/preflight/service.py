"""Is the task service there, and does it take us?"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dispatch.ats import answers, choose, protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor
from dispatch.errors import AuthenticationError, ConfigurationError, GatewayError, GatewayUnavailableError
from dispatch.preflight.check import Check

if TYPE_CHECKING:
    from dispatch.settings import Settings

_TIMEOUT_S: Final = 3.0
_DOCTOR: Final = Actor("system", "dispatch-doctor", "dispatch doctor")


def check_service(settings: Settings) -> list[Check]:
    """Is the task service there, does it speak ATS, does it take our key, does it fence?"""
    ats = settings.ats
    try:
        client = Client(protocol.endpoint_of(ats), _DOCTOR)
    except ConfigurationError as exc:
        return [Check("service", "error", str(exc))]
    url = client.endpoint.base_url
    with contextlib.closing(client):
        try:
            health = client.send(protocol.health(), deadline_s=_TIMEOUT_S)
            extensions = choose.extensions_of_health(health)
            client.send(protocol.list_tasks(limit=1, channel=ats.channels[0]), deadline_s=_TIMEOUT_S)
            if "auth.me" in extensions:
                _check_access(client)
        except GatewayUnavailableError as exc:
            advice = "Start it with 'dispatch serve' or 'dispatch up', or set DISPATCH_ATS_URL."
            return [Check("service", "error", str(exc), advice, GatewayUnavailableError)]
        except AuthenticationError as exc:
            advice = "Set DISPATCH_ATS_TOKEN_FILE to a file with a key that may read and claim tasks."
            return [
                Check("service", "error", f"The task service at {url} refuses us: {exc}", advice, AuthenticationError)
            ]
        except GatewayError as exc:
            advice = "Check DISPATCH_ATS_URL, DISPATCH_ATS_ORG and DISPATCH_ATS_PROJECT."
            return [Check("service", "error", f"The task service at {url} refuses to list tasks: {exc}", advice)]
    if choose.has_fencing(extensions):
        sentence = f"The task service at {url} answers and has fencing tokens."
        return [Check("service", "ok", sentence, extensions=extensions)]
    advice = "Known limits are in docs/protocol.md. Set DISPATCH_LEASE_MS above DISPATCH_TIMEOUT_MS if it cannot renew."
    sentence = f"The task service at {url} answers, but has no fencing tokens."
    return [Check("service", "warning", sentence, advice, extensions=extensions)]


def _check_access(client: Client) -> None:
    """Raise AuthenticationError when our key may only read."""
    _, access = answers.me_of(client.send(protocol.me(), deadline_s=_TIMEOUT_S))
    if access == "read":
        raise AuthenticationError("the key may only read.")


def check_keys(settings: Settings) -> list[Check]:
    """Would the task service serve somebody without a key? Says nothing when it does not answer."""
    try:
        where = replace(protocol.endpoint_of(settings.ats), token=None)
        with contextlib.closing(Client(where, _DOCTOR)) as client:
            client.send(protocol.list_tasks(limit=1), deadline_s=_TIMEOUT_S)
    except AuthenticationError:
        return [Check("keys", "ok", "The task service wants an API key from everybody.")]
    except (GatewayError, ConfigurationError):
        return []
    sentence = "The task service has no API keys: whoever reaches it may act as anybody."
    if where.host in ("localhost", "::1") or where.host.startswith("127."):
        return [Check("keys", "ok", f"{sentence} It listens on this machine.")]
    return [Check("keys", "warning", sentence, "Make keys with 'dispatch api-key create' where it runs.")]
