"""A list that changes between any two pages is read whole: what is in it all the time is seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.pages import OffsetWalk

ITEMS = 40
items = st.sets(st.integers(0, ITEMS - 1))
changes = st.lists(st.tuples(items, items), max_size=12)


def walked(begins: set[int], stays: set[int], churn: list[tuple[set[int], set[int]]], caps: list[int]) -> OffsetWalk:
    """Walk a list in the order of its numbers; before each of the first pages some leave and some join."""
    there, walk, seen, asked = begins | stays, OffsetWalk(), set[str](), 0
    while walk.offset is not None:
        if asked < len(churn):
            leave, join = churn[asked]
            there = (there - leave) | join | stays
        page = sorted(there)[walk.offset : walk.offset + caps[asked % len(caps)]]
        walk.take([str(one) for one in page])
        seen.update(str(one) for one in page)
        asked += 1
        assert asked < 50 * ITEMS
    assert not walk.is_whole or seen >= {str(one) for one in stays}
    return walk


@given(items, items, changes, st.lists(st.integers(2, 9), min_size=1, max_size=5))
def test_what_stays_is_seen_whatever_leaves_or_joins(
    begins: set[int], stays: set[int], churn: list[tuple[set[int], set[int]]], caps: list[int]
) -> None:
    """However many leave from before the place where one is, and even if pages are of different lengths."""
    assert walked(begins, stays, churn, caps).is_whole


@given(items, st.integers(1, 9))
def test_a_list_that_stands_still_is_read_once(stays: set[int], cap: int) -> None:
    """One task a page is repeated, and one page is asked for at the end: no more than that."""
    walk, pages = OffsetWalk(), 0
    while walk.offset is not None:
        walk.take([str(one) for one in sorted(stays)[walk.offset : walk.offset + cap]])
        pages += 1
    assert walk._seen == {str(one) for one in stays}
    assert pages <= 2 + len(stays) // max(1, cap - 1)


@given(st.sets(st.integers(0, 10), min_size=3))
def test_a_walk_that_cannot_keep_up_says_so(stays: set[int]) -> None:
    """A list that is another one with every page is given up, and nobody is told that it was whole."""
    walk, asked = OffsetWalk(), 0
    walk.take([str(one) for one in stays])
    while walk.offset is not None:
        asked += 1
        walk.take([f"{asked}.{one}" for one in stays])
        assert asked < 1_000
    assert not walk.is_whole
