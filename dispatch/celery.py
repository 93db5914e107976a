"""The Celery application: ``celery -A dispatch worker``.

Importing this module opens nothing and reads no settings; they are read when
the configuration is first needed. Each setting below was needed; the reasons
are in docs/decisions/0002-celery.md.
"""

from __future__ import annotations

from functools import cached_property
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

import billiard.pool
import kombu.transport.redis
from celery import Celery

from dispatch import log
from dispatch import settings as settings_module
from dispatch.broker import KEY_PREFIX, celery_url

if TYPE_CHECKING:
    from dispatch.settings import Settings

EXECUTE: Final = "dispatch.execute"
"""The name of the one task that runs attempts: the wire contract between ingress and workers."""

# Celery 5.7.0 closes a lost Redis connection twice; the second close raises AttributeError, which ends
# the worker although it could reconnect. With this line it is one more connection error. Drop it when
# tests/integration/test_worker_redis.py passes without it.
kombu.transport.redis.Transport.connection_errors += (AttributeError,)

# A pool child waits up to 30 s for its parent to take its last result while shutting down; 5 s is plenty.
billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 50


class Channel(kombu.transport.redis.Channel):
    """Kombu's channel, which would end the worker over a message that is none; here it is dropped and logged."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, KeyError, TypeError) as exc:
            # The message has left the queue already. If it stood for a claim, the ingress misses it and sends another.
            log.get_logger("worker").error("message_malformed", reason=f"{type(exc).__name__}: {exc}"[:200])
            raise Empty from exc


kombu.transport.redis.Transport.Channel = Channel


class Dispatch(Celery):
    """Celery whose workers run without gossip, mingle and banner, so that nobody has to type it."""

    @cached_property
    def Worker(self) -> Any:  # noqa: N802  Celery names it so.
        """Return the worker class with our options."""
        base = super().Worker

        class Worker(base):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs["without_gossip"] = True
                kwargs["without_mingle"] = True
                kwargs["quiet"] = True
                super().__init__(*args, **kwargs)

        return Worker


def celery_config(settings: Settings) -> dict[str, Any]:
    """Return Celery's settings for ours."""
    socket_options = {"socket_timeout": 15, "socket_connect_timeout": 5, "socket_keepalive": True}
    return {
        "broker_url": celery_url(settings.broker),
        "broker_transport_options": {
            "global_keyprefix": KEY_PREFIX,
            # Covers only the moment between pop and accept; a running task is never in `unacked`.
            "visibility_timeout": 300,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "health_check_interval": 25,
            **socket_options,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_default_queue": settings.broker.queue,
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_reject_on_worker_lost": False,
        "task_send_sent_event": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": False,
        "worker_soft_shutdown_timeout": 0,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "enable_utc": True,
    }


def make_app(settings: Settings | None = None) -> Dispatch:
    """Return an application; without ``settings`` they are loaded when first needed."""
    app = Dispatch("dispatch", set_as_current=settings is None, include=["workers.tasks"])
    app.add_defaults(lambda: celery_config(settings or settings_module.load()))
    return app


app = make_app()
