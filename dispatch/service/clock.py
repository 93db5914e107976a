"""The service's one clock."""

from __future__ import annotations

import time


class Clock:
    """Wall time in milliseconds, anchored once to the monotonic clock.

    A step of the machine's wall clock (NTP, an operator) therefore expires no lease.
    """

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ms(self) -> int:
        """Return milliseconds since the Unix epoch; never goes back."""
        return (time.monotonic_ns() + self._offset_ns) // 1_000_000

    def set(self, now_ms: int) -> None:
        """Make it now_ms. Only before the service serves: all services of one database go by the database's clock."""
        self._offset_ns = now_ms * 1_000_000 - time.monotonic_ns()
