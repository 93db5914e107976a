"""Thirty-two claimers in eight processes on one task, again and again: one winner each time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.race.claimer import CONNECTIONS, agent_of
from tests.support.postgres import shared_server
from tests.support.processes import ROOT
from tests.support.service import Client, ServiceProcess
from tests.support.tools import ANN, PROJECT, RUN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROCESSES = 8
_HEADWAY_S = 0.002
"""How long after the order the claims go off, so that every process has read it."""


@dataclass
class Outcome:
    """What a race was."""

    rounds: int = 0
    seconds: float = 0.0
    won: Counter[str] = field(default_factory=Counter)
    """Face -> rounds that a claim through it won."""


class _Field:
    """The eight processes."""

    def __init__(self, urls: Sequence[str]) -> None:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.race.claimer", urls[n % len(urls)], str(n)],
                cwd=ROOT,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(PROCESSES)
        ]

    def __enter__(self) -> Self:
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            try:
                process.wait(10)
            finally:
                process.kill()
                process.wait()
                process.stdout.close()

    def claim(self, ref: int, task_id: str, faces: Sequence[str]) -> list[tuple[str, str, int, Any]]:
        """Let all claim at once; return (agent, face, HTTP status, answer) of each."""
        order = {"at": time.monotonic() + _HEADWAY_S, "ref": ref, "task_id": task_id}
        for n, process in enumerate(self._processes):
            assert process.stdin is not None
            mine = faces[n * CONNECTIONS : (n + 1) * CONNECTIONS]
            process.stdin.write(json.dumps({**order, "faces": mine}) + "\n")
            process.stdin.flush()
        found = []
        for n, process in enumerate(self._processes):
            assert process.stdout is not None
            for connection, (status, answer) in enumerate(json.loads(process.stdout.readline())):
                found.append((agent_of(n, connection), faces[n * CONNECTIONS + connection], status, answer))
        return found


def _faces(number: int) -> list[str]:
    """Return the face of each claimer in a round: all tools, all ATS, or both against each other."""
    count = PROCESSES * CONNECTIONS
    return (["tools"] * count, ["ats"] * count, ["tools", "ats"] * (count // 2))[number % 3]


def _judge(number: int, found: list[tuple[str, str, int, Any]]) -> tuple[str, str]:
    """Return winner and face of round ``number`` (from 1), in which all was as it must be."""
    winners = []
    named = set()
    for agent, face, status, answer in found:
        if face == "tools":
            assert status == 200, answer
            won, token, code = answer["claimed"], answer.get("lease_token"), answer.get("reason")
        else:
            assert status in (200, 409), answer
            won, code = status == 200, answer.get("code")
            token = answer["lease"]["fencing_token"] if won else None
        if won:
            assert token == number, f"round {number} was won under token {token}"
            winners.append((agent, face))
        else:
            assert code == "LEASE_HELD", answer
            named.add(answer["locked_by"])
    assert len(winners) == 1, f"round {number} has the winners {winners}"
    assert named == {winners[0][0]}, f"round {number} was won by {winners[0]}; losers were told {named}"
    return winners[0]


@contextlib.contextmanager
def services(engine: str) -> Iterator[list[ServiceProcess]]:
    """Run one service on SQLite, or two on one PostgreSQL; the claimers are spread over them."""
    with tempfile.TemporaryDirectory(prefix="dispatch-") as directory, contextlib.ExitStack() as stack:
        settings = {}
        if engine == "postgresql":
            settings["DISPATCH_DATABASE_URL"] = stack.enter_context(shared_server().database())
        count = 2 if engine == "postgresql" else 1
        yield [stack.enter_context(ServiceProcess(Path(directory), **settings)) for _ in range(count)]


def race(urls: Sequence[str], rounds: int, seconds_max: float = float("inf")) -> Outcome:
    """Run ``rounds`` rounds, or as many as fit into ``seconds_max``. Raises AssertionError for a wrong one.

    ``urls`` are processes of one service; the claimers are spread over them.
    """
    outcome = Outcome()
    owner = Client(urls[0], ANN)
    body = {"project_key": PROJECT, "run_id": RUN, "agent_id": ANN, "title": "one for all", "status": "todo"}
    task = owner.post("/tools/core_create_task", body)
    ref, task_id = task["id"], task["task_id"]
    try:
        with _Field(urls) as claimers:
            began = time.monotonic()
            while outcome.rounds < rounds and time.monotonic() - began < seconds_max:
                number = outcome.rounds + 1
                winner, face = _judge(number, claimers.claim(ref, task_id, _faces(number)))
                if face == "tools":
                    let_go = owner.post("/tools/core_release_task_lock", {"task_id": task_id, "agent_id": winner})
                    assert let_go["released"] is True
                else:
                    owner.post(f"/tasks/{ref}/release", {"fencing_token": number})
                outcome.rounds = number
                outcome.won[face] += 1
            outcome.seconds = time.monotonic() - began
        after = owner.get(f"/tasks/{ref}")["task"]
        assert (after["fencing_token"], after["status"]) == (outcome.rounds, "pending")
    finally:
        owner.close()
    return outcome
