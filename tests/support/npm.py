"""Programs from npm for tests: installed once from ``tests/npm/package-lock.json``, run with node."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

HOME = ROOT / "tests" / "npm"
_STAMP = HOME / "node_modules" / ".installed"
_TIME_MAX_S = 300


def _require_node() -> str:
    """Return node's path. Without node a test is skipped on a developer's machine and fails in CI."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        reason = "node and npm are missing; on Debian: apt-get install nodejs npm"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return node


def _install() -> None:
    """Install what the lock names, unless it is there."""
    wanted = hashlib.sha256((HOME / "package-lock.json").read_bytes()).hexdigest()
    with (HOME / ".lock").open("w") as lock:
        # Tests run in several processes; one installs, the others wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _STAMP.exists() and _STAMP.read_text() == wanted:
            return
        done = subprocess.run(["npm", "ci"], cwd=HOME, capture_output=True, text=True, timeout=_TIME_MAX_S, check=False)
        assert done.returncode == 0, done.stderr
        _STAMP.write_text(wanted)


def run_node(script: str, *args: str, env: Mapping[str, str] | None = None, stdin: str | None = None) -> str:
    """Run ``tests/npm/<script>`` and return what it printed; it must succeed."""
    node = _require_node()
    _install()
    done = subprocess.run(
        [node, script, *args],
        cwd=HOME,
        env={"PATH": os.environ["PATH"], **(env or {})},
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
