"""Lease arithmetic: when to renew, until when to trust, when to grant anew.

A holder counts from the moment it *sent* the claim, start or renewal, on its
own monotonic clock, and stops its attempt after three quarters of the lease.
The grantor counts from the moment it wrote the grant, and grants anew no
earlier than ``regrant_delay_s`` after expiry. The two never compare clocks, so
they may differ by any offset; only their rates must agree within a quarter of
the lease (Gray and Cheriton 1989; the lock-delay is Chubby's, Burrows 2006).

All times are seconds. ``now`` and ``sent_at`` are readings of the caller's clock.
"""

from __future__ import annotations

from typing import Final

RENEW_FRACTION: Final = 0.25
TRUST_FRACTION: Final = 0.75
LATE_REPORT_MAX_S: Final = 30.0
_RETRY_FIRST_S: Final = 0.5
_RETRY_MAX_S: Final = 5.0


def renew_at(sent_at: float, lease_s: float) -> float:
    """Return when to renew a lease whose last successful grant was sent at ``sent_at``."""
    return sent_at + lease_s * RENEW_FRACTION


def trusted_until(sent_at: float, lease_s: float) -> float:
    """Return when the holder must have stopped its attempt unless it renewed meanwhile."""
    return sent_at + lease_s * TRUST_FRACTION


def retry_renewal_at(now: float, failures: int, lease_s: float, rand: float) -> float:
    """Return when to try a failed renewal again.

    ``failures`` counts from 1, ``rand`` is uniform in [0, 1). The pause doubles,
    is jittered down to half, and never exceeds a sixteenth of the lease, so that
    several tries fit between renewal and the end of trust.
    """
    pause = min(_RETRY_FIRST_S * 2.0 ** (min(failures, 10) - 1), _RETRY_MAX_S, lease_s / 16)
    return now + pause * (0.5 + 0.5 * rand)


def late_report_pause_s(lease_s: float, rand: float) -> float:
    """Return the pause before reports that were left are tried again.

    About as long as between renewals, so that a lease that was extended when the
    service came back still holds, but at most LATE_REPORT_MAX_S; spread by ``rand``, uniform
    in [0, 1), from half to one and a half, so that not all hosts come at once.
    """
    return min(lease_s * RENEW_FRACTION, LATE_REPORT_MAX_S) * (0.5 + rand)


def may_grant_again(now: float, expires_at: float, regrant_delay_s: float) -> bool:
    """Say whether the grantor may take an expired lease back and offer the task again."""
    return now >= expires_at + regrant_delay_s
