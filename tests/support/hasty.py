"""Runs a dispatch command with the patience of callbacks shortened: ``python -m tests.support.hasty ingress``.

The schedule of days becomes one of tenths of a second, a try may last two
seconds. ``HASTY_LEASE_S`` is how long a delivery is taken for; ``HASTY_HANG``
names a file whose existence makes the whole process stand still between
sending a callback, which was taken, and reporting it.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from dispatch.core import delivery
from dispatch.ingress import deliveries, outbox
from dispatch.notify import telegram, webhook

PAUSE_S = 0.1
"""What every pause of the schedule becomes."""


def hurry() -> None:
    """Shorten the patience of this process."""
    delivery.SCHEDULE_S = (0.0, *(PAUSE_S for _ in delivery.SCHEDULE_S[1:]))
    outbox.LEASE_S = float(os.environ.get("HASTY_LEASE_S", "5"))
    deliveries.PUT_BACK_S = 0.2
    hang = Path(os.environ.get("HASTY_HANG", "/nonexistent"))
    settle, make_webhooks, make_telegram = (
        deliveries.Deliveries._settle,
        webhook.Webhooks.__init__,
        telegram.Telegram.__init__,
    )

    def settle_or_hang(self, one, name, verdict):
        if verdict.outcome == "delivered" and hang.exists():
            time.sleep(600)
        return settle(self, one, name, verdict)

    deliveries.Deliveries._settle = settle_or_hang
    webhook.Webhooks.__init__ = lambda self, rules: make_webhooks(self, replace(rules, connect_s=1.5, total_s=2.0))
    telegram.Telegram.__init__ = lambda self, *args: make_telegram(self, *args, timeout_s=2.0)


if __name__ == "__main__":
    hurry()
    from dispatch.cli.main import main

    main()
