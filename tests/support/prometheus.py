"""A real Prometheus for tests, where there is one: it scrapes what it is told and answers queries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Self

from tests.support.processes import LogProcess, eventually
from tests.support.redis import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCRAPE_S = 0.25


def is_here() -> bool:
    """Say whether this machine has Prometheus and its tool; on Debian both come with the package prometheus."""
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


def promtool(*argv: str, stdin: str | None = None) -> tuple[int, str]:
    """Run its tool; return the exit code and everything it said."""
    done = subprocess.run(["promtool", *argv], input=stdin, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """Scrapes ``ports`` of loopback, by the names of their jobs, four times a second. A context manager."""

    def __init__(self, directory: Path, ports: Mapping[str, int]) -> None:
        self._jobs = ports
        config = {
            "global": {"scrape_interval": f"{int(SCRAPE_S * 1000)}ms", "scrape_timeout": f"{int(SCRAPE_S * 1000)}ms"},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in ports.items()
            ],
        }
        directory.mkdir()
        path = directory / "prometheus.json"
        path.write_text(json.dumps(config))
        self._port = free_port()
        options = {
            "config.file": path,
            "storage.tsdb.path": directory / "data",
            "web.listen-address": f"127.0.0.1:{self._port}",
        }
        argv = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
        self._process = LogProcess("prometheus", argv, {"PATH": os.environ["PATH"]}, directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression is now: one entry for each set of labels. Fails when it is none."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/query?{query}", timeout=60) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        assert not found.get("warnings"), found
        return found["data"]["result"]

    def _is_up(self) -> bool:
        try:
            up = self.query("up")
        except OSError:
            return False
        return sum(float(one["value"][1]) for one in up) == len(self._jobs)

    def wait_until_up(self) -> None:
        """Wait until every job was scraped."""
        eventually(self._is_up, f"a scrape of all of {sorted(self._jobs)}")

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression is as soon as it is something, and a number."""

        def numbers() -> list[dict[str, Any]]:
            found = self.query(expression)
            return [] if any(one["value"][1] == "NaN" for one in found) else found

        return eventually(numbers, f"an answer to {expression}")
