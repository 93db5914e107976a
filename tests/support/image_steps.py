"""Run the build stage of docker/Dockerfile here, step by step, where there is no container engine.

``python -m tests.support.image_steps`` does what the stage's COPY and RUN lines
say, with /src, /wheels and /opt in a temporary directory, and then asks what was
built for its version. It takes about two minutes and fetches the locked wheels.
The second stage, which needs root and Debian, is not run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.processes import ROOT

DOCKERFILE = ROOT / "docker/Dockerfile"
CHECKS = (
    "dispatch --version",
    "celery -A dispatch --version",
    "python -c 'import apprise, flower, psycopg; assert psycopg.pq.__impl__ == \"binary\"'",
)


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile as (name, rest), comments left out and lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined)]


def stages(text: str) -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage, FROM first."""
    found: list[list[tuple[str, str]]] = []
    for one in instructions(text):
        if one[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(one)
    return found


def main() -> None:
    """Run the first stage, and say what each step was."""
    with tempfile.TemporaryDirectory(prefix="dispatch-image-") as made:
        root = Path(made)
        subprocess.run([sys.executable, "-m", "venv", root / "base"], check=True)
        environment = {**os.environ, "PATH": f"{root / 'base/bin'}:{os.environ['PATH']}"}
        where = root
        for name, rest in stages(DOCKERFILE.read_text("utf-8"))[0][1:]:
            print(name, rest, flush=True)
            placed = re.sub(r"(?<![\w.])/(opt|wheels|src)\b", rf"{root}/\1", rest)
            if name == "ENV":
                environment |= dict(pair.split("=", 1) for pair in placed.split())
            elif name == "WORKDIR":
                where = Path(placed)
                where.mkdir(parents=True)
            elif name == "COPY":
                *sources, target = placed.split()
                for source in sources:
                    copy(ROOT / source, where / target / (source if target.endswith("/") else ""))
            elif name == "RUN":
                subprocess.run(["sh", "-ec", placed], cwd=where, env=environment, check=True)
        environment["PATH"] = f"{root / 'opt/dispatch/bin'}:{os.defpath}"
        for check in CHECKS:
            subprocess.run(["sh", "-ec", check], cwd="/", env=environment, check=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or what is in a directory."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    main()
