"""The units of config/systemd, read here as text, and by systemd's own tool where there is one.

Without systemd-analyze what is not checked is that systemd knows every directive and what it makes of the whole
(``verify``, ``security``); .ci/run installs it where it may. What the directives must be is checked everywhere. That
agents and the warden work under them was tried with a booted systemd 252 (docs/operations.md says how to try it again).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dispatch.settings import load
from tests.support.processes import ROOT

UNITS = ROOT / "config/systemd"
COMMANDS = {
    "dispatch-service": "dispatch serve",
    "dispatch-ingress": "dispatch ingress",
    "dispatch-worker@": "celery -A dispatch worker --concurrency ${SLOTS} --hostname dispatch-%i@%H",
    "dispatch-flower": "celery -A dispatch flower --conf=/etc/dispatch/flowerconfig.py",
}
HARDENED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "UMask": "0077",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectClock": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX AF_NETLINK",
}
NOT_FOR_AGENTS = {
    *("ProtectProc", "ProcSubset", "PrivateUsers", "MemoryDenyWriteExecute", "RestrictNamespaces", "PrivateNetwork"),
    *("SystemCallFilter", "SystemCallArchitectures", "NoExecPaths", "IPAddressDeny", "MemoryMax"),
}
EXPOSURE_MAX = {"dispatch-worker@": 45}
"""Tenths of systemd's own score from 0 to 100; 20 for all others."""


def directives(name: str) -> dict[str, list[str]]:
    """A unit's directives with all their values, comments left out."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / f"{name}.service").read_text("utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def environment_of(unit: dict[str, list[str]]) -> dict[str, str]:
    """The variables that a unit sets."""
    return dict(pair.split("=", 1) for line in unit["Environment"] for pair in line.split())


def test_these_are_all() -> None:
    """A unit that is added here is checked below."""
    assert {path.stem for path in UNITS.glob("*.service")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_units_start_our_commands_and_start_them_again(name: str) -> None:
    """The right program as a user of its own, in no directory that tasks can write; a wrong setting does not loop."""
    unit = directives(name)
    assert unit["ExecStart"] == [f"/opt/dispatch/bin/{COMMANDS[name]}"]
    assert (unit["User"], unit["WorkingDirectory"], unit["StateDirectory"]) == (["dispatch"], ["/"], ["dispatch"])
    assert (unit["Restart"], unit["RestartPreventExitStatus"]) == (["always"], ["78"])
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert environment_of(unit)["HOME"] == "/var/lib/dispatch"


def test_workers_may_drain_and_their_warden_outlives_them() -> None:
    """SIGTERM to the worker alone and time enough; nothing is killed behind the warden's back."""
    unit = directives("dispatch-worker@")
    execution = load({}).execution
    assert int(unit["TimeoutStopSec"][0]) > execution.drain_s + execution.grace_s
    assert (unit["KillMode"], unit["OOMPolicy"]) == (["process"], ["continue"])
    # What is said of one worker alone, its slots and its port for metrics, wins over what is said of all.
    assert unit["EnvironmentFile"] == ["-/etc/dispatch/dispatch.env", "-/etc/dispatch/worker-%i.env"]
    for name in set(COMMANDS) - {"dispatch-worker@"}:
        assert directives(name)["KillMode"] == ["mixed"]


@pytest.mark.parametrize("name", COMMANDS)
def test_units_are_hardened_and_workers_not_too_far(name: str) -> None:
    """The same list for all; what would break agents or blind the warden is not in the worker's, but in the others'."""
    unit = directives(name)
    assert {key: unit.get(key) for key in HARDENED} == {key: [value] for key, value in HARDENED.items()}
    is_worker = name == "dispatch-worker@"
    # Workers make control groups for attempts, in the one that is delegated to them and in no other.
    assert unit["ProtectControlGroups"] == ["no" if is_worker else "yes"]
    assert unit.get("Delegate") == (["memory pids"] if is_worker else None)
    assert ("ExecStopPost" in unit) is is_worker
    if is_worker:
        assert not NOT_FOR_AGENTS & set(unit)
    else:
        assert {
            "ProtectProc",
            "PrivateUsers",
            "MemoryDenyWriteExecute",
            "RestrictNamespaces",
            "SystemCallFilter",
        } <= set(unit)


@pytest.mark.parametrize("name", COMMANDS)
def test_secrets_are_credentials(name: str) -> None:
    """What is loaded from /etc/dispatch is used, what is used is loaded, and every setting is known."""
    unit = directives(name)
    environment = environment_of(unit)
    loaded = {line.partition(":")[0]: line.partition(":")[2] for line in unit.get("LoadCredential", [])}
    used = {value.removeprefix("%d/") for key, value in environment.items() if key.endswith("_FILE")}
    assert used == set(loaded)
    assert all(path.startswith("/etc/dispatch/") for path in loaded.values())
    load({key: value for key, value in environment.items() if key.startswith("DISPATCH_") and "%" not in value})
    role = re.sub(r"dispatch-(\w+).*", r"\1", name)
    if role != "service":
        assert environment["DISPATCH_REDIS_USER"] == role
        assert loaded["redis-password"] == f"/etc/dispatch/redis-{role}.password"


def test_redis_is_started_with_our_configuration() -> None:
    """The drop-in for Debian's unit replaces the command and nothing that hardens it."""
    lines = (UNITS / "redis-server.service.d/dispatch.conf").read_text("utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [
        "[Service]",
        "ExecStart=",
        "ExecStart=/usr/bin/redis-server /etc/dispatch/redis.conf --supervised systemd --daemonize no",
        "TimeoutStopSec=30",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_systemd_understands_the_units_and_finds_them_safe(name: str, tmp_path: Path) -> None:
    """Nothing to say but that the programs are not installed here, and no more exposed than we mean them to be."""
    analyze = shutil.which("systemd-analyze") or "true"
    unit = tmp_path / (f"{name}1.service" if name.endswith("@") else f"{name}.service")
    shutil.copy(UNITS / f"{name}.service", unit)
    verified = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    said = [line for line in (verified.stdout + verified.stderr).splitlines() if "is not executable" not in line]
    assert not said
    threshold = f"--threshold={EXPOSURE_MAX.get(name, 20)}"
    security = [analyze, "security", "--no-pager", "--offline=true", threshold, unit]
    scored = subprocess.run(security, capture_output=True, text=True, check=False)
    assert scored.returncode == 0, scored.stdout.splitlines()[-1]
