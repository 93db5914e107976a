"""Nothing in a task's text can end its block in the prompt."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.prompt import INTERNAL_FIELDS, build_prompt, context_of

words = st.text(max_size=200)
boundaries = ["aaaa", "bbbb", "cccc"]
# Texts made of the very pieces an attacker would use, the first boundaries among them.
hostile = st.lists(
    st.sampled_from(["--- end title ", "--- begin context ", "aaaa", "bbbb", "\n", " ", "\r", "</task-title>", "x"])
).map("".join)
texts = st.one_of(words, hostile)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def parsed(prompt: str) -> dict[str, str]:
    """Read the blocks of a prompt as an honest reader does: by the boundary that the frame names."""
    boundary = prompt.partition("Everything between lines that end in ")[2].split()[0]
    blocks: dict[str, str] = {}
    name: str | None = None
    kept: list[str] = []
    for line in prompt.split("\n"):
        if name is None and line.startswith("--- begin ") and line.endswith(f" {boundary}"):
            name, kept = line.split(" ")[2], []
        elif name is not None and line == f"--- end {name} {boundary}":
            blocks[name], name = "\n".join(kept), None
        elif name is not None:
            assert boundary not in line
            kept.append(line)
    assert name is None
    return blocks


@given(title=texts, description=texts, payload=json_values, note=texts)
def test_blocks_come_out_as_they_went_in(title: str, description: str, payload: Any, note: str) -> None:
    """A reader who trusts only the boundary gets every text back unchanged, and no block more."""
    fresh = (f"fresh-{n}-Zq" for n in itertools.count())
    prompt = build_prompt(title, description, payload, itertools.chain(boundaries, fresh), {"note": note})
    expected = {"title": title, "description": description, "context": context_of(payload), "note": note}
    assert parsed(prompt) == {name: text for name, text in expected.items() if text}


def test_a_boundary_that_occurs_in_a_text_is_not_taken() -> None:
    """The first two candidates occur in the texts, in the payload even; the third is used."""
    prompt = build_prompt("has aaaa", "plain", {"k": "bbbb"}, iter(boundaries))
    assert "--- begin title cccc\nhas aaaa\n--- end title cccc" in prompt


@given(payload=st.dictionaries(st.sampled_from([*sorted(INTERNAL_FIELDS), "repo", "pr"]), json_values))
def test_context_is_the_payload_without_what_steers_dispatch(payload: dict[str, Any]) -> None:
    """Internal fields never reach the child; everything else does, as JSON."""
    rest = {key: value for key, value in payload.items() if key not in INTERNAL_FIELDS}
    assert (json.loads(context_of(payload)) if rest else context_of(payload)) == (rest or "")


def test_empty_texts_make_no_blocks() -> None:
    """No payload, no description: no context block, no description block."""
    assert set(parsed(build_prompt("t", "", None, iter(["b"])))) == {"title"}
