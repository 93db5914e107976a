"""The child program of the chaos run: it writes down itself when it is alive.

It reads a dispatch prompt on stdin, takes its orders from ``payload.tick`` in
the context block, and appends one JSON line every 50 ms to
``<dir>/<task id>.ticks``. The checker trusts these lines and nobody's belief.
Standard library only; run by path with ``-I -S`` so that it starts fast.

Orders (all optional but ``dir``)::

    dir         where the tick files go
    duration_s  how long to live (default 0.2); as a list by grant, the last repeats
    until       a path: live only until there is a file
    exits       exit codes by attempt, the last repeats (default [0])
    output      what to print (default "done <task> <attempt>")
    daemon_s    also leave a grandchild in a session of its own that ticks this long and holds stdout open
    ignore_term true: SIGTERM is ignored
    kill_parent true: kill -9 the parent process before anything else (a poison task)
    code        Python to run instead of all that; ``prompt`` is what came on stdin
"""

import json
import os
import re
import signal
import sys
import time

PERIOD_S = 0.05


def orders_in(prompt: str) -> dict:
    """Return the orders in a prompt; the boundary is whatever ends the line that begins the context block."""
    block = re.search(
        r"^--- begin context (?P<b>\S+)\n(?P<body>.*)\n--- end context (?P=b)$", prompt, re.DOTALL | re.MULTILINE
    )
    if block is None:
        sys.exit("tick: the prompt has no context block")
    return json.loads(block["body"])["tick"]


def tick(descriptor: int, kind: str, role: str) -> None:
    """Append one line. A single write to an O_APPEND file is never mixed with another one's."""
    line = {
        "task": os.environ["ATS_TASK_ID"],
        "token": int(os.environ.get("ATS_FENCING_TOKEN") or 0),
        "attempt": int(os.environ.get("ATS_ATTEMPT") or 0),
        "at": time.clock_gettime(time.CLOCK_BOOTTIME),
        "kind": kind,
        "role": role,
        "pid": os.getpid(),
    }
    os.write(descriptor, (json.dumps(line) + "\n").encode())


def live(descriptor: int, role: str, duration_s: float, path: str = "") -> None:
    """Tick from begin to end, which a file at ``path`` brings about early."""
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + duration_s
    tick(descriptor, "begin", role)
    while (left := until - time.clock_gettime(time.CLOCK_BOOTTIME)) > 0 and not (path and os.path.exists(path)):
        time.sleep(min(PERIOD_S, left))
        tick(descriptor, "tick", role)
    tick(descriptor, "end", role)


def duration_of(order: float | list[float]) -> float:
    """Return how long this grant's child lives; the fencing token counts the grants."""
    if isinstance(order, list):
        return order[min(int(os.environ.get("ATS_FENCING_TOKEN") or 1), len(order)) - 1]
    return order


def leave_daemon(descriptor: int, duration_s: float) -> None:
    """Fork twice, away from the process group and the session, as a daemon does."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    live(descriptor, "daemon", duration_s)
    os._exit(0)


def main() -> int:
    """Do what the orders say and return the exit code."""
    prompt = sys.stdin.read()
    orders = orders_in(prompt)
    if orders.get("code"):
        exec(orders["code"], {"prompt": prompt})
        return 0
    if orders.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path = f"{orders['dir']}/{os.environ['ATS_TASK_ID']}.ticks"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    attempt = int(os.environ.get("ATS_ATTEMPT") or 1)
    if orders.get("daemon_s"):
        leave_daemon(descriptor, orders["daemon_s"])
    if orders.get("kill_parent"):
        tick(descriptor, "begin", "leader")
        os.kill(os.getppid(), signal.SIGKILL)
    live(descriptor, "leader", duration_of(orders.get("duration_s", 0.2)), orders.get("until", ""))
    print(orders.get("output", f"done {os.environ['ATS_TASK_ID']} {attempt}"))
    exits = orders.get("exits") or [0]
    return exits[min(attempt, len(exits)) - 1]


if __name__ == "__main__":
    sys.exit(main())
