"""How many executors listen on each channel, over all processes of the service.

Each process writes what it sees; what was not confirmed for ``STALE_MS`` does
not count any more. It is a hint for people who ask why nothing happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, func, insert, select

from dispatch.service.schema import listeners

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatch.service.store import Tx

STALE_MS: Final = 60_000
EVERY: Final = ""
"""The channel of those who listen to all."""


def report(tx: Tx, process: str, counts: Mapping[str, int]) -> None:
    """Replace what ``process`` said, and forget processes that say nothing any more."""
    c = listeners.c
    tx.run(delete(listeners).where((c.process == process) | (c.seen_at < tx.now_ms - STALE_MS)))
    for channel, count in counts.items():
        values = {"process": process, "channel": channel, "count": count, "seen_at": tx.now_ms}
        tx.run(insert(listeners).values(values))


def listening(tx: Tx, channel: str) -> int:
    """Return how many executors listen on ``channel``."""
    c = listeners.c
    query = select(func.coalesce(func.sum(c.count), 0)).where(
        c.channel.in_([channel, EVERY]), c.seen_at >= tx.now_ms - STALE_MS
    )
    return int(tx.one(query)[0])
