"""The Celery application: ``celery -A dispatch worker``.

Importing this module opens nothing and reads no settings; they are read when
the configuration is first needed. Each setting below was needed; the reasons
are in docs/decisions/0002-celery.md.
"""

from __future__ import annotations

import sys
import warnings
from functools import cached_property
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

import billiard.pool
import kombu.transport.redis
import redis
from celery import Celery
from celery.backends.redis import RedisBackend
from celery.platforms import SecurityWarning
from celery.utils.nodenames import NODENAME_DEFAULT, default_nodename, nodename, nodesplit

from dispatch import log
from dispatch import settings as settings_module
from dispatch.broker import KEY_PREFIX, celery_url
from dispatch.errors import DispatchError

if TYPE_CHECKING:
    from dispatch.settings import Settings

EXECUTE: Final = "dispatch.execute"
"""The name of the one task that runs attempts: the wire contract between ingress and workers."""
GATE: Final = "dispatch.gate"
"""One dependency of one waiting task; it succeeds or fails as the dependency did."""
RELEASE: Final = "dispatch.release"
"""The body of a chord or the end of a chain of gates: the task may run."""
BLOCKED: Final = "dispatch.blocked"
"""The error callback of gates and bodies: a dependency ended badly."""

CHORD_KEEP_S: Final = 90 * 24 * 3600
"""How long Celery keeps a chord that waits. By default it is a day, and then the body silently never runs; a chord
that waits longer than this is released by the ingress itself."""

# Celery 5.7.0 closes a lost Redis connection twice; the second close raises AttributeError, which ends
# the worker although it could reconnect. With this line it is one more connection error. Drop it when
# tests/integration/test_faults.py passes without it.
# A refusal is one as well: a Redis that becomes a replica in a failover answers so, and would end all that runs here.
kombu.transport.redis.Transport.connection_errors += (AttributeError, redis.ResponseError)

# A pool child waits up to 30 s for its parent to take its last result while shutting down; 5 s is plenty.
billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 50


# Our own preflight says it in the form of all our logs.
warnings.filterwarnings("ignore", category=SecurityWarning)


class Channel(kombu.transport.redis.Channel):
    """Kombu's channel, which would end the worker over a message that is none; here it is dropped and logged.

    Nor does it make a Redis client for every command, as kombu's does: that is a seventh of what a worker's main
    process does for a task.
    """

    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  Kombu calls it so.
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = super()._create_client()  # type: ignore[no-untyped-call]
        return self._kept

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, KeyError, TypeError) as exc:
            # The message has left the queue already. If it stood for a claim, the ingress misses it and sends another.
            log.get_logger("worker").error("message_malformed", reason=f"{type(exc).__name__}: {exc}"[:200])
            raise Empty from exc


kombu.transport.redis.Transport.Channel = Channel


class Dispatch(Celery):
    """Celery whose workers run without gossip, mingle and banner and are called dispatch@HOST unless named."""

    @cached_property
    def Worker(self) -> Any:  # noqa: N802  Celery names it so.
        """Return the worker class with our options."""
        base = super().Worker

        class Worker(base):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs["without_gossip"] = True
                kwargs["without_mingle"] = True
                kwargs["quiet"] = True
                name, host = nodesplit(kwargs.get("hostname") or default_nodename(None))
                if name == NODENAME_DEFAULT:
                    kwargs["hostname"] = nodename("dispatch", host)
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
    app.add_defaults(lambda: celery_config(settings or _load_or_exit()))
    return app


def _load_or_exit() -> Settings:
    """Load the settings for whoever runs ``celery``; a wrong one is said in a sentence and ends the process."""
    try:
        return settings_module.load()
    except DispatchError as exc:
        sys.stderr.write(f"{exc}\n")
        raise SystemExit(exc.exit_code) from exc


class GateBackend(RedisBackend):  # type: ignore[misc, unused-ignore]
    """Celery's results in Redis, for who sends gates and never waits for a result."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do not subscribe to the result of every gate that is sent: it would be one subscription more each time."""

    def remove_pending_result(self, result: Any) -> Any:
        """Do not unsubscribe either: it would open a connection wherever a result is garbage-collected."""
        return result


def gates_config(settings: Settings, queue: str) -> dict[str, Any]:
    """Return Celery's settings for the gates of task graphs: those of the fleet, and results, which chords need."""
    return {
        **celery_config(settings),
        "task_default_queue": queue,
        "task_ignore_result": False,
        "task_allow_error_cb_on_chord_header": False,
        "result_backend": "gates+" + celery_url(settings.broker).removeprefix("redis+"),
        "result_backend_transport_options": {"global_keyprefix": KEY_PREFIX},
        # Without it a Redis that is away for a moment fails the gate, and with it the task.
        "result_backend_always_retry": True,
        "result_expires": 3600,
        "result_chord_expires": CHORD_KEEP_S,
        "redis_socket_timeout": 15,
        "redis_socket_connect_timeout": 5,
    }


def make_gates_app(settings: Settings, queue: str) -> Dispatch:
    """Return the application of the gates, which has a queue and a result back end; workers do not know it."""
    gates = Dispatch("dispatch.gates", set_as_current=False)
    gates.loader.override_backends = {"gates": "dispatch.celery:GateBackend"}
    gates.add_defaults(lambda: gates_config(settings, queue))
    return gates


app = make_app()
