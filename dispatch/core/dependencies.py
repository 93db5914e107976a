"""Which tasks a payload says that its task depends on. Pure.

Clients of a plain ATS have no field for it: they put ``depends_on`` into the
payload, as a number, a text, or a list of these.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

DEPENDENCIES_MAX: Final = 256
"""How many a task may have."""
NAME_CHARS_MAX: Final = 64
"""A name is cut to this; no task has a longer one."""
NUMBER_MAX: Final = 2**63 - 1

UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_NUMBER: Final = re.compile(r"#?([0-9]{1,19})", re.ASCII)


def ident_of(value: Any) -> int | str | None:
    """Return the number or the UUID (lower case) that a value names, or None when it names no task.

    A number may be a text, with or without ``#``.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        text = value.strip()
        if UUID.fullmatch(text):
            return text.lower()
        found = _NUMBER.fullmatch(text)
        value = int(found[1]) if found else None
    return value if isinstance(value, int) and 0 < value <= NUMBER_MAX else None


def named_in(payload: Any) -> tuple[int | str, ...] | None:
    """Return what a payload names in ``depends_on``, without repetition, in order; None when it says nothing.

    What can be no task's id is returned as text: a task that depends on
    something impossible must not run as if it depended on nothing.
    """
    if not isinstance(payload, dict) or "depends_on" not in payload:
        return None
    said = payload["depends_on"]
    items = said if isinstance(said, list) else [] if said is None else [said]
    parts: list[Any] = []
    for item in items:
        parts += [part for part in item.split(",") if part.strip()] if isinstance(item, str) else [item]
    found = [ident_of(part) or _shown(part) for part in parts]
    return tuple(dict.fromkeys(found))


def _shown(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:NAME_CHARS_MAX]
