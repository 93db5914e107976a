"""Ids of traces and spans, worked out by every process alone."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.trace_ids import Link, link_of, trace_of

WHATS = ("create", "claim", "enqueue", "attempt", "start", "run", "report", "end")
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def of(ident: object, ratio: float = 1.0):
    """Return the trace of a task by its UUID."""
    return trace_of(str(ident), url="http://a", task_id="1", ratio=ratio)


def test_ids_never_change() -> None:
    """Processes of different versions write into one trace, so these values are for ever."""
    trace = of("a808f983-d953-4bc1-a5a4-d5e9c4144318")
    assert f"{trace.trace_id:032x}" == "a808f983d9534bc1a5a4d5e9c4144318"
    assert [f"{trace.span_id(what, 2):016x}" for what in ("claim", "enqueue", "attempt", "run")] == [
        "1de401a272e00923",
        "a11f205144b44c29",
        "8dd4ee615e1050b0",
        "313b87f4ae74b709",
    ]
    assert f"{trace.span_id('create'):016x}" == "53869f49303f7366"
    foreign = trace_of(None, url="https://ats.example", task_id="7", ratio=1)
    assert f"{foreign.trace_id:032x}" == uuid.uuid5(uuid.NAMESPACE_URL, "https://ats.example/tasks/7").hex


@given(st.uuids(), st.uuids(), st.integers(0, 2**63))
def test_spans_are_distinct_and_the_same_everywhere(one: uuid.UUID, other: uuid.UUID, token: int) -> None:
    """Every span of a task, of the next grant and of another task has an id of its own, which is never 0."""
    trace = of(one)
    ids = [trace.span_id(what, number) for what in WHATS for number in (token, token + 1)]
    if one != other:
        ids += [of(other).span_id(what, token) for what in WHATS]
    assert len(set(ids)) == len(ids)
    assert all(0 < ident < 2**64 for ident in ids)
    assert of(str(one).upper()).span_id("run", token) == trace.span_id("run", token)


@given(st.uuids() | st.just(uuid.UUID(int=0)), st.integers(0, 2**63), st.sampled_from([0.0, 0.5, 1.0]))
def test_what_a_child_is_handed_is_valid(ident: uuid.UUID, token: int, ratio: float) -> None:
    """It is a traceparent of version 00, without an id of zeros, and says whether the trace is sampled."""
    trace = of(ident, ratio)
    text = trace.traceparent(trace.span_id("run", token))
    assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[01]", text)
    assert link_of(text) == Link(trace.trace_id, trace.span_id("run", token), trace.is_sampled)


@given(st.none() | st.text(), st.text(), st.text(), st.text())
def test_a_task_without_a_uuid_gets_one_of_url_and_id(ident: str | None, url: str, one: str, other: str) -> None:
    """Whatever a foreign service calls its tasks, each has a trace of its own, and nothing tells of its creation."""
    traces = [trace_of(ident, url=url, task_id=name, ratio=1) for name in (one, other)]
    if not traces[0].has_create:
        assert (traces[0] == traces[1]) is (one == other)
    assert all(0 < trace.trace_id < 2**128 for trace in traces)


@pytest.mark.parametrize("make", [uuid.uuid4, uuid.uuid1, lambda: uuid.UUID(int=next(COUNTER))])
def test_the_ratio_holds_for_any_kind_of_uuid(make) -> None:
    """A tenth of the tasks are traced, random ids or not; all with 1, none with 0; a larger share holds a smaller."""
    idents = [make() for _ in range(4000)]
    tenth = {ident for ident in idents if of(ident, 0.1).is_sampled}
    assert 300 < len(tenth) < 500
    assert tenth < {ident for ident in idents if of(ident, 0.2).is_sampled}
    assert all(of(ident, 1).is_sampled and not of(ident, 0).is_sampled for ident in idents)


COUNTER = iter(range(1, 100_000))


def test_a_traceparent_is_read_as_the_standard_has_it() -> None:
    """Unknown versions count as far as they are known; what is malformed counts as nothing."""
    link = Link(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_sampled=True)
    assert link_of(CALLER) == link_of(f" {CALLER} ") == link_of("cc" + CALLER[2:] + "-what-ever") == link
    assert link_of(CALLER[:-2] + "00") == Link(link.trace_id, link.span_id, is_sampled=False)
    bad = ["", "00", CALLER + "-x", CALLER.upper(), "ff" + CALLER[2:], CALLER[:-1], CALLER.replace("b7ad", "g7ad")]
    bad += [f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01"]
    bad += ["cc" + CALLER[2:] + "x", "cc" + CALLER[2:] + "-" + "x" * 1000, CALLER + "\n" + CALLER]
    assert [text for text in bad if link_of(text) is not None] == []


@given(st.text())
def test_any_header_is_read_without_harm(text: str) -> None:
    """Whatever a client sends, it is a link or nothing."""
    assert link_of(text) is None or link_of(text).trace_id
