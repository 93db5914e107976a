"""Is Redis there, is it set up safely, and which workers show themselves in it?"""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING, Any, Final

import redis

from dispatch.broker import INGRESS_KEY, WORKER_KEY, connect, shown_url
from dispatch.core.presence import IngressPresence, WorkerPresence, parse_ingress, parse_worker
from dispatch.errors import BrokerUnavailableError, ConfigurationError
from dispatch.preflight.check import Check

if TYPE_CHECKING:
    from dispatch.settings import Broker, Settings

REDIS_VERSION_MIN: Final = (6, 2)
_TIMEOUT_S: Final = 3.0


def open_redis(broker: Broker) -> redis.Redis:
    """Return a client that gives up soon and tries nothing twice; the caller must close it."""
    try:
        return connect(broker, timeout_s=_TIMEOUT_S)
    except ValueError as exc:
        raise ConfigurationError(f"DISPATCH_REDIS_URL cannot be used: {exc}.") from exc


def check_redis(settings: Settings) -> list[Check]:
    """Is Redis there, does it take our password and our writes, does it keep what it is given?"""
    url = shown_url(settings.broker)
    advice = "Start Redis, or set DISPATCH_REDIS_URL; 'dispatch up' brings one of its own."
    try:
        with contextlib.closing(open_redis(settings.broker)) as client:
            client.set(f"dispatch:doctor:{uuid.uuid4().hex}", "1", px=1000)
            return _redis_state(client, url)
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as exc:
        advice = "Check DISPATCH_REDIS_USER and DISPATCH_REDIS_PASSWORD_FILE."
        return [Check("redis", "error", f"Redis at {url} refuses us: {said(exc)}.", advice)]
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        # The library's sentence may hold the URL; what happened to the socket is enough.
        cause = cause_of(exc)
        return [Check("redis", "error", f"Redis at {url} does not answer: {cause}.", advice, BrokerUnavailableError)]
    except redis.ResponseError as exc:
        return [_refusal(url, exc)]
    except ConfigurationError as exc:
        return [Check("redis", "error", str(exc))]


def said(exc: redis.RedisError) -> str:
    """Return what Redis said, without the full stop that some of its sentences have."""
    return " ".join(str(exc).split()).rstrip(".")[:200]


def _refusal(url: str, exc: redis.ResponseError) -> Check:
    """Judge an answer to a write. Full memory, a full disk and a change of primary pass, so trying again is right."""
    if "DB index" in str(exc):
        sentence = f"Redis at {url} has no such database: {said(exc)}."
        return Check("redis", "error", sentence, "Correct the number at the end of DISPATCH_REDIS_URL.")
    advice = "See its log; is its disk full?"
    if isinstance(exc, redis.exceptions.OutOfMemoryError):
        advice = "Its memory is full: raise maxmemory."
    elif isinstance(exc, redis.exceptions.ReadOnlyError):
        advice = "It is a replica: set DISPATCH_REDIS_URL to its primary."
    return Check("redis", "error", f"Redis at {url} takes no writes: {said(exc)}.", advice, BrokerUnavailableError)


def cause_of(exc: redis.RedisError) -> str:
    """Say in a few words why Redis gave no answer."""
    inner: BaseException = exc.__cause__ or exc.__context__ or exc
    if isinstance(inner, TimeoutError):
        return "the time was up"
    if isinstance(inner, OSError) and inner.errno and inner.errno > 0:
        return os.strerror(inner.errno).lower()
    return " ".join(str(inner).split()).rstrip(".")[:200]


def try_write(client: redis.Redis) -> None:
    """Write something that goes by itself. Raises redis.RedisError; who may not write at all is told nothing."""
    with contextlib.suppress(redis.exceptions.NoPermissionError):
        client.set(f"dispatch:doctor:{uuid.uuid4().hex}", "1", px=1000)


def trouble_of(exc: redis.RedisError) -> str:
    """Say what is wrong with Redis, to go on behind its name: that it refuses us, takes no writes, does not answer."""
    if isinstance(exc, redis.AuthenticationError | redis.exceptions.NoPermissionError):
        return f"refuses us: {said(exc)}"
    if isinstance(exc, redis.ResponseError):
        return f"takes no writes: {said(exc)}"
    return f"does not answer: {cause_of(exc)}"


def _redis_state(client: redis.Redis, url: str) -> list[Check]:
    info: dict[str, Any] = client.info()
    shown = str(info.get("redis_version", "0"))
    version = tuple(int(part) for part in shown.split(".")[:2] if part.isdigit())
    if version < REDIS_VERSION_MIN:
        wanted = ".".join(map(str, REDIS_VERSION_MIN))
        return [Check("redis", "error", f"Redis at {url} is version {shown}.", f"Install Redis {wanted} or newer.")]
    checks = [Check("redis", "ok", f"Redis {shown} at {url} answers and takes writes.")]
    found = {
        "maxmemory": str(info.get("maxmemory", 0)),
        "maxmemory-policy": str(info.get("maxmemory_policy", "noeviction")),
        "appendonly": "yes" if info.get("aof_enabled", 1) else "no",
    }
    has_password = True
    # A user of config/redis-users.conf may not read the configuration, and a Redis with users asks who comes.
    with contextlib.suppress(redis.RedisError):
        found |= {name: str(client.config_get(name).get(name, "")) for name in ("bind", "protected-mode")}
        has_password = bool(client.config_get("requirepass").get("requirepass"))
    return checks + redis_warnings(found, has_password=has_password)


def redis_warnings(found: dict[str, str], *, has_password: bool) -> list[Check]:
    """Judge the configuration of a Redis, under the names of redis.conf; what is not known is not judged."""
    checks = []
    if (policy := found.get("maxmemory-policy", "noeviction")) != "noeviction":
        is_limited = found.get("maxmemory", "0") not in ("", "0")
        sentence = f"Redis has maxmemory-policy {policy}: when its memory is full it throws queued tasks away."
        advice = "Set maxmemory-policy noeviction."
        checks.append(Check("redis", "error" if is_limited else "warning", sentence, advice))
    if found.get("appendonly", "yes") != "yes":
        sentence = "Redis has appendonly no: after a crash the queues are rebuilt from the task service."
        checks.append(Check("redis", "warning", sentence, "Set appendonly yes to lose less time."))
    addresses = {address.removeprefix("-") for address in found.get("bind", "127.0.0.1").split()}
    is_open = not addresses <= {"127.0.0.1", "::1", "localhost"} or not addresses
    if is_open and not has_password and found.get("protected-mode") == "no":
        sentence = (
            "Redis listens beyond this machine without a password: whoever reaches it can give orders to workers."
        )
        checks.append(Check("redis", "warning", sentence, "Set requirepass and bind, or protected-mode yes."))
    return checks


def workers_seen(client: redis.Redis) -> list[WorkerPresence]:
    """Return the workers that show themselves. Raises redis.RedisError."""
    keys = sorted(client.scan_iter(match=f"{WORKER_KEY}*", count=500))
    values: Any = client.mget(keys) if keys else []
    found = [parse_worker(text) for text in values]
    return [worker for worker in found if worker is not None]


def ingresses_seen(client: redis.Redis) -> list[IngressPresence]:
    """Return the ingresses that show themselves. Raises redis.RedisError."""
    keys = sorted(client.scan_iter(match=f"{INGRESS_KEY}*", count=500))
    values: Any = client.mget(keys) if keys else []
    return [ingress for text in values if (ingress := parse_ingress(text)) is not None]


def check_workers(settings: Settings) -> list[Check]:
    """Is anybody there who would run a task?"""
    try:
        with contextlib.closing(open_redis(settings.broker)) as client:
            workers = workers_seen(client)
    except (redis.RedisError, ConfigurationError):
        return [Check("workers", "warning", "Without Redis nobody knows which workers run.")]
    count = len(workers)
    if not count:
        return [Check("workers", "warning", "No worker is running.", "Start one with 'dispatch worker'.")]
    held = ", ".join(sorted({worker.limits for worker in workers if worker.limits}))
    how = f"; limits of attempts: {held}" if held else ""
    return [Check("workers", "ok", f"{count} worker{'s are' if count > 1 else ' is'} running{how}.")]
