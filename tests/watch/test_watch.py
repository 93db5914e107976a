"""A running task is watched from another host: every line, once, in order, within two seconds."""

from __future__ import annotations

import pytest

from tests.support.netns import why_not
from tests.support.promises import FairClock
from tests.watch.run import RESTARTS, run

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seconds", "every_s", "restarts", "away_s"),
    [
        pytest.param(5.0, 0.2, ("service",), 0.5, id="short"),
        pytest.param(600.0, 1.0, RESTARTS, 3.0, marks=pytest.mark.slow, id="ten minutes"),
    ],
)
def test_somebody_elsewhere_sees_each_line_within_two_seconds(
    seconds: float, every_s: float, restarts: tuple[str, ...], away_s: float
) -> None:
    """Worker, service and ``dispatch logs -f`` are on hosts of their own; each line says when it was written.

    Restarts of ingress and Redis leave no trace (in the long version). After
    one of the service comes all that was written meanwhile.
    """
    with FairClock() as clock:
        report = run(seconds, every_s=every_s, restarts=restarts, away_s=away_s)
    assert report.wrong(clock.slowness) == [], report.text()
