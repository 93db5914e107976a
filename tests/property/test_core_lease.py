"""The holder stops before the grantor grants anew, whatever the clocks show and whatever the network loses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.lease import late_report_pause_s, may_grant_again, renew_at, retry_renewal_at, trusted_until

lease = st.floats(0.4, 86_400)
rate = st.floats(0.9, 1.1)
offset = st.floats(-1e9, 1e9)


@given(
    lease_s=lease,
    regrant_delay_s=st.floats(0, 600),
    holder_rate=rate,
    grantor_rate=rate,
    holder_offset=offset,
    grantor_offset=offset,
    sent_at=st.floats(0, 1e6),
    travel_s=st.floats(0, 100),
)
def test_holder_stops_before_the_grantor_grants_anew(
    lease_s: float,
    regrant_delay_s: float,
    holder_rate: float,
    grantor_rate: float,
    holder_offset: float,
    grantor_offset: float,
    sent_at: float,
    travel_s: float,
) -> None:
    """With clocks off by any offset and by 10 % in rate, trust ends before the lease can be given away.

    Times named without a clock are true time; each side reads its own clock.
    """
    granted_at = sent_at + travel_s
    holder_sent = holder_offset + holder_rate * sent_at
    stop_at = (trusted_until(holder_sent, lease_s) - holder_offset) / holder_rate
    grantor_granted = grantor_offset + grantor_rate * granted_at
    expires_at = grantor_granted + lease_s

    def grantor_clock(true_time: float) -> float:
        return grantor_offset + grantor_rate * true_time

    assert stop_at < granted_at + lease_s / grantor_rate
    assert not may_grant_again(grantor_clock(stop_at), expires_at, regrant_delay_s)


@given(lease_s=lease, sent_at=st.floats(0, 1e6))
def test_renewal_comes_well_before_the_end_of_trust(lease_s: float, sent_at: float) -> None:
    """There is half a lease between the first try to renew and the end of trust."""
    assert sent_at < renew_at(sent_at, lease_s) < trusted_until(sent_at, lease_s) < sent_at + lease_s
    assert trusted_until(sent_at, lease_s) - renew_at(sent_at, lease_s) >= lease_s * 0.49


@given(lease_s=lease, failures=st.integers(1, 10_000), rand=st.floats(0, 1, exclude_max=True))
def test_a_failed_renewal_is_tried_again_soon(lease_s: float, failures: int, rand: float) -> None:
    """The pause grows, stays positive, and never exceeds a sixteenth of the lease or five seconds."""
    pause = retry_renewal_at(0.0, failures, lease_s, rand)
    assert 0 < pause <= min(lease_s / 16, 5.0)
    assert pause >= min(0.5, lease_s / 16) / 2


@given(lease_s=lease, draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=7, max_size=7))
def test_several_tries_fit_before_the_end_of_trust(lease_s: float, draws: list[float]) -> None:
    """Seven failed renewals in a row still leave time for an eighth."""
    now = renew_at(0.0, lease_s)
    for failures, rand in enumerate(draws, start=1):
        now = retry_renewal_at(now, failures, lease_s, rand)
    assert now <= trusted_until(0.0, lease_s)


@given(lease_s=lease, draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=9))
def test_late_reports_come_spread_and_before_the_end_of_a_lease(lease_s: float, draws: list[float]) -> None:
    """Half to one and a half of a quarter of the lease, or of half a minute: never later than three eighths of it."""
    base = min(lease_s / 4, 30.0)
    for rand in draws:
        assert base / 2 <= late_report_pause_s(lease_s, rand) <= min(lease_s * 3 / 8, 45.0)


def test_nothing_is_granted_anew_before_the_delay() -> None:
    """An expired lease is given away at expiry plus the delay, not a moment earlier."""
    assert not may_grant_again(114.99, 100.0, 15.0)
    assert may_grant_again(115.0, 100.0, 15.0)
