"""The image's HEALTHCHECK: does the process that this container runs do its work? Exit 0 or 1, one line why.

What the container runs is read from its first process, or given as an
argument: serve, ingress, worker, flower; anything else is healthy while it
runs. A worker or an ingress shows itself in Redis; while Redis does not answer
they are healthy, for a restart would cost running attempts and mend nothing.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import urllib.request
from pathlib import Path

import redis

from dispatch.broker import INGRESS_KEY, connect
from dispatch.errors import ConfigurationError
from dispatch.preflight.broker import workers_seen
from dispatch.settings import Settings, load

ROLES = ("serve", "ingress", "worker", "flower")
FLOWER_URL = "http://127.0.0.1:5555/healthcheck"
TIMEOUT_S = 3.0


def role_of(argv: list[str]) -> str:
    """Return the role in the arguments of a process, "" if it is none of ours."""
    return next((word for word in argv if word in ROLES), "")


def answers(url: str) -> bool:
    """Say whether a page is there."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - our own http addresses
        return bool(answer.status == 200)


def is_seen(role: str, settings: Settings) -> bool:
    """Say whether this host's worker or ingress shows itself in Redis; True when Redis cannot tell."""
    try:
        with contextlib.closing(connect(settings.broker, timeout_s=TIMEOUT_S)) as client:
            if role == "ingress":
                return bool(client.exists(INGRESS_KEY + settings.ats.actor_id))
            return any(worker.host == socket.gethostname() for worker in workers_seen(client))
    except redis.RedisError:
        return True


def is_healthy(role: str) -> bool:
    """Say whether a role does its work here. Raises OSError when its page cannot be fetched."""
    if role == "serve":
        port = load().service.bind.rpartition(":")[2]
        return answers(f"http://127.0.0.1:{port}/health")
    if role == "flower":
        return answers(FLOWER_URL)
    return not role or is_seen(role, load())


def main() -> int:
    """Print one line and return the exit code."""
    argv = sys.argv[1:] or Path("/proc/1/cmdline").read_text("utf-8", "replace").split("\0")
    role = role_of(argv)
    try:
        healthy = is_healthy(role)
    except (OSError, ConfigurationError) as exc:
        print(f"{role}: {exc}")
        return 1
    print(f"{role or 'no role'}: {'ok' if healthy else 'does not show itself'}")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
