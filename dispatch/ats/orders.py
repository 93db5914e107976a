"""Orders (dispatch.core.steering) as Redis keeps them for a foreign ATS, and drains as workers look for them.

Weaker than our own service: what Redis loses is forgotten. Times in Redis are
seconds since the epoch by the clock of Redis.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dispatch.ats.fences import service_key
from dispatch.broker import DRAIN_KEY, STEERING_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dispatch.core.steering import Order


def orders_key(base_url: str) -> str:
    """Return the hash that holds the orders about one service."""
    return STEERING_KEY + service_key(base_url)


def field_of(kind: str, name: str) -> str:
    """Return the field of one order in that hash."""
    return f"{kind}:{name}"


def record(kind: str, name: str, *, note: str, by: str, now_s: float, until_s: float | None) -> str:
    """Return the value of one order in that hash."""
    return json.dumps(
        {"kind": kind, "name": name, "note": note, "by": by, "at": _iso(now_s), "until_s": until_s}, ensure_ascii=False
    )


def rows_of(values: Iterable[str], now_s: float) -> list[dict[str, Any]]:
    """Read the values of that hash into orders as our own service tells them; what is over is left out."""
    found = []
    for text in values:
        try:
            row = json.loads(text)
            until_s = row.pop("until_s", None)
            left_ms = None if until_s is None else round((float(until_s) - now_s) * 1000)
        except (ValueError, TypeError, AttributeError):
            continue
        if left_ms is None or left_ms > 0:
            found.append({**row, "until": None if until_s is None else _iso(float(until_s)), "left_ms": left_ms})
    return found


def drain_key(host: str) -> str:
    """Return the key that the workers of a host look for."""
    return DRAIN_KEY + host


def drains_of(base_url: str, hosts: Mapping[str, Order]) -> dict[str, str]:
    """Return drain key -> value. The value names the service that ordered it: several may share one Redis."""
    return {
        drain_key(host): json.dumps({"service": service_key(base_url), "note": order.note}, ensure_ascii=False)
        for host, order in hosts.items()
    }


def is_ours(base_url: str, text: str | None) -> bool:
    """Say whether a drain's value was written for this service."""
    try:
        return bool(json.loads(text or "null")["service"] == service_key(base_url))
    except (ValueError, TypeError, KeyError):
        return False


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
