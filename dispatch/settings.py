"""Settings: one frozen, typed tree, read once from TOML and the environment.

Order, the later wins: defaults, the TOML file, ``DISPATCH_*`` variables,
``overrides`` (command-line options). Every setting is declared once, below,
with its environment name, unit and meaning; ``SETTINGS`` lists them for the
documentation and its tests. Durations are seconds inside, whatever the unit of
the setting (``*_ms`` on the outside becomes a ``*_s`` field).

Only composition roots (cli, workers.lifecycle, dispatch.celery) call ``load``;
everybody else receives values.
"""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import platformdirs

from dispatch import routing_settings
from dispatch import setting_kinds as kinds
from dispatch.core.retention import Retention
from dispatch.core.routing import Routing
from dispatch.errors import ConfigurationError
from dispatch.setting_kinds import Secret, masked_url, setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ENV_PREFIX: Final = "DISPATCH_"
_DAY_S: Final = 86_400
_OTHER_NAMES: Final = frozenset({"DISPATCH_CONFIG", "DISPATCH_ATTEMPT"})


@dataclass(frozen=True, slots=True)
class Ats:
    """How to reach the task service, and as whom."""

    url: str = setting("ats_url", "http://127.0.0.1:8700", kinds.url("http", "https"), "base URL of the task service")
    token: Secret | None = setting(
        "ats_token", None, kinds.secret, "bearer token sent to the task service", secret=True
    )
    org: str | None = setting("ats_org", None, kinds.text, "organisation; sets project-scoped routes")
    project: str | None = setting("ats_project", None, kinds.text, "project; sets project-scoped routes")
    channels: tuple[str, ...] = setting(
        "channel", "default", kinds.names, "channel or comma-separated channels to watch"
    )
    actor_id: str = setting(
        "actor_id",
        lambda: f"dispatch-{socket.gethostname()}",
        kinds.text,
        "who claims; a second ingress on the same host appends -2, and so on",
    )
    actor_name: str = setting("actor_name", "dispatch", kinds.text, "the name shown for the actor")


@dataclass(frozen=True, slots=True)
class Execution:
    """How an attempt runs. Durations in seconds."""

    command: tuple[str, ...] = setting(
        "command", "claude -p", kinds.argv, "the executor's command line; the prompt comes on its stdin"
    )
    lease_s: float = setting(
        "lease_ms", 120_000, kinds.milliseconds(400, 86_400_000), "how long a lease lasts, milliseconds"
    )
    timeout_s: float = setting(
        "timeout_ms", 3_600_000, kinds.milliseconds(100, 604_800_000), "soft time limit of an attempt, milliseconds"
    )
    idle_s: float = setting(
        "idle_s",
        0,
        kinds.seconds_or_never(*routing_settings.IDLE_S),
        "an attempt that writes nothing and uses almost no processor time for so long is ended, seconds; 0: none is",
    )
    max_attempts: int = setting(
        "max_attempts", 3, kinds.whole(1, 100), "failed attempts before a task is failed for good"
    )
    max_lease_losses: int = setting(
        "max_lease_losses",
        10,
        kinds.whole(1, 1000),
        "started attempts that may vanish with their host before a task is poison",
    )
    retry_backoff_s: float = setting(
        "retry_backoff_s",
        5,
        kinds.seconds(0, 300),
        "first pause between attempts, seconds; doubles, jittered, at most 300",
    )
    cooldown_s: float = setting("cooldown_s", 60, kinds.seconds(0, 86_400), "pause after an exit 75 (not now), seconds")
    grace_s: float = setting("grace_s", 10, kinds.seconds(0, 600), "from TERM to KILL, seconds")
    drain_s: float = setting(
        "drain_s", 30, kinds.seconds(0, 86_400), "how long a drain lets running attempts finish, seconds"
    )
    report_patience_s: float = setting(
        "report_patience_s",
        3600,
        kinds.seconds(0, 86_400),
        "how long a slot waits with a report that the service does not take, seconds; later its worker delivers it",
    )
    env: tuple[str, ...] = setting(
        "env",
        "",
        kinds.environment_names,
        "further environment variables that the child may see, comma-separated names",
    )
    output_bytes_max: int = setting(
        "output_bytes_max",
        1_048_576,
        kinds.whole(1024, 4_194_304),
        "how much of stdout is kept, bytes (a quarter head, the rest tail)",
    )
    attempt_memory_bytes_max: int = setting(
        "attempt_memory_bytes_max",
        0,
        kinds.limit(*routing_settings.MEMORY_BYTES),
        "memory that an attempt and all it starts may use, bytes, at least 16 MiB; 0: no limit",
    )
    attempt_processes_max: int = setting(
        "attempt_processes_max",
        0,
        kinds.limit(*routing_settings.PROCESSES),
        "processes that an attempt may have at once; where the kernel holds it, threads count too; 0: no limit",
    )
    attempt_limits: str = setting(
        "attempt_limits",
        "auto",
        kinds.one_of("auto", "kernel", "watched"),
        "who holds these limits: kernel (no worker starts without control groups), watched (the worker looks), auto",
    )
    attempt_log_bytes_max: int = setting(
        "attempt_log_bytes_max",
        67_108_864,
        kinds.whole(0, 1 << 40),
        "how much of an attempt's output its log on the worker's host holds, bytes; 0: no logs",
    )
    attempt_log_keep_s: float = setting(
        "attempt_log_keep_s",
        604_800,
        kinds.seconds(60, 315_360_000),
        "how long those logs are kept after their last line, seconds",
    )


@dataclass(frozen=True, slots=True)
class Broker:
    """Redis."""

    url: str = setting(
        "redis_url",
        "redis://127.0.0.1:6379/0",
        kinds.redis,
        "the broker; may carry a password and is masked when shown",
    )
    user: str | None = setting("redis_user", None, kinds.text, "user of the broker, if not in its URL")
    password: Secret | None = setting(
        "redis_password", None, kinds.secret, "password of the broker, if not in its URL", secret=True
    )
    queue: str = setting("queue", "dispatch", kinds.text, "the Celery queue of tasks")


@dataclass(frozen=True, slots=True)
class Ingress:
    """Admission and reconciling."""

    credit: int = setting(
        "credit",
        2,
        kinds.whole(0, 1000),
        "tasks claimed beyond the free slots, so that no slot waits for a claim; grows while tasks are short; 0: none",
    )
    reconcile_s: float = setting(
        "reconcile_s", 30, kinds.seconds(0.1, 3600), "how often the ingress compares itself with the service, seconds"
    )
    sweep_s: float = setting(
        "sweep_s", 2, kinds.seconds(0.1, 600), "how often the ingress looks for messages that Redis lost, seconds"
    )


@dataclass(frozen=True, slots=True)
class Service:
    """The task service of our own."""

    bind: str = setting("bind", "127.0.0.1:8700", kinds.address, "address and port that the task service listens on")
    allowed_origins: frozenset[str] = setting(
        "allowed_origins",
        "",
        kinds.origins,
        "web sites whose pages may call the service with a key, comma-separated origins such as https://tasks.example",
    )
    database_url: str | None = setting(
        "database_url",
        None,
        kinds.database,
        "the store, sqlite:////path or postgresql://user@host/name; default is a SQLite file in the data directory",
    )
    database_password: Secret | None = setting(
        "database_password", None, kinds.secret, "password of the PostgreSQL user, if not in the URL", secret=True
    )
    regrant_delay_s: float = setting(
        "regrant_delay_s",
        15,
        kinds.seconds(0, 600),
        "how long after its expiry a lease is given away at the earliest, seconds",
    )
    default_lease_s: float = setting(
        "default_lease_ms",
        60_000,
        kinds.milliseconds(1, 86_400_000),
        "lease of an ATS claim that names none, milliseconds",
    )
    lock_s: float = setting(
        "lock_ms",
        3_600_000,
        kinds.milliseconds(1000, 86_400_000),
        "lock of a Task Tools claim that names none, from the holder's last call about the task, milliseconds",
    )
    events_keep_s: float = setting(
        "events_keep_s",
        7 * _DAY_S,
        kinds.seconds_or_never(3600, 3650 * _DAY_S),
        "how long the event of a message can be sent again to a subscriber that was away, seconds; 0: for ever",
    )
    log_messages_keep_s: float = setting(
        "log_messages_keep_s",
        7 * _DAY_S,
        kinds.seconds_or_never(3600, 3650 * _DAY_S),
        "how long messages of kind log (live output, progress) are kept after their task's end, seconds; 0: for ever",
    )
    history_keep_s: float = setting(
        "history_keep_s",
        0,
        kinds.seconds_or_never(3600, 3650 * _DAY_S),
        "how long a task's history is kept after its end, seconds; 0: as long as the task",
    )
    deliveries_keep_s: float = setting(
        "deliveries_keep_s",
        30 * _DAY_S,
        kinds.seconds_or_never(3600, 3650 * _DAY_S),
        "how long callbacks that were delivered or given up are listed, seconds; 0: for ever",
    )
    idempotency_keys_keep_s: float = setting(
        "idempotency_keys_keep_s",
        30 * _DAY_S,
        kinds.seconds_or_never(86_400, 3650 * _DAY_S),
        "how long a repeated request is known by its idempotency key, seconds; 0: for ever",
    )
    tasks_keep_s: float = setting(
        "tasks_keep_s",
        0,
        kinds.seconds_or_never(3600, 3650 * _DAY_S),
        "how long ended tasks are kept, with all that belongs to them, seconds; 0: for ever",
    )

    @property
    def retention(self) -> Retention:
        """How long what is kept."""
        return Retention(
            events_s=self.events_keep_s,
            history_s=self.history_keep_s,
            log_messages_s=self.log_messages_keep_s,
            deliveries_s=self.deliveries_keep_s,
            idempotency_keys_s=self.idempotency_keys_keep_s,
            tasks_s=self.tasks_keep_s,
        )


@dataclass(frozen=True, slots=True)
class Trust:
    """Keys, and whose tasks are accepted (docs/encryption.md)."""

    keys_dir: Path | None = setting(
        "keys_dir",
        None,
        kinds.place,
        "the dispatcher's keys and its trusted senders; default is keys in the data directory",
    )
    require_encryption: bool = setting(
        "require_encryption",
        False,
        kinds.flag,
        "whether only sealed tasks are accepted; true here or by 'dispatch config' means true",
    )
    seal_versions: frozenset[int] = setting(
        "seal_versions", "1,2", kinds.versions, "versions of the sealed envelope that are accepted from anybody"
    )


@dataclass(frozen=True, slots=True)
class Notify:
    """Who is told that something happened to a task (docs/callbacks.md)."""

    callback_secret: Secret | None = setting(
        "callback_secret",
        None,
        kinds.secret,
        "signs callbacks: whsec_ and the base64 of 24 to 64 random bytes; while keys change several, comma-separated",
        secret=True,
    )
    callback_allow_http: bool = setting(
        "callback_allow_http", default=False, parse=kinds.flag, meaning="whether callbacks may go to http:// addresses"
    )
    callback_allow_private: tuple[str, ...] = setting(
        "callback_allow_private",
        "",
        kinds.names,
        "receivers in your own network, comma-separated: networks such as 10.1.0.0/16, and host names",
    )
    callback_ports: frozenset[int] = setting(
        "callback_ports", "443", kinds.ports, "ports that callbacks may go to, comma-separated"
    )
    telegram_chat_id: str | None = setting(
        "telegram_chat_id", None, kinds.text, "the Telegram chat that is told; needs the token"
    )
    telegram_token: Secret | None = setting(
        "telegram_token", None, kinds.secret, "token of the Telegram bot that tells it", secret=True
    )
    telegram_api_url: str = setting(
        "telegram_api_url", "https://api.telegram.org", kinds.url("http", "https"), "base URL of the Telegram Bot API"
    )
    urls: Secret | None = setting(
        "notify_urls",
        None,
        kinds.secret,
        "other places to tell, as Apprise writes them, separated by blanks or commas; needs the extra 'notify'",
        secret=True,
    )
    on: frozenset[str] = setting(
        "notify_on",
        "completed,failed",
        kinds.events,
        "what people are told of: completed, failed, picked_up, cancelled, rejected, in_review",
    )


@dataclass(frozen=True, slots=True)
class Flower:
    """Flower, the page that shows workers, queues and attempts."""

    auth: Secret | None = setting(
        "flower_auth", None, kinds.secret, "who may see Flower's pages: user:password, comma-separated", secret=True
    )
    open: bool = setting(
        "flower_open", False, kinds.flag, "true starts Flower without a login: whoever reaches it sees all it shows"
    )


@dataclass(frozen=True, slots=True)
class Metrics:
    """Prometheus metrics (docs/metrics.md)."""

    bind: str = setting(
        "metrics_bind", "127.0.0.1", kinds.host, "address that metrics are served on; whoever reaches it may read them"
    )
    service_port: int = setting(
        "service_metrics_port", 0, kinds.whole(0, 65_535), "port of the task service's metrics; 0: none"
    )
    ingress_port: int = setting(
        "ingress_metrics_port", 0, kinds.whole(0, 65_535), "port of an ingress's metrics; 0: none"
    )
    worker_port: int = setting(
        "worker_metrics_port", 0, kinds.whole(0, 65_535), "port of a worker's metrics, its slots included; 0: none"
    )


@dataclass(frozen=True, slots=True)
class Traces:
    """OpenTelemetry traces (docs/traces.md)."""

    url: str | None = setting(
        "traces_url",
        None,
        kinds.collector,
        "base URL of a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318; needs the extra 'otel'",
    )
    headers: Secret | None = setting(
        "traces_headers",
        None,
        kinds.secret,
        "headers of what is sent there: name=value, comma-separated, percent-encoded",
        secret=True,
    )
    ratio: float = setting(
        "traces_ratio",
        1,
        kinds.share,
        "share of tasks that are traced, 0 to 1; the same in every process",
    )


@dataclass(frozen=True, slots=True)
class Local:
    """This host."""

    data_dir: Path = setting(
        "data_dir",
        lambda: platformdirs.user_state_dir("dispatch"),
        kinds.path,
        "database, logs, keys, work directories",
    )
    log_level: str = setting(
        "log_level", "info", kinds.one_of("debug", "info", "warning", "error"), "least severity that is logged"
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings. The TOML file has one table per field of this class."""

    ats: Ats = field(default_factory=Ats)
    execution: Execution = field(default_factory=Execution)
    broker: Broker = field(default_factory=Broker)
    ingress: Ingress = field(default_factory=Ingress)
    service: Service = field(default_factory=Service)
    trust: Trust = field(default_factory=Trust)
    notify: Notify = field(default_factory=Notify)
    flower: Flower = field(default_factory=Flower)
    metrics: Metrics = field(default_factory=Metrics)
    traces: Traces = field(default_factory=Traces)
    local: Local = field(default_factory=Local)
    routing: Routing = field(default_factory=Routing)
    """Executors, routes and classes: tables whose names the operator chooses (dispatch.routing_settings)."""

    @property
    def database_url(self) -> str:
        """The store's URL, the default resolved, with the password that stands in a setting of its own."""
        url = self.service.database_url or f"sqlite:///{self.local.data_dir / 'tasks.db'}"
        if self.service.database_password is None or not url.startswith("postgres"):
            return url
        # libpq takes every parameter in the query, where it does not matter how many hosts the URL names.
        secret = quote(self.service.database_password.reveal(), safe="")
        return f"{url}{'&' if '?' in url else '?'}password={secret}"

    @property
    def keys_dir(self) -> Path:
        """The directory of keys, the default resolved."""
        return self.trust.keys_dir or self.local.data_dir / "keys"


def declared() -> Iterator[tuple[str, Field[Any]]]:
    """Yield every declared setting as (table, field), in documentation order."""
    for table in fields(Settings):
        if table.name == "routing":
            continue
        for item in fields(table.default_factory):  # type: ignore[arg-type]
            yield table.name, item


SETTINGS: Final[Mapping[str, tuple[str, Field[Any]]]] = {
    item.metadata["name"]: (table, item) for table, item in declared()
}
"""Setting name -> (TOML table, field)."""


def _config_path(environ: Mapping[str, str]) -> Path | None:
    named = environ.get("DISPATCH_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.exists() or path.is_dir():
            raise ConfigurationError(f"DISPATCH_CONFIG names {path}, which is not a file.")
        return path
    for path in (Path("dispatch.toml"), Path(platformdirs.user_config_dir("dispatch")) / "dispatch.toml"):
        if path.is_file():
            return path
    return None


def _nearest(name: str, known: Iterator[str] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _document(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path} cannot be read: {kinds.reason_of(exc)}.") from exc
    except ValueError as exc:
        raise ConfigurationError(f"{path} cannot be read as TOML: {exc}.") from exc


def _from_toml(path: Path, document: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    for table, values in document.items():
        if table in routing_settings.TABLES:
            continue
        if table in SETTINGS and not isinstance(values, dict):
            raise ConfigurationError(f"{path}: {table} stands in no table; write it below [{SETTINGS[table][0]}].")
        known = [name for name, (owner, _) in SETTINGS.items() if owner == table]
        if not known or not isinstance(values, dict):
            tables = sorted({*(owner for owner, _ in SETTINGS.values()), *routing_settings.TABLES})
            raise ConfigurationError(f"{path}: [{table}] is not a known table.{_nearest(table, tables)}")
        for name, value in values.items():
            target = name.removesuffix("_file")
            if name not in known and not (target in known and SETTINGS[target][1].metadata["secret"]):
                raise ConfigurationError(f"{path}: {name} in [{table}] is not a setting.{_nearest(name, known)}")
            found[name] = (value, f"{name} in {path}")
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    known = [ENV_PREFIX + name.upper() for name in SETTINGS]
    known += [ENV_PREFIX + name.upper() + "_FILE" for name, (_, item) in SETTINGS.items() if item.metadata["secret"]]
    found: dict[str, tuple[Any, str]] = {}
    for name, value in environ.items():
        if not name.startswith(ENV_PREFIX) or name in _OTHER_NAMES:
            continue
        if name not in known:
            raise ConfigurationError(f"{name} is not a setting.{_nearest(name, known)}")
        found[name.removeprefix(ENV_PREFIX).lower()] = (value, name)
    return found


def _read_secret_files(found: dict[str, tuple[Any, str]]) -> None:
    for name in [n for n in found if n.endswith("_file") and n not in SETTINGS]:
        value, origin = found.pop(name)
        target = name.removesuffix("_file")
        if target in found:
            raise ConfigurationError(f"Both {target} and {origin} are set; set one of them.")
        try:
            found[target] = (kinds.secret_in(Path(str(value)).expanduser()), origin)
        except ValueError as exc:
            raise ConfigurationError(f"{origin} names {value}, {exc}.") from exc


def _check_relations(settings: Settings) -> None:
    if bool(settings.ats.project) != bool(settings.ats.org):
        raise ConfigurationError("DISPATCH_ATS_ORG and DISPATCH_ATS_PROJECT belong together: set both or neither.")
    if not settings.ats.channels:
        raise ConfigurationError("DISPATCH_CHANNEL names no channel; set it to the channel to watch.")


def _routing(path: Path | None, document: dict[str, Any], execution: Execution, broker: Broker) -> Routing:
    try:
        return routing_settings.read(
            document,
            command=execution.command,
            queue=broker.queue,
            timeout_s=execution.timeout_s,
            max_attempts=execution.max_attempts,
            idle_s=execution.idle_s,
        )
    except ValueError as exc:
        stop = "" if str(exc).endswith("?") else "."
        raise ConfigurationError(f"{path}: {exc}{stop}") from exc


def load(environ: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings. ``overrides`` maps setting names to raw values, None meaning "not given".

    Raises ConfigurationError, which names the setting, what was wrong and what would be right.
    """
    environ = os.environ if environ is None else environ
    path = _config_path(environ)
    document = _document(path)
    found = _from_toml(path, document) if path else {}
    from_env = _from_environment(environ)
    for name in from_env:
        found.pop(name + "_file", None)
        found.pop(name.removesuffix("_file"), None)
    found.update(from_env)
    _read_secret_files(found)
    for name, value in (overrides or {}).items():
        if value is not None:
            found[name] = (value, f"option {name}")
    tables: dict[str, dict[str, Any]] = {}
    for name, (value, origin) in found.items():
        table, item = SETTINGS[name]
        try:
            tables.setdefault(table, {})[item.name] = item.metadata["parse"](value)
        except ValueError as exc:
            shown = "" if item.metadata["secret"] else f" (it is {masked_url(repr(value))})"
            raise ConfigurationError(f"{origin} {exc}{shown}.") from exc
    execution = Execution(**tables.get("execution", {}))
    broker = Broker(**tables.get("broker", {}))
    settings = Settings(
        ats=Ats(**tables.get("ats", {})),
        execution=execution,
        broker=broker,
        ingress=Ingress(**tables.get("ingress", {})),
        service=Service(**tables.get("service", {})),
        trust=Trust(**tables.get("trust", {})),
        notify=Notify(**tables.get("notify", {})),
        flower=Flower(**tables.get("flower", {})),
        metrics=Metrics(**tables.get("metrics", {})),
        traces=Traces(**tables.get("traces", {})),
        local=Local(**tables.get("local", {})),
        routing=_routing(path, document, execution, broker),
    )
    _check_relations(settings)
    return settings
