"""docs/operations.md: every command of it is run, in its order, on hosts that are directories of this test.

The word behind ``sh`` of a block says on which host it runs. Units are started from the files that the page installs,
with the files that the page writes. What cannot run here is in NOT_RUN, with the reason and what is checked instead.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dispatch.embedded import find_redis_server
from tests.support.image_steps import DOCKERFILE, stages
from tests.support.operated import Host, Network
from tests.support.postgres import shared_server
from tests.support.processes import ROOT, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.stack import Stack

PAGE = ROOT / "docs/operations.md"
EXECUTOR = "sh -c 'if grep -q long; then exec sleep 60; fi'"
TASK = 7
"""The id that the page uses as an example: a task that runs for long."""


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """Return the blocks of commands of a page: (host, commands), with continued lines joined."""
    found = re.findall(r"^```(?:sh|console)(?: ([^\n]*))?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        (host, [line for line in body.replace("\\\n", "").splitlines() if line.strip() and not line.startswith("#")])
        for host, body in found
    ]


BLOCKS = blocks(PAGE.read_text("utf-8"))
BUILD = " ".join(rest for name, rest in stages(DOCKERFILE.read_text("utf-8"))[0] if name == "RUN")
COMPOSE = (ROOT / "docker/compose.yaml").read_text("utf-8")


def apt_get(argv: list[str]) -> None:
    """Packages by name, and no question asked."""
    assert re.fullmatch(r"install -y( [a-z0-9-]+)+", " ".join(argv))


def useradd(argv: list[str]) -> None:
    """The user and the home that the units have."""
    unit = (ROOT / "config/systemd/dispatch-service.service").read_text()
    assert f"User={argv[-1]}\n" in unit
    assert f"HOME={argv[argv.index('--home-dir') + 1]} " in unit


def git(argv: list[str]) -> None:
    """Into the place that the other commands use."""
    assert argv in (
        ["clone", "$REPOSITORY", "/opt/dispatch-src"],
        ["-C", "/opt/dispatch-src", "pull", "--ff-only"],
    )


def python3(argv: list[str]) -> None:
    """As in the image's build stage."""
    assert " ".join(["python", *argv]) in BUILD


def pip(argv: list[str]) -> None:
    """The page installs as the image does, whose build stage ``python -m tests.support.image_steps`` runs."""
    for word in argv:
        place = re.sub(r"/opt/dispatch-(?:wheels|src)/?", "", word)
        assert place in ("", "--upgrade") or place in BUILD or place == "--find-links=", word
    assert ("--require-hashes" in argv) != ("--no-index" in argv)


def chgrp(argv: list[str]) -> None:
    """The one file that Redis itself must read."""
    assert argv == ["redis", "/etc/dispatch/redis-users.conf"]


def docker(argv: list[str]) -> None:
    """Our file, a known verb, services that exist, commands of dispatch that exist."""
    assert argv[:3] == ["compose", "-f", "docker/compose.yaml"]
    verb, *rest = [word for word in argv[3:] if not word.startswith("-")]
    assert verb in ("up", "run", "logs", "down")
    services = re.findall(
        r"^  ([a-z]+):$", COMPOSE.partition("\nservices:")[2].partition("\nnetworks:")[0], re.MULTILINE
    )
    assert all(word.partition("=")[0] in services for word in rest[:1])
    if "dispatch" in rest:
        subprocess.run(
            [sys.executable, "-m", "dispatch", *rest[rest.index("dispatch") + 1 :], "--help"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=True,
        )


def journalctl(argv: list[str]) -> None:
    """Units that exist."""
    unit = argv[argv.index("--unit") + 1]
    assert list((ROOT / "config/systemd").glob(re.sub(r"@\d", "@", unit) + ".service")), unit


def systemd_analyze(argv: list[str]) -> None:
    """Units that exist."""
    for unit in argv[2:]:
        assert (ROOT / "config/systemd" / unit.replace("@1", "@")).is_file()


NOT_RUN: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "apt-get": ("installs packages of a system", apt_get),
    "useradd": ("makes a user of a system", useradd),
    "git": ("fetches from a repository", git),
    "python3": ("makes an environment that pip fills", python3),
    "pip": ("fetches packages for minutes; done by tests.support.image_steps", pip),
    "chgrp": ("needs the group redis", chgrp),
    "docker": ("needs a container engine; what Compose starts is run in tests/integration/test_compose.py", docker),
    "journalctl": ("needs systemd's journal", journalctl),
    "systemd-analyze": ("needs a running systemd; done in tests/unit/test_systemd_units.py", systemd_analyze),
}
"""Program -> why it is not run here, and what is checked of its arguments instead."""


class Fleet:
    """The hosts of the page, and what stands for the people at their keyboards."""

    def __init__(self, stack: Stack, database_url: str) -> None:
        self.stack = stack
        replaced = {"'DISPATCH_COMMAND=claude -p'": f'"DISPATCH_COMMAND={EXECUTOR}"', "host-2": socket.gethostname()}
        environment = {key: stack.env[key] for key in ("PATH", "LANG", "PYTHONUNBUFFERED", "ATS_TEST_RUN")}
        postgres = shared_server()._bin
        self.environment = {
            **environment,
            "PATH": f"{find_redis_server().parent}:{postgres}:{environment['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": database_url,
        }
        hurry = {"DISPATCH_DRAIN_S": "1", "DISPATCH_GRACE_S": "0.5", "PYTHONPATH": str(ROOT)}
        self.network = Network({**environment, **hurry}, stack.port)
        self.hosts = {
            name: Host(stack.directory / directory, self.network, replaced)
            for name, directory in (("10.0.0.1", "one"), ("10.0.0.2", "two"))
        }
        self.repository = stack.directory / "repository"
        for part in ("docker", "config"):
            shutil.copytree(
                ROOT / part, self.repository / part, ignore=shutil.ignore_patterns("secrets", "__pycache__")
            )
        self.has_task = False

    def do(self, where: str, command: str) -> None:
        """Do what a line of the page says."""
        hosts = list(self.hosts.values()) if where == "everywhere" else [self.hosts.get(where)]
        for host in hosts:
            words = shlex.split(command)
            if words[0] in NOT_RUN:
                NOT_RUN[words[0]][1](words[1:])
            elif host is None:
                assert where == "repository", where
                self._run(command, cwd=self.repository)
            elif words[0] == "systemctl":
                host.systemctl(*words[1:])
            elif words[0] == "scp":
                self._copy(host, *words[1:])
            else:
                self._on(host, command)

    def _copy(self, host: Host, *words: str) -> None:
        for source in words[:-1]:
            name, _, path = source.partition(":")
            shutil.copy(self.hosts[name].path(path), host.path(words[-1]))

    def _on(self, host: Host, command: str) -> None:
        # There is neither the user dispatch here, nor need it be another than ours.
        command = command.replace("runuser -u dispatch -- ", "")
        command = re.sub(r"(?<=install )(.*?)-o dispatch (?:-g dispatch )?", r"\1", command)
        if command.startswith("dispatch "):
            if re.search(rf"\b{TASK}\b", command) and not self.has_task:
                self._create_tasks(host)
            command = f". /etc/dispatch/ops.sh; {command}"
        self._run(host.here(command), cwd=host.directory, home=host.path("home"))

    def _run(self, command: str, cwd: Path, home: Path | None = None) -> str:
        done = subprocess.run(
            ["sh", "-ec", command],
            env={**self.environment, "HOME": str(home or cwd)},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _create_tasks(self, host: Host) -> None:
        self.has_task = True
        create = f". {host.path('etc/dispatch/ops.sh')}; for n in 2 3 4 5 6; do dispatch create a; done"
        self._run(create, host.directory, host.path("home"))
        last = f". {host.path('etc/dispatch/ops.sh')}; dispatch create 'a long one'"
        assert self._run(last, host.directory, host.path("home")).split() == [str(TASK)]
        show = f". {host.path('etc/dispatch/ops.sh')}; dispatch show {TASK} --json"
        eventually(lambda: '"in_progress"' in self._run(show, host.directory, host.path("home")), f"task {TASK}")


def test_every_command_is_one_that_is_run_or_checked() -> None:
    """No block without a host, nothing in the list of exceptions that the page does not use."""
    assert {where for where, _ in BLOCKS} == {"everywhere", "10.0.0.1", "10.0.0.2", "repository"}
    used = {shlex.split(line)[0] for _, lines in BLOCKS for line in lines}
    assert set(NOT_RUN) <= used
    assert not re.findall(r"^(?: {4}|\t)\$ ", PAGE.read_text("utf-8"), re.MULTILINE)


@pytest.mark.timeout(600)
def test_the_page_from_top_to_bottom(make_stack: Callable[..., Stack]) -> None:
    """Installed, started, upgraded, restored, broken and mended by the page's own commands, nothing of it fails."""
    server = shared_server()
    with server.database() as database_url:
        fleet = Fleet(make_stack(), database_url)
        try:
            for where, lines in BLOCKS:
                for line in lines:
                    fleet.do(where, line)
            for host in fleet.hosts.values():
                for unit, process in host.running.items():
                    assert process.exit_code is None, f"{unit} has ended:\n{process.tail()}"
        except BaseException:
            print("\n".join(process.tail(12) for process in fleet.network.processes))
            raise
        finally:
            for process in reversed(fleet.network.processes):
                process.kill() if process.name == "dispatch-flower" else process.stop()
