"""Circles are found where there are some and nowhere else, at any depth."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.graph import find_cycle

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
