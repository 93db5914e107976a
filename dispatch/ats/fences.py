"""Names of what Redis keeps for tasks of a foreign ATS, which has no fencing tokens of its own.

The claimer of such a task takes the next token with ``INCR token_key``, puts
it into the message, and reads ``attempts_key`` for the number of the attempt
and ``not_before_key``, whose existence means "do not claim yet". Losing Redis
loses these counts, never a task; a counter of tokens that was lost begins again
at ``first_token``, above all that it gave before.
"""

from __future__ import annotations

import hashlib
import time
from functools import lru_cache
from typing import Final

KEEP_S: Final = 30 * 24 * 3600
"""How long counts of a task are kept after their last change."""


@lru_cache(maxsize=8)
def service_key(base_url: str) -> str:
    """Return a short word that stands for one service: several may share one Redis."""
    return hashlib.sha256(base_url.encode()).hexdigest()[:12]


def first_token() -> int:
    """Return where a counter of claims begins: milliseconds since 1970, faster than any task can be claimed."""
    return time.time_ns() // 1_000_000


def token_key(base_url: str, task_id: str) -> str:
    """Counter of claims: its value is the current fencing token."""
    return f"dispatch:token:{service_key(base_url)}:{task_id}"


def start_key(base_url: str, task_id: str, token: int) -> str:
    """The runner that started the attempt with this token; set once."""
    return f"dispatch:start:{service_key(base_url)}:{task_id}:{token}"


def attempts_key(base_url: str, task_id: str) -> str:
    """Counter of attempts that count: the service's URL and the task, never a Celery id."""
    return f"dispatch:attempts:{service_key(base_url)}:{task_id}"


def not_before_key(base_url: str, task_id: str) -> str:
    """Exists, with an expiry, while a released task must wait."""
    return f"dispatch:not_before:{service_key(base_url)}:{task_id}"


def sealed_key(digest: str) -> str:
    """The one task whose content a sealed message is, as service and number; kept for good."""
    return f"dispatch:sealed:{digest}"
