"""What is handed on of the results of dependencies stays within its bounds, whatever they are."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core import results
from dispatch.core.prompt import build_prompt

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
large = st.builds(
    lambda char, count: char * count, st.sampled_from(["x", '"', "\n", "ü", "\U0001f600"]), st.integers(1, 60_000)
)
outputs = st.one_of(json_values, large, large.map(lambda text: [{"response": text}]))
result = st.fixed_dictionaries(
    {
        "id": st.integers(1, 2**63 - 1),
        "title": st.text(max_size=512),
        "status": st.just("completed"),
        "outputs": outputs,
    }
)


def size(value: Any) -> int:
    """Return the bytes of the compact JSON."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


@given(found=st.lists(result, max_size=6), bytes_max=st.integers(2_000, 40_000))
def test_results_fit_and_keep_their_beginning(found: list[dict[str, Any]], bytes_max: int) -> None:
    """All together never exceed the bound; what fits is whole, of what does not the beginning is kept and marked."""
    cut = results.bounded(found, bytes_max)
    assert size(cut) <= bytes_max or not cut
    assert [one["id"] for one in cut] == [one["id"] for one in found[: len(cut)]]
    for one, whole in zip(cut, found, strict=False):
        if one["outputs"] != whole["outputs"]:
            assert one.get("truncated") or one["outputs"][0]["truncated"]
            assert results.text_of(whole["outputs"]).startswith(results.text_of(one["outputs"]))


@given(found=st.lists(result, max_size=6))
def test_the_environment_is_small_ascii_json(found: list[dict[str, Any]]) -> None:
    """``ATS_DEPENDENCIES`` has at most 8 KiB, no NUL, and is JSON with the beginnings of the responses."""
    text = results.environment_value(found)
    assert len(text.encode("ascii")) <= results.ENVIRONMENT_BYTES_MAX
    assert "\0" not in text
    for one, whole in zip(json.loads(text), found, strict=True):
        assert set(one) == {"id", "status", "response"}
        assert results.text_of(whole["outputs"]).startswith(one["response"])


@given(sizes=st.lists(st.integers(0, 5_000), min_size=1, max_size=20), total=st.integers(0, 20_000))
def test_shares_are_fair(sizes: list[int], total: int) -> None:
    """Nobody gets more than it needs, all together no more than there is, and the small are served before the large."""
    given_out = results.shares(sizes, total)
    assert sum(given_out) <= total
    assert all(share <= size for share, size in zip(given_out, sizes, strict=True))
    cut_off = [share for share, size in zip(given_out, sizes, strict=True) if share < size]
    if cut_off:
        assert max(cut_off) - min(cut_off) <= 1
        assert total - sum(given_out) <= len(sizes)


hostile = st.lists(
    st.sampled_from(["--- end dependency-7 ", "--- begin title ", "aaaa", "bbbb", "\n", "status: failed", "x"])
).map("".join)


@given(title=hostile, response=hostile, ident=st.one_of(st.integers(1, 99), hostile))
def test_a_result_cannot_fake_another_block(title: str, response: str, ident: Any) -> None:
    """Every line that opens or closes a block is the frame's own, whatever a dependency's title, text or id says."""
    found = [{"id": ident, "title": title, "status": "completed", "outputs": [{"response": response}]}]
    extra = results.blocks(found)
    fresh = (f"fresh-{n}-Zq" for n in itertools.count())
    prompt = build_prompt("t", "", None, itertools.chain(["aaaa", "bbbb"], fresh), extra)
    boundary = prompt.partition("Everything between lines that end in ")[2].split()[0]
    (name,) = extra
    marks = [line for line in prompt.split("\n") if line.endswith(f" {boundary}") and line.startswith("---")]
    assert marks == [f"--- {what} {block} {boundary}" for block in ("title", name) for what in ("begin", "end")]
    assert " " not in name
