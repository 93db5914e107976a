"""Hosts that operators' commands are run on: directories of a test, with units that start real processes.

A ``Host`` has /etc, /var and /opt of its own below one directory; ``here`` turns the paths and addresses of a command
into the test's. ``systemctl`` does what the commands of docs/operations.md ask of it, from the installed unit files:
what a unit says of user, hardening and limits is systemd's business and not done.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dispatch.embedded import find_redis_server
from tests.support.processes import ROOT, LogProcess, eventually
from tests.support.redis import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

READY = {"serve": "service_ready", "ingress": "ingress_ready", "worker": "worker_ready"}
_OURS = re.compile(r"(?<![\w./-])/(etc/dispatch|etc/systemd|var/lib/dispatch|var/backups|opt/dispatch(?!-))")


class Network:
    """What the hosts share: the ports that stand for those of 10.0.0.1, and the environment that marks the test."""

    def __init__(self, environment: Mapping[str, str], port: int) -> None:
        self.environment = dict(environment)
        self.ports = {8700: port, 6379: free_port(), 5555: free_port()}
        self.processes: list[LogProcess] = []

    def address(self, text: str) -> str:
        """Put a loopback address and the test's ports in the place of 10.0.0.1 and its ports."""
        text = re.sub(r"10\.0\.0\.1:(\d+)", lambda m: f"127.0.0.2:{self.ports[int(m[1])]}", text)
        text = re.sub(r"redis-cli -h 10\.0\.0\.1", f"redis-cli -h 127.0.0.2 -p {self.ports[6379]}", text)
        return text.replace("10.0.0.1", "127.0.0.2")


class Host:
    """One host. ``replaced`` are further words of commands, and what stands for them in the test."""

    def __init__(self, directory: Path, network: Network, replaced: Mapping[str, str]) -> None:
        self.directory = directory
        self.network = network
        self.replaced = replaced
        self.running: dict[str, LogProcess] = {}
        for made in ("etc/systemd/system", "var/lib/dispatch", "opt/dispatch/bin", "home"):
            (directory / made).mkdir(parents=True)
        for name, argv in {
            "dispatch": f"{sys.executable} -m dispatch",
            "celery": f"{sys.executable} -m celery",
            "python": sys.executable,
        }.items():
            program = directory / "opt/dispatch/bin" / name
            program.write_text(f'#!/bin/sh\nexec {argv} "$@"\n')
            program.chmod(0o755)

    def path(self, text: str) -> Path:
        """Return where a path of the host lies."""
        return self.directory / text.lstrip("/")

    def here(self, text: str) -> str:
        """Turn a command, or a line of a configuration, into what it is in the test."""
        for there, mine in self.replaced.items():
            text = text.replace(there, mine)
        text = text.replace("/opt/dispatch-src", str(ROOT)).replace("--directory / ", f"--directory {self.directory} ")
        return self.network.address(_OURS.sub(rf"{self.directory}/\1", text))

    def unit_file(self, unit: str) -> Path:
        """Return the file of a unit, its template's if it is an instance."""
        name = re.sub(r"@[^.]*", "@", unit.removesuffix(".service")) + ".service"
        return self.path("etc/systemd/system") / name

    def systemctl(self, *arguments: str) -> None:
        """Start, stop or show units; fails for one that is not installed."""
        verb, *units = [word for word in arguments if not word.startswith("--")]
        if verb == "daemon-reload":
            return
        assert units, arguments
        for unit in units:
            assert unit == "redis-server" or self.unit_file(unit).is_file(), f"{unit} is not installed"
            if verb == "status":
                assert self.running[unit].exit_code is None, f"{unit} does not run"
                continue
            assert verb in ("enable", "start", "stop", "restart"), f"systemctl {verb}"
            if verb in ("stop", "restart"):
                self._stop(unit)
            if verb != "stop":
                self._start(unit)

    def _stop(self, unit: str) -> None:
        if unit in self.running:
            assert self.running.pop(unit).stop() == 0, unit

    def _start(self, unit: str) -> None:
        argv, environment = self._redis() if unit == "redis-server" else self._ours(unit)
        process = LogProcess(unit, argv, {**self.network.environment, **environment}, ROOT)
        self.network.processes.append(process)
        self.running[unit] = process
        for role, event in READY.items():
            if role in argv:
                process.wait_event(event)
        if unit == "redis-server":
            eventually(lambda: _listens(self.network.ports[6379]), "Redis")

    def _redis(self) -> tuple[list[str], dict[str, str]]:
        (drop_in,) = self.path("etc/systemd/system/redis-server.service.d").glob("*.conf")
        command = [line for line in drop_in.read_text().splitlines() if line.startswith("ExecStart=/")]
        file = shlex.split(command[0])[1]
        placed = self.path("redis.conf")
        placed.write_text(self.here(self.path(file).read_text()).replace("dir /var/lib/redis", f"dir {self.directory}"))
        return [str(find_redis_server()), str(placed), "--port", str(self.network.ports[6379])], {}

    def _ours(self, unit: str) -> tuple[list[str], dict[str, str]]:
        """Return the command and the environment of a unit of ours; its credentials are copied to where it looks."""
        credentials = self.path("credentials") / unit
        credentials.mkdir(parents=True, exist_ok=True)
        instance = unit.removesuffix(".service").partition("@")[2]
        text = self.unit_file(unit).read_text("utf-8").replace("%i", instance).replace("%H", "test")
        text = self.here(text.replace("%d", str(credentials)))
        environment: dict[str, str] = {}
        argv: list[str] = []
        for key, value in (line.partition("=")[::2] for line in text.splitlines() if not line.startswith("#")):
            if key == "Environment":
                environment |= dict(pair.split("=", 1) for pair in shlex.split(value))
            elif key == "LoadCredential":
                name, _, source = value.partition(":")
                shutil.copy(source, credentials / name)
            elif key == "ExecStart":
                argv = shlex.split(value)
        for place in re.findall(r"^EnvironmentFile=-/(.*)$", text, re.MULTILINE):
            file = self.path(place)
            lines = file.read_text("utf-8").splitlines() if file.exists() else []
            environment |= dict(line.split("=", 1) for line in lines)
        argv = [re.sub(r"\$\{(\w+)\}", lambda m: environment[m[1]], word) for word in argv]
        return argv + [f"--port={self.network.ports[5555]}"] * ("flower" in argv), environment


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.2", port)) == 0
