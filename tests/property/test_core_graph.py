"""Circles, cascades and verdicts: found where there are some and nowhere else, at any depth."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.graph import (
    GRAPH_MAX,
    MISSING,
    Verdict,
    blocked_reason,
    cascade,
    dependents_of,
    find_cycle,
    reaching_cycle,
    verdict,
)
from dispatch.core.lifecycle import ATS_WORD

if TYPE_CHECKING:
    from collections.abc import Mapping

graphs = st.dictionaries(st.integers(0, 8), st.lists(st.integers(0, 10), max_size=4), max_size=9)


def has_circle(needs: Mapping[int, list[int]]) -> bool:
    """Say whether some node reaches itself: by removing what needs nothing until nothing more can be removed."""
    left = {node: set(others) & set(needs) for node, others in needs.items()}
    while True:
        free = {node for node, others in left.items() if not others}
        if not free:
            return bool(left)
        left = {node: others - free for node, others in left.items() if node not in free}


@given(graphs)
def test_a_circle_is_found_exactly_where_there_is_one(needs: dict[int, list[int]]) -> None:
    """What is found is a circle of the graph: closed, each step a dependency, no node twice; others end the search."""
    found = find_cycle(needs)
    assert bool(found) == has_circle(needs)
    if found:
        assert found[0] == found[-1]
        assert len(set(found)) == len(found) - 1
        assert all(after in needs[before] for before, after in pairwise(found))


def test_depth_is_no_limit() -> None:
    """A chain of 100,000 is no circle, closed it is one, and neither exhausts the stack."""
    count = 100_000
    chain = {n: [n + 1] for n in range(count)}
    assert find_cycle(chain) == []
    assert len(find_cycle({**chain, count: [0]})) == count + 2


def test_dense_graphs_are_quick() -> None:
    """Every node is looked at once: a graph with very many paths and no circle ends at once."""
    layers = {(layer * 10 + n): [(layer + 1) * 10 + m for m in range(10)] for layer in range(200) for n in range(10)}
    assert find_cycle(layers) == []


statuses = st.sampled_from([*ATS_WORD.values(), MISSING, "a word of a foreign service"])


@given(st.dictionaries(st.integers(0, 99).map(str), statuses, max_size=9))
def test_a_verdict_is_one_of_three(found: dict[str, str]) -> None:
    """One bad end fails, all completed release, anything else waits; the reason names every bad end and no other."""
    bad = {name for name, status in found.items() if status in {"failed", "cancelled", "rejected", MISSING}}
    good = {name for name, status in found.items() if status == "completed"}
    expected = Verdict.FAIL if bad else Verdict.RELEASE if len(good) == len(found) else Verdict.WAIT
    assert verdict(found.values()) is expected
    if bad:
        said = blocked_reason(found)
        assert said.startswith("Blocked: dependency #")
        assert {name for name in found if f"#{name} ({found[name]})" in said} == bad


@given(graphs, st.integers(0, 10))
def test_a_cascade_is_everything_behind_and_nothing_else(needs: dict[int, list[int]], root: int) -> None:
    """Each task behind the root comes once, after one that it needs; nothing that does not reach the root is named."""
    behind = cascade(dependents_of(needs), root)
    reached = {root}
    while more := {task for task, others in needs.items() if reached & set(others)} - reached:
        reached |= more
    assert set(behind) == reached - {root}
    assert len(set(behind)) == len(behind)
    before = {root}
    for task in behind:
        assert before & set(needs[task])
        before.add(task)


@given(graphs, st.sets(st.integers(0, 10)), st.integers(0, 10))
def test_a_cascade_leaves_out_what_is_known(needs: dict[int, list[int]], known: set[int], root: int) -> None:
    """Neither what is known is named nor what is behind that alone; everything else behind the root is."""
    behind = cascade(dependents_of(needs), root, known=known)
    reached = {root}
    while more := {task for task, others in needs.items() if reached & set(others)} - reached - known:
        reached |= more
    assert set(behind) == reached - {root}


@given(graphs)
def test_what_waits_for_ever_reaches_a_circle(needs: dict[int, list[int]]) -> None:
    """Exactly those are found that reach a task that reaches itself."""

    def reached(start: int) -> set[int]:
        found: set[int] = set()
        while more := {n for task in {start, *found} for n in needs.get(task, ())} - found:
            found |= more
        return found

    in_circles = {node for node in needs if node in reached(node)}
    assert reaching_cycle(needs) == {node for node in needs if in_circles & {node, *reached(node)}}


def test_large_cascades_are_quick_and_bounded() -> None:
    """100,000 tasks in a row fail in one go; one more is cut off."""
    chain = {n: [n + 1] for n in range(GRAPH_MAX + 5)}
    assert len(cascade(chain, 0)) == GRAPH_MAX
    assert reaching_cycle(chain) == set()
