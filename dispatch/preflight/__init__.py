"""Checks before the start: is everything there that a process needs, and is it set up safely?

``preflight`` is what ingress and workers do first: it raises one clear
sentence before anything is claimed. ``dispatch doctor`` shows all checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from dispatch.preflight.broker import check_redis, check_workers
from dispatch.preflight.host import check_data_dir, check_executor, check_idle, check_limits, check_routes, check_user
from dispatch.preflight.sealing import check_sealing
from dispatch.preflight.service import check_keys, check_service
from dispatch.preflight.telling import check_callbacks, check_traces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dispatch.preflight.check import Check
    from dispatch.settings import Settings

Need = Literal["service", "redis", "executor", "data_dir", "user", "limits", "idle", "callbacks", "traces"]

_LOOKS: Final[dict[Need, Callable[[Settings], list[Check]]]] = {
    "service": check_service,
    "redis": check_redis,
    "executor": check_executor,
    "data_dir": check_data_dir,
    "user": check_user,
    "limits": check_limits,
    "idle": check_idle,
    "callbacks": check_callbacks,
    "traces": check_traces,
}


def preflight(settings: Settings, need: Iterable[Need]) -> list[Check]:
    """Make the checks that a process needs and return them, warnings included.

    Raises ConfigurationError, AuthenticationError, GatewayUnavailableError or
    BrokerUnavailableError for the first one that failed.
    """
    found: list[Check] = []
    for name in need:
        checks = _LOOKS[name](settings)
        for check in checks:
            if check.state == "error":
                raise check.error()
        found += checks
    return found


def check_all(settings: Settings) -> list[Check]:
    """Make every check."""
    return [
        check
        for look in (*_LOOKS.values(), check_routes, check_sealing, check_keys, check_workers)
        for check in look(settings)
    ]
