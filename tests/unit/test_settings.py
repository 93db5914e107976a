"""Settings: every one from every source, refusals in words, secrets never shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dispatch.errors import ConfigurationError
from dispatch.setting_kinds import Secret, masked_url
from dispatch.settings import SETTINGS, Settings, load

# name -> what a person writes, what the program gets
EXAMPLES: dict[str, tuple[Any, Any]] = {
    "ats_url": ("https://ats.example/", "https://ats.example"),
    "ats_token": ("s3cret", Secret("s3cret")),
    "ats_org": ("acme", "acme"),
    "ats_project": ("web", "web"),
    "channel": ("a, b ,a", ("a", "b")),
    "actor_id": (" me ", "me"),
    "actor_name": ("Me", "Me"),
    "command": ("claude -p 'two words'", ("claude", "-p", "two words")),
    "lease_ms": ("6000", 6.0),
    "timeout_ms": ("1500", 1.5),
    "idle_s": ("600", 600.0),
    "max_attempts": ("5", 5),
    "max_lease_losses": ("7", 7),
    "retry_backoff_s": ("0.5", 0.5),
    "cooldown_s": ("2", 2.0),
    "grace_s": ("1", 1.0),
    "drain_s": ("3", 3.0),
    "report_patience_s": ("60", 60.0),
    "env": ("HTTP_PROXY,LANG", ("HTTP_PROXY", "LANG")),
    "output_bytes_max": ("2048", 2048),
    "attempt_memory_bytes_max": ("16777216", 16_777_216),
    "attempt_processes_max": ("64", 64),
    "attempt_limits": ("kernel", "kernel"),
    "attempt_log_bytes_max": ("4096", 4096),
    "attempt_log_keep_s": ("3600", 3600.0),
    "redis_url": ("rediss://r.example:6380/1", "rediss://r.example:6380/1"),
    "redis_user": ("worker", "worker"),
    "redis_password": ("pw", Secret("pw")),
    "queue": ("other", "other"),
    "credit": ("0", 0),
    "reconcile_s": ("1.5", 1.5),
    "sweep_s": ("0.25", 0.25),
    "database_password": ("pw", Secret("pw")),
    "flower_auth": ("ops:pw", Secret("ops:pw")),
    "flower_open": ("True", True),
    "bind": ("127.0.0.1:9999", "127.0.0.1:9999"),
    "allowed_origins": (
        "https://Tasks.example, http://x.example:3000/",
        frozenset({"https://tasks.example", "http://x.example:3000"}),
    ),
    "database_url": ("sqlite:////x.db", "sqlite:////x.db"),
    "regrant_delay_s": ("0.75", 0.75),
    "default_lease_ms": ("1000", 1.0),
    "lock_ms": ("1000", 1.0),
    "events_keep_s": ("3600", 3600.0),
    "log_messages_keep_s": ("7200.5", 7200.5),
    "history_keep_s": ("86400", 86400.0),
    "deliveries_keep_s": ("0", 0.0),
    "idempotency_keys_keep_s": ("86400", 86400.0),
    "tasks_keep_s": ("31536000", 31_536_000.0),
    "keys_dir": ("/var/lib/keys", Path("/var/lib/keys")),
    "require_encryption": ("True", True),
    "seal_versions": ("2", frozenset({2})),
    "callback_secret": ("whsec_a,whsec_b", Secret("whsec_a,whsec_b")),
    "callback_allow_http": ("true", True),
    "callback_allow_private": ("10.1.0.0/16, hooks.internal", ("10.1.0.0/16", "hooks.internal")),
    "callback_ports": ("443, 8443", frozenset({443, 8443})),
    "telegram_chat_id": ("-100123", "-100123"),
    "telegram_token": ("123:abc", Secret("123:abc")),
    "telegram_api_url": ("http://127.0.0.1:9/", "http://127.0.0.1:9"),
    "notify_urls": ("slack://a/b/c json://x", Secret("slack://a/b/c json://x")),
    "notify_on": ("failed, in_review", frozenset({"failed", "in_review"})),
    "metrics_bind": ("localhost", "localhost"),
    "service_metrics_port": ("9101", 9101),
    "ingress_metrics_port": ("9102", 9102),
    "worker_metrics_port": ("9103", 9103),
    "traces_url": ("https://collector.example:4318/otlp/", "https://collector.example:4318/otlp"),
    "traces_headers": ("Authorization=Bearer%20x", Secret("Authorization=Bearer%20x")),
    "traces_ratio": ("0.25", 0.25),
    "data_dir": ("/var/lib/dispatch", Path("/var/lib/dispatch")),
    "log_level": ("debug", "debug"),
}
PAIRED = {"DISPATCH_ATS_ORG": "acme", "DISPATCH_ATS_PROJECT": "web"}
SECRETS = [name for name, (_, item) in SETTINGS.items() if item.metadata["secret"]]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty directory, with an empty user configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def value_of(settings: Settings, name: str) -> Any:
    """The value of a setting by its outside name."""
    table, item = SETTINGS[name]
    return getattr(getattr(settings, table), item.name)


def raw_of(name: str) -> Any:
    """What a person writes for a setting."""
    if name not in EXAMPLES:
        pytest.fail(f"add an example of {name} to EXAMPLES")
    return EXAMPLES[name][0]


def expected_of(name: str) -> Any:
    """What the program gets."""
    return EXAMPLES[name][1]


def partner(name: str) -> dict[str, str]:
    """Variables that must be set along with a setting."""
    return PAIRED if name in ("ats_org", "ats_project") else {}


@pytest.mark.parametrize("name", SETTINGS)
def test_from_the_environment(name: str) -> None:
    """DISPATCH_<NAME> sets it."""
    settings = load({**partner(name), f"DISPATCH_{name.upper()}": raw_of(name)})
    assert value_of(settings, name) == expected_of(name)


@pytest.mark.parametrize("name", SETTINGS)
def test_from_toml(name: str, nowhere: Path) -> None:
    """The table of its class in dispatch.toml sets it; numbers may be numbers."""
    raw = raw_of(name)
    number = re.fullmatch(r"[0-9.]+", raw)
    (nowhere / "dispatch.toml").write_text(f"[{SETTINGS[name][0]}]\n{name} = {raw if number else repr(raw)}\n", "utf-8")
    if name == "command":
        (nowhere / "dispatch.toml").write_text('[execution]\ncommand = ["claude", "-p", "two words"]\n', "utf-8")
    assert value_of(load(partner(name)), name) == expected_of(name)


@pytest.mark.parametrize("name", SECRETS)
def test_secret_from_a_file(name: str, nowhere: Path) -> None:
    """A secret can be given as ..._FILE in the environment and in TOML; the closing line break is no part of it."""
    (nowhere / "secret").write_text(expected_of(name).reveal() + "\n", "utf-8")
    assert value_of(load({f"DISPATCH_{name.upper()}_FILE": str(nowhere / "secret")}), name) == expected_of(name)
    (nowhere / "dispatch.toml").write_text(f'[{SETTINGS[name][0]}]\n{name}_file = "secret"\n', "utf-8")
    assert value_of(load({}), name) == expected_of(name)
    assert value_of(load({f"DISPATCH_{name.upper()}": "other"}), name) == Secret("other")


def test_secret_given_twice_or_unreadable(nowhere: Path) -> None:
    """A secret given both ways, or as a file that cannot be read, is refused."""
    (nowhere / "secret").write_text("x", "utf-8")
    with pytest.raises(ConfigurationError, match="Both ats_token and DISPATCH_ATS_TOKEN_FILE are set"):
        load({"DISPATCH_ATS_TOKEN": "x", "DISPATCH_ATS_TOKEN_FILE": str(nowhere / "secret")})
    (nowhere / "empty").write_text("\n")
    with pytest.raises(ConfigurationError, match=r"DISPATCH_CALLBACK_SECRET_FILE names .*empty, which is empty\."):
        load({"DISPATCH_CALLBACK_SECRET_FILE": str(nowhere / "empty")})
    (nowhere / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"binary, which cannot be read: it is not text in UTF-8\."):
        load({"DISPATCH_ATS_TOKEN_FILE": str(nowhere / "binary")})
    with pytest.raises(ConfigurationError, match=r"DISPATCH_ATS_TOKEN_FILE names .*missing, which cannot be read"):
        load({"DISPATCH_ATS_TOKEN_FILE": str(nowhere / "missing")})


def test_order_of_sources(nowhere: Path) -> None:
    """Options win over the environment, which wins over TOML, which wins over the default."""
    assert load({}).execution.max_attempts == 3
    (nowhere / "dispatch.toml").write_text("[execution]\nmax_attempts = 4\n", "utf-8")
    assert load({}).execution.max_attempts == 4
    environ = {"DISPATCH_MAX_ATTEMPTS": "5"}
    assert load(environ).execution.max_attempts == 5
    assert load(environ, {"max_attempts": 6}).execution.max_attempts == 6
    assert load(environ, {"max_attempts": None}).execution.max_attempts == 5


def test_which_file_is_read(nowhere: Path) -> None:
    """DISPATCH_CONFIG names the file; without it ./dispatch.toml, then the user's; a named one must exist."""
    user = nowhere / "config" / "dispatch" / "dispatch.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[ats]\nchannel = "user"\n', "utf-8")
    assert load({}).ats.channels == ("user",)
    (nowhere / "dispatch.toml").write_text('[ats]\nchannel = "here"\n', "utf-8")
    assert load({}).ats.channels == ("here",)
    (nowhere / "named.toml").write_text('[ats]\nchannel = "named"\n', "utf-8")
    assert load({"DISPATCH_CONFIG": str(nowhere / "named.toml")}).ats.channels == ("named",)
    with pytest.raises(ConfigurationError, match=r"DISPATCH_CONFIG names .*absent.toml, which is not a file"):
        load({"DISPATCH_CONFIG": str(nowhere / "absent.toml")})


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"DISPATCH_LEASE": "1"}, "DISPATCH_LEASE is not a setting. Did you mean DISPATCH_LEASE_MS?"),
        ({"DISPATCH_CHANEL": "a"}, "DISPATCH_CHANEL is not a setting. Did you mean DISPATCH_CHANNEL?"),
        ({"DISPATCH_XYZZYQW": "1"}, "DISPATCH_XYZZYQW is not a setting."),
        ({"DISPATCH_LEASE_MS": "soon"}, "DISPATCH_LEASE_MS must be a number of milliseconds (it is 'soon')."),
        ({"DISPATCH_LEASE_MS": "nan"}, "DISPATCH_LEASE_MS must be between 400 and 86400000 (it is 'nan')."),
        ({"DISPATCH_LEASE_MS": "1"}, "DISPATCH_LEASE_MS must be between 400 and 86400000 (it is '1')."),
        ({"DISPATCH_MAX_ATTEMPTS": "1.5"}, "DISPATCH_MAX_ATTEMPTS must be a whole number (it is '1.5')."),
        (
            {"DISPATCH_TASKS_KEEP_S": "30"},
            "DISPATCH_TASKS_KEEP_S must be 0, or between 3600 and 315360000 (it is '30').",
        ),
        ({"DISPATCH_MAX_ATTEMPTS": "0"}, "DISPATCH_MAX_ATTEMPTS must be between 1 and 100 (it is '0')."),
        ({"DISPATCH_ATS_URL": "ats.example"}, "DISPATCH_ATS_URL must start with http:// or https://"),
        ({"DISPATCH_REDIS_URL": "http://x"}, "DISPATCH_REDIS_URL must start with redis:// or rediss://"),
        ({"DISPATCH_LOG_LEVEL": "loud"}, "DISPATCH_LOG_LEVEL must be one of debug, info, warning, error"),
        ({"DISPATCH_REQUIRE_ENCRYPTION": "yes"}, "DISPATCH_REQUIRE_ENCRYPTION must be true or false"),
        ({"DISPATCH_SEAL_VERSIONS": "1,3"}, "DISPATCH_SEAL_VERSIONS must be 1, 2 or 1,2"),
        ({"DISPATCH_SEAL_VERSIONS": ""}, "DISPATCH_SEAL_VERSIONS must be 1, 2 or 1,2"),
        ({"DISPATCH_ENV": "HOME,DISPATCH_ATS_TOKEN"}, "DISPATCH_ENV must not hold names that begin with DISPATCH_"),
        ({"DISPATCH_ENV": "A B"}, "DISPATCH_ENV must be names of environment variables, without values (it is 'A B')."),
        ({"DISPATCH_COMMAND": "  "}, "DISPATCH_COMMAND must name a command"),
        ({"DISPATCH_COMMAND": "a 'b"}, "DISPATCH_COMMAND must have a second quotation mark"),
        ({"DISPATCH_CHANNEL": " , "}, "DISPATCH_CHANNEL names no channel"),
        ({"DISPATCH_ATS_ORG": "acme"}, "belong together"),
        ({"DISPATCH_ATS_PROJECT": "web"}, "belong together"),
        ({"DISPATCH_TRACES_URL": "127.0.0.1:4318"}, "DISPATCH_TRACES_URL must start with http:// or https://"),
        (
            {"DISPATCH_TRACES_URL": "http://u:pw@c:4318"},
            "without user, password or query (it is 'http://u:***@c:4318')",
        ),
        ({"DISPATCH_TRACES_URL": "http://c:4318/v1/traces"}, "must be the base URL, without /v1/traces"),
        ({"DISPATCH_TRACES_RATIO": "1.1"}, "DISPATCH_TRACES_RATIO must be between 0 and 1"),
        ({"DISPATCH_ATTEMPT_MEMORY_BYTES_MAX": "512M"}, "must be a whole number (it is '512M')."),
        ({"DISPATCH_EVENTS_KEEP_S": "90d"}, "must be a number of seconds (it is '90d')."),
        ({"DISPATCH_BIND": "8700"}, "DISPATCH_BIND must be host:port, such as 127.0.0.1:8700 (it is '8700')."),
        ({"DISPATCH_BIND": "localhost:99999"}, "DISPATCH_BIND must be host:port"),
        ({"DISPATCH_METRICS_BIND": "10.0.0.1:9701"}, "must be an address without a port"),
        ({"DISPATCH_ENV": "HTTP_PROXY=x"}, "DISPATCH_ENV must be names of environment variables"),
        ({"DISPATCH_REDIS_URL": "redis://127.0.0.1:6379/x"}, "must end with the number of a database"),
        ({"DISPATCH_REDIS_URL": "unix:///run/redis.sock?db=x"}, "must end with the number of a database"),
        ({"DISPATCH_DATABASE_URL": "mysql://u:hunter2@x/y"}, "(it is 'mysql://u:***@x/y')"),
        ({"DISPATCH_DATABASE_URL": "sqlite:///var/lib/tasks.db"}, "with four slashes"),
        ({"DISPATCH_ATS_TOKEN_FILE": "/no/such/key"}, "which cannot be read: No such file or directory."),
    ],
)
def test_refusals_from_the_environment(environ: dict[str, str], words: str) -> None:
    """A wrong value or name is refused in a sentence that names it and what would be right."""
    with pytest.raises(ConfigurationError) as caught:
        load(environ)
    assert words in str(caught.value)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("[exekution]\nlease_ms = 1\n", "[exekution] is not a known table. Did you mean execution?"),
        ("lease_ms = 6000\n", "lease_ms stands in no table; write it below [execution]."),
        ("[execution]\nlease = 1\n", "lease in [execution] is not a setting. Did you mean"),
        ("[ats]\nlease_ms = 6000\n", "lease_ms in [ats] is not a setting."),
        ("[execution]\nlease_ms = true\n", "must be a number"),
        ("[execution]\nlease_ms = [1]\n", "must be a number"),
        ("[ats]\nchannel = 1\n", "must be a comma-separated list"),
        ("[ats]\nchannel = [1]\n", "must be a comma-separated list"),
        ("[trust]\nrequire_encryption = 1\n", "must be true or false"),
        ("[ats]\nactor_id = 1\n", "must be a string"),
        ("[ats\n", "cannot be read as TOML"),
        ("[execution]\nmax_attempts_file = 'x'\n", "max_attempts_file in [execution] is not a setting."),
    ],
)
def test_refusals_from_toml(document: str, words: str, nowhere: Path) -> None:
    """The same for the file, whose path is in the sentence."""
    (nowhere / "dispatch.toml").write_text(document, "utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load({})
    assert words in str(caught.value)
    assert "dispatch.toml" in str(caught.value)


@pytest.mark.parametrize("shape", [repr, str, "{}".format, "{!r}".format, "%s".__mod__])
def test_secrets_are_masked_in_every_shape(shape: Any) -> None:
    """repr, str and format of a secret, and of all settings, show stars; reveal gives the value."""
    assert "hunter2" not in shape(Secret("hunter2"))
    assert "hunter2" not in f"{Secret('hunter2'):>20}"
    settings = load({f"DISPATCH_{name.upper()}": "hunter2" for name in SECRETS})
    assert "hunter2" not in shape(settings)
    assert [value_of(settings, name).reveal() for name in SECRETS] == ["hunter2"] * len(SECRETS)
    assert shape(Secret("")).strip() in ("", "Secret('')")


def test_an_empty_collector_is_none() -> None:
    """DISPATCH_TRACES_URL may be set to nothing, which switches traces off whatever the file says."""
    assert load({"DISPATCH_TRACES_URL": " "}).traces.url is None


def test_a_password_in_a_query_is_shown_as_stars() -> None:
    """PostgreSQL takes the password as a parameter as well."""
    url = "postgresql://host/db?user=u&password=hunter2&sslpassword=hunter2&x=1"
    assert masked_url(url) == "postgresql://host/db?user=u&password=***&sslpassword=***&x=1"
    assert "hunter2" not in repr(load({"DISPATCH_DATABASE_URL": url}))


@pytest.mark.parametrize(("name", "scheme"), [("redis_url", "redis"), ("database_url", "postgresql")])
@pytest.mark.parametrize("password", ["hunter2", "p/hunter2", "p@hunter2", "p:hunter2"])
def test_a_password_in_a_url_is_shown_as_stars(name: str, scheme: str, password: str) -> None:
    """The URL stays as written, and shows its host but not its password."""
    url = f"{scheme}://user:{password}@host:1/0"
    settings = load({f"DISPATCH_{name.upper()}": url})
    assert value_of(settings, name) == url
    assert f"{value_of(settings, name)}" == url
    assert f"{scheme}://user:***@host:1/0" in repr(settings)
    assert "hunter2" not in repr(settings) + masked_url(url)
    with pytest.raises(ConfigurationError) as caught:
        load({"DISPATCH_ATS_URL": f"ftp://user:{password}@host"})
    assert "hunter2" not in str(caught.value)


def test_a_refused_secret_is_not_quoted(nowhere: Path) -> None:
    """A secret of the wrong type is refused without its value."""
    (nowhere / "dispatch.toml").write_text("[ats]\nats_token = 123456789\n", "utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load({})
    assert "must be a string" in str(caught.value)
    assert "123456789" not in str(caught.value)


def test_settings_are_frozen() -> None:
    """Nobody changes a setting after loading."""
    with pytest.raises(AttributeError):
        load({}).ats.url = "http://other"  # type: ignore[misc]


def test_database_defaults_to_a_file_in_the_data_directory() -> None:
    """Without a database_url the store is SQLite in the data directory."""
    assert load({"DISPATCH_DATA_DIR": "/d"}).database_url == "sqlite:////d/tasks.db"
    assert load({"DISPATCH_DATABASE_URL": "sqlite:////x.db"}).database_url == "sqlite:////x.db"


def test_keys_lie_in_the_data_directory_by_default() -> None:
    """Keys move with the data directory, unless they have a place of their own."""
    assert load({"DISPATCH_DATA_DIR": "/var/lib/dispatch"}).keys_dir == Path("/var/lib/dispatch/keys")
    assert load({"DISPATCH_KEYS_DIR": "/etc/dispatch/keys"}).keys_dir == Path("/etc/dispatch/keys")
    assert load({"DISPATCH_SEAL_VERSIONS": " 2, 1"}).trust.seal_versions == {1, 2}


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("postgresql://ann@db.example/tasks", "postgresql://ann@db.example/tasks?password=a%2F%40%3F%26b"),
        ("postgres:///tasks?host=/run/pg", "postgres:///tasks?host=/run/pg&password=a%2F%40%3F%26b"),
        ("sqlite:////srv/tasks.db", "sqlite:////srv/tasks.db"),
    ],
)
def test_the_password_of_the_database_may_stand_apart(url: str, whole: str, nowhere: Path) -> None:
    """It is put into a URL of PostgreSQL as libpq reads it, whatever is in it, and is shown as stars."""
    (nowhere / "word").write_text("a/@?&b\n")
    found = load({"DISPATCH_DATABASE_URL": url, "DISPATCH_DATABASE_PASSWORD_FILE": str(nowhere / "word")})
    assert found.database_url == whole
    assert "a%2F" not in masked_url(found.database_url)
    assert "a/@" not in repr(found)


@pytest.mark.parametrize("wrong", ["", "yes", "1", "truth"])
def test_a_flag_is_true_or_false(wrong: str) -> None:
    """Nothing else opens a door."""
    with pytest.raises(ConfigurationError, match="DISPATCH_FLOWER_OPEN must be true or false"):
        load({"DISPATCH_FLOWER_OPEN": wrong})


@pytest.mark.parametrize("value", ["tasks.example", "https://tasks.example/path", "ftp://x", "https://", "*"])
def test_an_origin_is_scheme_and_host(value: str) -> None:
    """What no browser would send as Origin is a mistake, not a rule that never matches."""
    with pytest.raises(ConfigurationError, match="ALLOWED_ORIGINS must hold origins"):
        load({"DISPATCH_ALLOWED_ORIGINS": value})
