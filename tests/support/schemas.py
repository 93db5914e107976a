"""Strategies for values: any JSON, and what a JSON schema of ours allows."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

uuids = st.uuids().map(str)
finite = st.floats(allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), finite, st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def valid(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return a strategy of values that a schema of ours allows."""
    kinds = schema.get("type", "object")
    choices = [_of_kind(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    return st.one_of(*choices)


def _of_kind(kind: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if kind == "string":
        return _texts(schema)
    if kind == "integer":
        return st.integers(schema["minimum"], schema["maximum"])
    if kind == "array":
        item = valid(schema["items"]) if "items" in schema else anything
        return st.lists(item, max_size=min(4, schema.get("maxItems", 4)))
    if kind == "object" and "properties" in schema:
        required = {key: valid(schema["properties"][key]) for key in schema["required"]}
        others = {key: valid(one) for key, one in schema["properties"].items() if key not in required}
        return st.fixed_dictionaries(required, optional=others)
    return {
        "null": st.none(),
        "boolean": st.booleans(),
        "number": st.floats(-1e300, 1e300) | st.integers(-(2**60), 2**60),
        "object": st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    }[kind]


def _texts(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("format") == "uuid":
        return uuids | uuids.map(str.upper)
    return st.text(min_size=schema.get("minLength", 0), max_size=min(40, schema.get("maxLength", 40)))
