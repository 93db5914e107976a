"""The Celery task bodies. Everything they do lives in ``dispatch.runner``."""

from __future__ import annotations

from celery.exceptions import Ignore

from dispatch.ats.gateway import AttemptRef
from dispatch.celery import EXECUTE, app
from dispatch.core.retry import EndReason
from workers.lifecycle import log, slot


@app.task(name=EXECUTE, ignore_result=True)
def execute(task_id: str, attempt: int, token: int, actor_id: str) -> str | None:
    """Run one attempt of a task, from start to report.

    The arguments come from Redis, so they are not trusted: a message that names
    no attempt is dropped, and one that names an old one is refused by the service.
    """
    if not (_is_name(task_id) and _is_name(actor_id) and _is_count(attempt) and _is_count(token)):
        log.error("message_malformed")
        raise Ignore
    queue = str((execute.request.delivery_info or {}).get("routing_key") or "")
    end = slot().run(AttemptRef(task_id, attempt, token, actor_id), queue)
    if end is None or end is EndReason.SHUTDOWN:
        raise Ignore
    return end.value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 512


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
