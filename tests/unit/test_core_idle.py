"""When an attempt counts as hanging: what begins anew, what is not counted, and whose limit it is."""

from __future__ import annotations

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.core import idle
from dispatch.core.idle import IdleLimit, Quiet, Sight
from dispatch.core.retry import EndReason
from dispatch.core.routing import TaskTraits, choose
from dispatch.routing_settings import read
from dispatch.runner import attempt, telling
from dispatch.runner.attempt import AttemptEnd
from dispatch.runner.idle import IdleWatch
from dispatch.runner.tree import TICKS_PER_S, Stat

LIMIT_S = 600.0
EVERY_S = 30.0


def looks(count: int, *, used_s: float = 0.0, every_s: float = EVERY_S, is_stopped: bool = False) -> Quiet:
    """Look so often at an attempt that writes nothing."""
    quiet = Quiet(0.0)
    for number in range(1, count + 1):
        quiet = idle.after(quiet, Sight(number * every_s, 0, used_s, is_stopped), LIMIT_S)
    return quiet


def test_an_attempt_hangs_when_it_was_quiet_for_the_whole_limit() -> None:
    """Not one look sooner; an event loop that idles does not hide it, and nothing hangs without a limit."""
    assert not idle.hangs(looks(19), LIMIT_S)
    assert idle.hangs(looks(20), LIMIT_S)
    assert idle.hangs(looks(20, used_s=EVERY_S * 0.0015), LIMIT_S)
    assert not idle.hangs(looks(1000), 0.0)
    assert idle.look_every_s(0.0) == math.inf


@pytest.mark.parametrize(
    ("quiet", "why"),
    [
        (looks(1000, used_s=EVERY_S * 0.004), "it uses a little processor time all along"),
        (looks(1000, is_stopped=True), "somebody stopped it"),
        (looks(5, every_s=86_400.0), "the machine slept for days between looks"),
        (idle.after(looks(19), Sight(600.0, 1, 0.0), LIMIT_S), "it wrote one byte in the last moment"),
        (idle.after(looks(19), Sight(600.0, 0, 2.0), LIMIT_S), "it worked for two seconds in the last moment"),
        (idle.after(looks(19), Sight(0.0, 0, 0.0), LIMIT_S), "the clock went back"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_hanging(quiet: Quiet, why: str) -> None:
    """Each of these alone keeps an attempt."""
    assert not idle.hangs(quiet, LIMIT_S), why


sights = st.lists(st.tuples(st.floats(0, 1e6), st.booleans(), st.floats(0, 0.5), st.booleans()), max_size=200)


@given(sights, st.floats(1, 604_800))
def test_only_time_that_was_looked_at_counts(steps: list[tuple[float, bool, float, bool]], limit_s: float) -> None:
    """However long the pauses are, an attempt is kept for at least twenty looks after its last sign of life."""
    quiet, at, written, since = Quiet(0.0), 0.0, 0, 0
    for gap_s, writes, used_s, is_stopped in steps:
        at, written = at + gap_s, written + writes
        before, quiet = quiet, idle.after(quiet, Sight(at, written, used_s, is_stopped), limit_s)
        since = 0 if quiet.for_s == 0.0 < before.for_s or writes else since + (not is_stopped)
        assert not writes or quiet == Quiet(at, written)
        assert not idle.hangs(quiet, limit_s) or since >= 20


def test_processor_time_is_what_grows() -> None:
    """A process that ends takes nothing back, a new one and reaped ones add; a stopped one stops the count."""
    watch = IdleWatch(IdleLimit(20.0))
    watch.begin(0.0, 7.0)

    def seen(at: float, *ticks: int, state: str = "S", reaped_s: float = 7.0) -> float:
        watch.hangs(at, 0, lambda: [Stat(pid, state, 1, 1, pid, used) for pid, used in enumerate(ticks)], reaped_s)
        assert watch._quiet is not None
        return watch._quiet.processor_s * TICKS_PER_S

    assert seen(1.0, 1, 1) == 2
    assert seen(2.0, 1) == 2
    assert seen(3.0, 2) == 3
    assert watch._quiet is not None
    assert watch._quiet.for_s == 3.0
    assert seen(4.0, 2, state="t") == 3
    assert watch._quiet.for_s == 3.0
    assert seen(4.5, 2, reaped_s=7.02) == pytest.approx(5)
    assert seen(5.0, 900, reaped_s=7.02) == 0
    assert watch._quiet.for_s == 0.0


def test_the_reason_says_what_why_and_what_to_do() -> None:
    """The same for a sealed task, of which nothing that its command said is told."""
    said = idle.reason(IdleLimit(600, "idle_s in [executors.default]"))
    assert said == (
        "wrote nothing and used almost no processor time for 10 min (idle_s in [executors.default]), so it was stopped"
        " as hanging; look for a question that nobody answers or a dead connection, and if it may be quiet for so long,"
        " raise idle_s in [executors.default]"
    )
    whole = attempt.describe(EndReason.IDLE, -15, "Proceed? [y/N]", timeout_s=1, limit=said)
    assert whole == f"{said}; it wrote last: Proceed? [y/N]"
    end = AttemptEnd(EndReason.IDLE, signal=15, detail=f"{said}: canary", limit=said)
    assert telling.without_content(end, 1.0).reason == said
    assert [idle.shown_s(seconds) for seconds in (7200, 5400, 90, 1.5)] == ["2 h", "90 min", "90 s", "1.5 s"]


TABLES = """
[executors.default]
command = "x"
[executors.api]
kind = "http"
url = "https://x"
[executors.slow]
command = "x"
idle_s = 50
[[routes]]
type = "api"
executor = "api"
[[routes]]
type = "waited"
executor = "api"
idle_s = 7
[[routes]]
type = "slow"
executor = "slow"
[[routes]]
type = "free"
executor = "slow"
idle_s = 0
"""


@pytest.mark.parametrize(
    ("type_", "limit_s", "name"),
    [
        ("task", 9.0, "idle_s"),
        ("api", 0.0, "idle_s"),
        ("waited", 7.0, "idle_s of its route"),
        ("slow", 50.0, "idle_s in [executors.slow]"),
        ("free", 0.0, "idle_s of its route"),
    ],
)
def test_whose_limit_it_is(type_: str, limit_s: float, name: str) -> None:
    """The route's before the executor's before the settings', which is not for calls over HTTP; 0 is none."""
    routing = read(tomllib.loads(TABLES), command=("x",), queue="q", timeout_s=60.0, max_attempts=3, idle_s=9.0)
    assert choose(routing, TaskTraits("c", type_)).idle == IdleLimit(limit_s, name)


@pytest.mark.parametrize(
    ("tables", "idle_s", "is_well", "words"),
    [
        ("", 0.0, True, "Only its time limit ends an attempt that hangs, after up to 1 h (idle_s is 0)."),
        ("", 600.0, True, "Of all attempts those that hang are ended after 10 min (idle_s)."),
        (TABLES, 600.0, True, "Of some attempts those that hang are ended after 7 s to 10 min (idle_s)."),
        ("", 3600.0, False, "An idle limit does nothing: idle_s is 1 h, and the attempts that it is for end after 1 h"),
        ("[[routes]]\nidle_s = 9\ntimeout_ms = 8000", 0.0, False, "An idle limit does nothing: idle_s of its route is"),
    ],
)
def test_what_the_doctor_says(tables: str, idle_s: float, is_well: bool, words: str) -> None:
    """Whether there is a limit, and that it is no use beyond the time limit."""
    tables = tomllib.loads(tables)
    routing = read(tables, command=("x",), queue="q", timeout_s=3600.0, max_attempts=3, idle_s=idle_s)
    found = idle.finding(routing)
    assert found[0] is is_well
    assert found[1].startswith(words)
    assert bool(found[2]) is not is_well
