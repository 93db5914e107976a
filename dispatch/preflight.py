"""Checks before the start: is everything there that a process needs, and is it set up safely?

``preflight`` is what ingress and workers do first: it raises one clear
sentence before anything is claimed. ``dispatch doctor`` shows all checks.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import redis

from dispatch.ats import answers, choose, protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor
from dispatch.broker import WORKER_KEY, connect, shown_url
from dispatch.core import limits
from dispatch.core.presence import WorkerPresence, parse_worker
from dispatch.core.routing import DEFAULT
from dispatch.errors import (
    AuthenticationError,
    BrokerUnavailableError,
    ConfigurationError,
    DispatchError,
    GatewayError,
    GatewayUnavailableError,
)
from dispatch.runner import delegation
from dispatch.runner.executors import controllers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dispatch.core.routing import Executor
    from dispatch.settings import Broker, Settings

REDIS_VERSION_MIN: Final = (6, 2)
DISK_BYTES_MIN: Final = 100 * 1024 * 1024
_TIMEOUT_S: Final = 3.0
_DOCTOR: Final = Actor("system", "dispatch-doctor", "dispatch doctor")

Need = Literal["service", "redis", "executor", "data_dir", "user", "limits", "callbacks"]


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found out. ``state`` is ok, warning or error; ``advice`` says what to do, or is ""."""

    name: str
    state: Literal["ok", "warning", "error"]
    sentence: str
    advice: str = ""
    kind: type[DispatchError] = ConfigurationError
    """What to raise for an error."""
    extensions: frozenset[str] = frozenset()
    """What the task service announces."""

    def error(self) -> DispatchError:
        """Return the error that this check amounts to."""
        return self.kind(f"{self.sentence} {self.advice}".strip())


def preflight(settings: Settings, need: Iterable[Need]) -> list[Check]:
    """Make the checks that a process needs and return them, warnings included.

    Raises ConfigurationError, AuthenticationError, GatewayUnavailableError or
    BrokerUnavailableError for the first one that failed.
    """
    found: list[Check] = []
    for name in need:
        checks = _LOOKS[name](settings)
        for check in checks:
            if check.state == "error":
                raise check.error()
        found += checks
    return found


# --- the task service -----------------------------------------------------------------------------------------------


def check_service(settings: Settings) -> list[Check]:
    """Is the task service there, does it speak ATS, does it take our key, does it fence?"""
    ats = settings.ats
    try:
        client = Client(protocol.endpoint_of(ats), _DOCTOR)
    except ConfigurationError as exc:
        return [Check("service", "error", str(exc))]
    url = client.endpoint.base_url
    with contextlib.closing(client):
        try:
            health = client.send(protocol.health(), deadline_s=_TIMEOUT_S)
            extensions = choose.extensions_of_health(health)
            client.send(protocol.list_tasks(limit=1, channel=ats.channels[0]), deadline_s=_TIMEOUT_S)
            if "auth.me" in extensions:
                _check_access(client)
        except GatewayUnavailableError as exc:
            advice = "Start it with 'dispatch serve' or 'dispatch up', or set DISPATCH_ATS_URL."
            return [Check("service", "error", str(exc), advice, GatewayUnavailableError)]
        except AuthenticationError as exc:
            advice = "Set DISPATCH_ATS_TOKEN_FILE to a file with a key that may read and claim tasks."
            return [
                Check("service", "error", f"The task service at {url} refuses us: {exc}", advice, AuthenticationError)
            ]
        except GatewayError as exc:
            advice = "Check DISPATCH_ATS_URL, DISPATCH_ATS_ORG and DISPATCH_ATS_PROJECT."
            return [Check("service", "error", f"The task service at {url} refuses to list tasks: {exc}", advice)]
    if choose.has_fencing(extensions):
        sentence = f"The task service at {url} answers and has fencing tokens."
        return [Check("service", "ok", sentence, extensions=extensions)]
    advice = "Known limits are in docs/protocol.md. Set DISPATCH_LEASE_MS above DISPATCH_TIMEOUT_MS if it cannot renew."
    sentence = f"The task service at {url} answers, but has no fencing tokens."
    return [Check("service", "warning", sentence, advice, extensions=extensions)]


def _check_access(client: Client) -> None:
    """Raise AuthenticationError when our key may only read."""
    _, access = answers.me_of(client.send(protocol.me(), deadline_s=_TIMEOUT_S))
    if access == "read":
        raise AuthenticationError("the key may only read.")


def check_keys(settings: Settings) -> list[Check]:
    """Would the task service serve somebody without a key? Says nothing when it does not answer."""
    try:
        where = replace(protocol.endpoint_of(settings.ats), token=None)
        with contextlib.closing(Client(where, _DOCTOR)) as client:
            client.send(protocol.list_tasks(limit=1), deadline_s=_TIMEOUT_S)
    except AuthenticationError:
        return [Check("keys", "ok", "The task service wants an API key from everybody.")]
    except (GatewayError, ConfigurationError):
        return []
    sentence = "The task service has no API keys: whoever reaches it may act as anybody."
    if where.host in ("localhost", "::1") or where.host.startswith("127."):
        return [Check("keys", "ok", f"{sentence} It listens on this machine.")]
    return [Check("keys", "warning", sentence, "Make keys with 'dispatch api-key create' where it runs.")]


# --- Redis ----------------------------------------------------------------------------------------------------------


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
        return [Check("redis", "error", f"Redis at {url} refuses us: {exc}.", "Check DISPATCH_REDIS_PASSWORD_FILE.")]
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        # The library's sentence may hold the URL; what happened to the socket is enough.
        cause = cause_of(exc)
        return [Check("redis", "error", f"Redis at {url} does not answer: {cause}.", advice, BrokerUnavailableError)]
    except redis.ResponseError as exc:
        return [Check("redis", "error", f"Redis at {url} takes no writes: {exc}.", "See its log; is its disk full?")]
    except ConfigurationError as exc:
        return [Check("redis", "error", str(exc))]


def cause_of(exc: redis.RedisError) -> str:
    """Say in a few words why Redis gave no answer."""
    inner: BaseException = exc.__cause__ or exc.__context__ or exc
    if isinstance(inner, TimeoutError):
        return "the time was up"
    if isinstance(inner, OSError) and inner.errno and inner.errno > 0:
        return os.strerror(inner.errno).lower()
    return " ".join(str(inner).split())[:200]


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


# --- this host ------------------------------------------------------------------------------------------------------


def check_executor(settings: Settings) -> list[Check]:
    """Is what each executor needs on this host? Without the default's a worker does not start; others it gives back."""
    return [check for executor in settings.routing.executors.values() for check in _executor(executor)]


def _executor(executor: Executor) -> list[Check]:
    if executor.kind == "http":
        unset = sorted(
            value.removeprefix("env:")
            for value in executor.headers.values()
            if value.startswith("env:") and not os.environ.get(value.removeprefix("env:"))
        )
        if unset:
            sentence = f"The executor {executor.name} needs {', '.join(unset)} in the worker's environment."
            return [Check("executor", _severity(executor), sentence, "Set it where the worker is started.")]
        return [Check("executor", "ok", f"The executor {executor.name} posts to {urlsplit(executor.url).netloc}.")]
    if executor.kind == "python":
        return [_function(executor)]
    return [_program(executor)]


def _severity(executor: Executor) -> Literal["warning", "error"]:
    return "error" if executor.name == DEFAULT else "warning"


def _function(executor: Executor) -> Check:
    """Look for the module without running it; what its parent packages do when imported happens."""
    module = executor.function.partition(":")[0]
    try:
        is_there = importlib.util.find_spec(module) is not None
    except Exception as exc:  # noqa: BLE001 - a parent package may raise anything
        sentence = f"The executor {executor.name}: {module} cannot be imported: {exc}."
        return Check("executor", _severity(executor), sentence)
    if is_there:
        return Check("executor", "ok", f"The executor {executor.name} is {executor.function}.")
    sentence = f"The executor {executor.name}: there is no module {module}."
    return Check(
        "executor",
        _severity(executor),
        sentence,
        "Install it where the worker runs, or add its directory to PYTHONPATH.",
    )


def _program(executor: Executor) -> Check:
    program = executor.command[0]
    called = "" if executor.name == DEFAULT else f" {executor.name}"
    place = shutil.which(program)
    if place is not None:
        return Check("executor", "ok", f"The executor{called} is {place}.")
    advice = "Install it on this host, or set DISPATCH_COMMAND to the command that shall run tasks."
    if called:
        advice = f"Install it on this host, or change [executors.{executor.name}]."
    path = Path(program).expanduser()
    if path.is_dir():
        return Check("executor", _severity(executor), f"The executor{called} {program} is a directory.", advice)
    if path.exists() and "/" in program:
        sentence = f"The executor{called} {program} may not be executed."
        return Check("executor", _severity(executor), sentence, f"Try 'chmod +x {program}'.")
    where = "" if "/" in program else " on PATH"
    return Check("executor", _severity(executor), f"The executor{called} {program} was not found{where}.", advice)


def check_user(_settings: Settings) -> list[Check]:
    """Would tasks run as root?"""
    if os.geteuid() != 0:
        return [Check("user", "ok", "Tasks do not run as root.")]
    sentence = "Tasks run as root here: what they start may do anything to this host."
    return [Check("user", "warning", sentence, "Run workers as a user of their own.")]


def check_data_dir(settings: Settings) -> list[Check]:
    """Can the data directory be written, and only by us?"""
    path = settings.local.data_dir
    advice = "Set DISPATCH_DATA_DIR to a directory that this user may write."
    base = path
    while not base.exists() and base != base.parent:
        base = base.parent
    if not base.is_dir() or not os.access(base, os.W_OK | os.X_OK):
        return [Check("data_dir", "error", f"The data directory {path} cannot be written.", advice)]
    checks = []
    if base == path:
        found = path.stat()
        if found.st_uid not in (os.getuid(), 0):
            return [Check("data_dir", "error", f"The data directory {path} belongs to somebody else.", advice)]
        if found.st_mode & 0o077:
            sentence = f"Others may read the data directory {path}."
            checks.append(Check("data_dir", "warning", sentence, f"Try 'chmod 700 {path}'."))
    free = shutil.disk_usage(base).free
    if free < DISK_BYTES_MIN:
        sentence = f"Only {free // 1_048_576} MiB are free where the data directory {path} is."
        checks.append(Check("data_dir", "warning", sentence, "Make room."))
    what = "can be written" if base == path else "will be made when it is needed"
    return checks or [Check("data_dir", "ok", f"The data directory {path} {what}.")]


def check_limits(settings: Settings) -> list[Check]:
    """Would limits of attempts be held by the kernel, or only be watched, by a worker that is started from here?"""
    needed = controllers_of(settings.routing, settings.execution)
    is_well, sentence, advice = limits.finding(needed, settings.execution.attempt_limits, delegation.look().grounds)
    return [Check("limits", "ok" if is_well else "warning", sentence, advice)]


def check_callbacks(settings: Settings) -> list[Check]:
    """Can tasks' ends be told as the settings want it, and would a receiver know that it is us?"""
    from dispatch.notify import configured  # noqa: PLC0415 - workers make other checks and need not load it

    try:
        rules = configured.webhook_rules(settings)
        chats = configured.chats(settings)
    except ConfigurationError as exc:
        return [Check("callbacks", "error", str(exc))]
    told = f"People are told in: {', '.join(chat.name for chat in chats)}." if chats else "People are told nowhere."
    if not rules.secrets:
        sentence = f"Callbacks go out unsigned: a receiver cannot know that they are ours. {told}"
        advice = "Set DISPATCH_CALLBACK_SECRET_FILE (docs/callbacks.md)."
        return [Check("callbacks", "warning", sentence, advice)]
    return [Check("callbacks", "ok", f"Callbacks are signed. {told}")]


_LOOKS: Final[dict[Need, Callable[[Settings], list[Check]]]] = {
    "service": check_service,
    "redis": check_redis,
    "executor": check_executor,
    "data_dir": check_data_dir,
    "user": check_user,
    "limits": check_limits,
    "callbacks": check_callbacks,
}


def check_all(settings: Settings) -> list[Check]:
    """Make every check."""
    return [check for look in (*_LOOKS.values(), check_keys, check_workers) for check in look(settings)]
