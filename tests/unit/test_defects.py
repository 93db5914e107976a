"""The worst defects of the executor that this one replaces, and that each is held shut by a test that names it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DEFECTS = {
    "A1": "a task whose lease expired is never picked up again",
    "A2": "a reopened task is ignored",
    "A3": "a graceful restart strands every running task",
    "A4": "a crash strands them as well",
    "A5": "tasks created while it starts are missed",
    "A6": "tasks created while it reconnects are missed",
    "A7": "a half-open connection is not noticed",
    "A8": "one malformed task stops all others",
    "B1": "nothing is retried, and the count of attempts is in memory",
    "B2": "a large result makes a success a failure",
    "B3": "an error in delivering a result makes it a failure and loses it",
    "B4": "a child that does not read its prompt crashes the executor",
    "B5": "a grandchild that holds stdout keeps the task for ever",
    "B6": "only the direct child is killed, with SIGTERM only",
    "B7": "a lost lease is not noticed, and nothing is fenced",
    "B8": "a dead host is noticed after hours",
    "B9": "one task can run twice at once",
    "B10": "two executors believe to be the same actor",
    "B11": "a task of another channel can be made to run",
    "B12": "cancelling does nothing to the running tree",
}


@functools.cache
def _named() -> dict[str, list[str]]:
    """Return defect -> names of the tests whose docstring begins with it."""
    found: dict[str, list[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                heading = (ast.get_docstring(node) or "").partition(":")[0]
                for word in heading.replace(",", " ").split():
                    found.setdefault(word, []).append(node.name)
    return found


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_has_its_test(defect: str) -> None:
    """A defect that no test names could come back unseen."""
    assert _named().get(defect), f"no test names {defect}: {DEFECTS[defect]}"
