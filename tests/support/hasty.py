"""Runs a dispatch command with the pauses of callbacks shortened: ``python -m tests.support.hasty ingress``.

The schedule of days becomes one of tenths of a second; ``HASTY_LEASE_S`` is how
long a delivery is taken for, ``HASTY_HANG`` names a file whose existence makes
a delivery stop for ever between being sent and being reported.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from dispatch.core import delivery
from dispatch.ingress import deliveries, outbox

FACTOR = 1 / 50
"""Five seconds become a tenth of one; the later, longer pauses are that long as well."""

if __name__ == "__main__":
    delivery.SCHEDULE_S = tuple(min(pause_s, 5.0) * FACTOR for pause_s in delivery.SCHEDULE_S)
    outbox.LEASE_S = float(os.environ.get("HASTY_LEASE_S", "2"))
    settle = deliveries.Deliveries._settle
    hang = Path(os.environ.get("HASTY_HANG", "/nonexistent"))

    def settle_or_hang(self, *args):
        """Report, unless the test wants to kill us here."""
        if hang.exists():
            time.sleep(600)
        return settle(self, *args)

    deliveries.Deliveries._settle = settle_or_hang
    from dispatch.cli.main import main

    main()
