"""Decisions about graphs of tasks, iterative, so that no depth is too deep."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Node = TypeVar("Node", bound="str | int")


def find_cycle(needs: Mapping[Node, Iterable[Node]]) -> list[Node]:
    """Return one circle of nodes, its first node again at its end, or an empty list.

    ``needs`` maps each node to those it depends on; others than its keys end the search.
    """
    done: set[Node] = set()
    for root in needs:
        if root in done:
            continue
        way: list[Node] = [root]
        on_way = {root}
        pending: list[Iterator[Node]] = [iter(needs[root])]
        while way:
            node = next((n for n in pending[-1] if n not in done), None)
            if node is None:
                pending.pop()
                on_way.discard(way[-1])
                done.add(way.pop())
            elif node in on_way:
                return [*way[way.index(node) :], node]
            else:
                way.append(node)
                on_way.add(node)
                pending.append(iter(needs.get(node, ())))
    return []
