"""Whole hosts are lost: cut off, without power, frozen. Each is a network namespace with an address of its own."""

from __future__ import annotations

import pytest

from tests.chaos.hosts import run
from tests.support.netns import why_not
from tests.support.promises import FairClock

TASKS = 300


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.timeout(600)
def test_tasks_survive_the_loss_of_whole_hosts() -> None:
    """300 tasks over three hosts, all of which are lost once: each ends once, in time, and never lives twice.

    The host that is cut off by black-hole routes, without a closed connection
    to tell it, kills its own children before their tasks run elsewhere. On the
    host that is frozen the warden is frozen too: that is the documented window
    in which an old child may run on, until the warden is scheduled after the
    thaw. It is held to 0.2 s, and what it does there is accepted by nobody.
    """
    with FairClock() as clock:
        report = run(TASKS)
    assert report.wrong(clock.slowness) == [], report.text()
    assert report.verdict.counts["acknowledged"] >= TASKS
