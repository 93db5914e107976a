"""Whether the service accepts our key: an operator must mend it, so it is said once and tried on and on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dispatch.errors import AuthenticationError


class KeyWatch:
    """Counts refusals in a row. ``refusals`` is 0 while the key is good, as far as anybody knows."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.refusals = 0

    def refused(self, exc: AuthenticationError) -> None:
        """Note that the service refused the key."""
        if not self.refusals:
            self._log.error("service_refuses_key", reason=str(exc))
        self.refusals += 1

    def accepted(self) -> None:
        """Note that it accepted the key."""
        if self.refusals:
            self._log.info("service_accepts_key")
        self.refusals = 0
