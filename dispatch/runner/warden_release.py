"""Give a task back over plain http.client: the one call that the warden makes."""

from __future__ import annotations

import http.client
import json
import random
import time
from typing import Any, Final
from urllib.parse import quote, urlsplit

from dispatch.runner import tree

_TIMEOUT_S: Final = 5.0
_PAUSE_FIRST_S: Final = 0.1
_PAUSE_MAX_S: Final = 5.0


def release(tasks_url: str, token: str, begun: dict[str, Any], reason: str, *, give_up_at: float) -> int:
    """Release a begun attempt, counted and without delay; return the last HTTP status, 0 when none came.

    ``tasks_url`` ends in ``/tasks``; ``begun`` is the pool child's begin message.
    Tries until the service took it or said that the lease is not ours (2xx, 404,
    409), or until ``give_up_at`` (boot clock), when the lease comes to its end anyway.
    """
    url = f"{tasks_url}/{quote(str(begun['task']), safe='')}/release"
    body = {"fencing_token": begun["token"], "counted": True, "delay_ms": 0, "reason": reason}
    headers = {"Content-Type": "application/json"}
    for name, key in (("X-Actor-Type", "type"), ("X-Actor-ID", "id"), ("X-Actor-Name", "name")):
        value = "".join(char for char in str(begun["actor"][key]) if char.isprintable())
        headers[name] = value.encode().decode("latin-1")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    pause_s = _PAUSE_FIRST_S
    while True:
        status = _post(url, json.dumps(body).encode(), headers)
        if 200 <= status < 300 or status in (404, 409):
            return status
        wait_s = pause_s * (0.5 + 0.5 * random.random())  # noqa: S311 - jitter, no secret
        if tree.boottime() + wait_s >= give_up_at:
            return status
        time.sleep(wait_s)
        pause_s = min(pause_s * 2, _PAUSE_MAX_S)


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", parts.path, body, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
