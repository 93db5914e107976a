"""docker/compose.yaml and docker/Dockerfile, as far as they can be held to without a container engine.

What the parts of compose.yaml are told to run is run here, as processes, with the settings, secrets and keys that the
file gives them; only names of hosts and paths are replaced. That the image is built as it says is checked by
``python -m tests.support.image_steps``; mounts, networks and limits are the engine's, and only read here.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from dispatch.settings import load
from tests.support.cli import Cli
from tests.support.image_steps import DOCKERFILE, instructions, stages
from tests.support.postgres import shared_server
from tests.support.processes import MARK, ROOT, LogProcess, eventually
from tests.support.redis import ConfiguredRedis, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.stack import Stack

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("init", "service", "ingress", "worker", "flower")


def seconds(text: str) -> int:
    """Return a duration of Compose."""
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return int(found[1])


def secrets_of(service: str) -> dict[str, str]:
    """Return where a service finds its secrets: path in the container -> file beside compose.yaml."""
    found = {}
    for one in SERVICES[service].get("secrets", ()):
        name, target = (one["source"], one["target"]) if isinstance(one, dict) else (one, f"/run/secrets/{one}")
        found[target] = COMPOSE["secrets"][name]["file"]
    return found


def test_only_service_and_flower_are_published_and_on_loopback() -> None:
    """Ports on 127.0.0.1 and nowhere else; Redis and PostgreSQL in networks without a way out."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"service": ["127.0.0.1:8700:8700"], "flower": ["127.0.0.1:5555:5555"]}
    networks = {name: set(service["networks"]) for name, service in SERVICES.items()}
    internal = {name for name, network in COMPOSE["networks"].items() if (network or {}).get("internal")}
    assert networks["redis"] | networks["postgres"] == {"queue", "data"} == internal
    assert {name for name, joined in networks.items() if "data" in joined} == {"postgres", "init", "service"}


def test_every_part_starts_when_what_it_needs_is_there_and_again_when_it_ends() -> None:
    """Conditions, not mere order; health checks on what is waited for; all but the one-shot are started again."""
    needs = {name: {n: how["condition"] for n, how in s.get("depends_on", {}).items()} for name, s in SERVICES.items()}
    running = {"redis": "service_healthy", "service": "service_healthy"}
    assert needs == {
        "redis": {},
        "postgres": {},
        "init": {"postgres": "service_healthy"},
        "service": {"postgres": "service_healthy", "init": "service_completed_successfully"},
        "ingress": running,
        "worker": running,
        "flower": running,
    }
    assert all("healthcheck" in SERVICES[name] for name in ("redis", "postgres"))
    assert {name: service["restart"] for name, service in SERVICES.items()} == {
        name: "no" if name == "init" else "unless-stopped" for name in SERVICES
    }
    execution = load({}).execution
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > execution.drain_s + execution.grace_s
    assert all(seconds(service["stop_grace_period"]) >= 30 for service in SERVICES.values())


def test_the_parts_have_few_rights_and_no_secret_in_clear() -> None:
    """Nothing but volumes can be written, no capability; a secret is a file that only who needs it gets."""
    for name in OURS:
        service = SERVICES[name]
        assert (service["read_only"], service["cap_drop"], service["tmpfs"]) == (True, ["ALL"], ["/tmp"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(not key.endswith(("PASSWORD", "TOKEN", "AUTH")) for key in service["environment"])
        for key, path in service["environment"].items():
            if key.endswith("_FILE"):
                mounted = [volume.split(":")[1] for volume in service["volumes"] if ":" in volume]
                assert path in secrets_of(name) or any(path.startswith(f"{place}/") for place in mounted), path
    assert set(secrets_of("worker").values()) == {"secrets/redis-worker.password"}
    assert [name for name in SERVICES if "postgres" in str(SERVICES[name].get("secrets"))] == [
        "postgres",
        "init",
        "service",
    ]
    keys = {n: [v for v in SERVICES[n].get("volumes", ()) if "-key:" in v] for n in ("ingress", "worker", "flower")}
    assert keys == {
        "ingress": ["fleet-key:/run/dispatch/fleet:ro"],
        "worker": ["fleet-key:/run/dispatch/fleet:ro"],
        "flower": ["flower-key:/run/dispatch/flower:ro"],
    }


def test_every_setting_is_known_and_every_file_is_there() -> None:
    """A misspelt setting would keep a container from starting; what is mounted or built from exists."""
    for name in OURS:
        environment = {k: v for k, v in SERVICES[name]["environment"].items() if not k.endswith("_FILE")}
        load({key: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value) for key, value in environment.items()})
    for name, service in SERVICES.items():
        for source in (volume.split(":")[0] for volume in service.get("volumes", ())):
            known = source in COMPOSE["volumes"] or source.startswith("/") or (ROOT / "docker" / source).is_file()
            assert known, (name, source)
    assert (ROOT / "docker" / SERVICES["service"]["build"]["context"]).samefile(ROOT)
    assert (ROOT / SERVICES["service"]["build"]["dockerfile"]) == DOCKERFILE


def test_the_image_is_made_of_the_lock_and_runs_as_nobody_special() -> None:
    """Hashes are checked, then nothing comes from the network; a user of its own; tini, a health check, no secret."""
    build, final = stages(DOCKERFILE.read_text("utf-8"))
    runs = [rest for name, rest in build if name == "RUN"]
    assert [run for run in runs if "--require-hashes" in run and "constraints.txt" in run] == runs[:1]
    assert "--no-index" in runs[1]
    assert all("pip" not in rest for name, rest in final if name == "RUN")
    assert all("-slim-" in rest for stage in (build, final) for name, rest in stage[:1])
    named = dict(final)
    assert (named["USER"], named["ENTRYPOINT"]) == ("dispatch", '["tini", "--"]')
    assert "dispatch-health" in named["HEALTHCHECK"]
    assert [name for name, _ in final].index("USER") > max(i for i, (name, _) in enumerate(final) if name == "RUN")
    everything = instructions(DOCKERFILE.read_text("utf-8"))
    assert {name for name, _ in everything} <= {
        *("ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD", "HEALTHCHECK")
    }
    assert not [
        rest for name, rest in everything if name in ("ARG", "ENV") and re.search("(?i)token|password|key", rest)
    ]
    ignore = (ROOT / ".dockerignore").read_text().split()
    for name, rest in everything:
        if name == "COPY" and "--from" not in rest:
            for source in [word for word in rest.split() if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignore or f"!{source.split('/')[0]}" in ignore, source


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """Every secret that compose.yaml names is made, once; nobody else gets into their directory."""
    run = ["sh", str(ROOT / "docker/secrets.sh"), str(tmp_path / "secrets")]
    subprocess.run(run, check=True)
    made = {f"secrets/{path.name}": path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {secret["file"] for secret in COMPOSE["secrets"].values()} | {"secrets/redis-admin.password"} == set(made)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    subprocess.run(run, check=True)
    assert {f"secrets/{path.name}": path.read_text() for path in (tmp_path / "secrets").iterdir()} == made
    assert "docker/secrets/" in (ROOT / ".gitignore").read_text()


class Composed:
    """Runs the parts of compose.yaml as processes of a stack."""

    def __init__(self, stack: Stack, database_url: str) -> None:
        self.stack = stack
        self.secrets = stack.directory / "redis"
        subprocess.run(["sh", ROOT / "docker/secrets.sh", self.secrets], check=True)
        self.password = (self.secrets / "postgres.password").read_text()
        stack.redis = ConfiguredRedis(self.secrets)
        self.flower_port = free_port()
        path = f"{Path(sys.executable).parent}:{os.defpath}"
        stack.env = {"PATH": path, "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", MARK: stack.mark}
        self._replaced = {
            "http://service:8700": stack.url,
            "0.0.0.0:8700": f"127.0.0.1:{stack.port}",
            "@redis:6379": f"@127.0.0.1:{stack.redis.port}",
            "postgresql://dispatch@postgres/dispatch": database_url,
            "/run/dispatch": str(stack.directory / "keys"),
            "/etc/dispatch": "config",
            "--address=0.0.0.0": f"--port={self.flower_port}",
        }
        for part in ("fleet", "flower"):
            (stack.directory / "keys" / part).mkdir(parents=True, mode=0o700)

    def _here(self, service: str, text: str) -> str:
        text = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", text)
        for target, file in secrets_of(service).items():
            text = text.replace(target, str(self.secrets / Path(file).name)) if text == target else text
        for there, here in self._replaced.items():
            text = text.replace(there, here)
        return text

    def settings(self, service: str) -> dict[str, str]:
        """Return what a service of compose.yaml has in its environment, that of the image included."""
        home = self.stack.directory / service
        home.mkdir(mode=0o700, exist_ok=True)
        given = {key: self._here(service, value) for key, value in SERVICES[service]["environment"].items()}
        return {**self.stack.env, "HOME": str(home), "DISPATCH_DATA_DIR": str(home), **given}

    def start(self, service: str) -> LogProcess:
        """Start what a service runs."""
        program, *rest = [self._here(service, word) for word in SERVICES[service]["command"]]
        return self.stack.run(service, [program, *rest], self.settings(service))

    def run(self, service: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as that service."""
        environment = self.settings(service)
        return subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    def health(self, service: str) -> int:
        """Return what the image's health check says in the container of a service."""
        command = [*SERVICES[service]["command"]]
        return self.run(service, sys.executable, str(ROOT / "docker/health.py"), "tini", "--", *command).returncode


@pytest.fixture
def composed(make_stack: Callable[..., Stack]) -> Iterator[Composed]:
    """Redis and PostgreSQL with the secrets of compose.yaml, and nothing else running."""
    server = shared_server()
    name = server.empty_database()
    made = Composed(make_stack(), server.tcp_url(name, f"{name}_user"))
    with server.connect() as connection:
        connection.execute(f"CREATE ROLE {name}_user LOGIN PASSWORD '{made.password}'")
        connection.execute(f"ALTER DATABASE {name} OWNER TO {name}_user")
    made.stack.redis.start()
    yield made
    for process in reversed(made.stack.processes):
        process.stop()
    with server.connect() as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        connection.execute(f"DROP ROLE {name}_user")


def test_the_parts_work_together_as_compose_starts_them(composed: Composed, tmp_path: Path) -> None:
    """Keys are made once, all start with what they are given, a task runs, and health tells who does his work."""
    stack = composed.stack
    make_keys = ["sh", str(ROOT / "docker/init.sh"), str(stack.directory / "keys")]
    made = composed.run("init", *make_keys)
    assert made.returncode == 0, made.stderr
    keys = {path.parent.name: path.read_text() for path in (stack.directory / "keys").glob("*/key")}
    assert set(keys) == {"fleet", "flower"}
    ann = composed.run("init", sys.executable, "-m", "dispatch", "api-key", "create", "ann", "--type", "human")
    composed.start("service").wait_event("service_ready", keys=True)
    composed.start("ingress").wait_event("ingress_ready")
    worker = composed.start("worker")
    worker.wait_event("worker_ready", slots=4)
    flower = composed.start("flower")
    cli = Cli(tmp_path, {"DISPATCH_ATS_URL": stack.url, "DISPATCH_ATS_TOKEN": ann.stdout.strip()})
    ended = cli("create", "Say hello", "--wait")
    assert (ended.code, "Say hello" in ended.out) == (0, True), ended.err
    cli.close()
    assert [composed.health(name) for name in ("service", "ingress", "worker")] == [0, 0, 0]
    eventually(lambda: "Visit me" in flower.tail(), "Flower")
    for part in (flower, worker, stack.processes[0]):
        part.stop()
    assert [composed.health(name) for name in ("service", "worker")] == [1, 1]
    stack.redis.kill()
    assert composed.health("worker") == 0
    assert composed.run("init", *make_keys).returncode == 0
    assert {path.parent.name: path.read_text() for path in (stack.directory / "keys").glob("*/key")} == keys
    (stack.directory / "keys/fleet/key").unlink()
    again = composed.run("init", *make_keys)
    assert again.returncode == 1
    assert "put the file back" in again.stderr
