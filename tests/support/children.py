"""Child programs for tests: ``python -S tests/support/children.py VERB ARGUMENT...``.

Each does one thing that real programs do to those who supervise them. Standard
library only, so that they start fast and run with a cleared environment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PATH = str(Path(__file__).resolve())


def command(verb: str, *arguments: object) -> list[str]:
    """Return the argv that runs one of these programs."""
    return [sys.executable, "-S", "-E", PATH, verb, *map(str, arguments)]


def note(path: str) -> None:
    """Append this process's pid to a file, in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{os.getpid()}\n".encode())
    os.close(fd)


def sleep_for_ever() -> None:
    """Sleep until somebody ends this process."""
    while True:
        time.sleep(60)


def tick(path: str, pause_s: str = "0.05") -> None:
    """Append ``attempt token pid boottime`` every pause: the child's own account of when it lived."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    who = f"{os.environ.get('ATS_ATTEMPT', '-')} {os.environ.get('ATS_FENCING_TOKEN', '-')} {os.getpid()}"
    while True:
        os.write(fd, f"{who} {time.clock_gettime(time.CLOCK_BOOTTIME):.6f}\n".encode())
        time.sleep(float(pause_s))


def spam(stream: str, size: str, chunk: str = "65536") -> None:
    """Write so many bytes to ``out``, ``err`` or ``both`` in turn, without any newline."""
    fds = {"out": [1], "err": [2], "both": [1, 2]}[stream]
    block = memoryview(b"x" * int(chunk))
    left = int(size)
    while left > 0:
        for fd in fds:
            part = block[: min(left, len(block))]
            while part:
                part = part[os.write(fd, part) :]
        left -= len(block)


def daemonise(path: str, keep: str = "") -> None:
    """Leave a daemon behind that left session, parents and environment, and exit 0.

    ``keep`` is ``stdout`` when the daemon holds the output pipe open.
    """
    print("started", flush=True)
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    if keep != "stdout":
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
    os.execve(sys.executable, command("hang", path, "ignore"), {})


def hang(path: str, term: str = "") -> None:
    """Note the pid and hang; ``ignore`` makes it deaf to SIGTERM, SIGHUP and SIGINT."""
    if term == "ignore":
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    note(path)
    print("ready", flush=True)
    sleep_for_ever()


def family(path: str, term: str = "") -> None:
    """Hang with a child, a grandchild in a session of its own, and a daemon with a cleared environment."""
    subprocess.Popen(command("hang", path, term))
    subprocess.Popen(command("hang", path, term), start_new_session=True)
    subprocess.run(command("daemonise", path), check=True, stdout=subprocess.DEVNULL)
    hang(path, term)


def forker(path: str, count: str = "200") -> None:
    """Fork without end, each living for a moment in a session of its own, pipes let go: hard to catch for a killer."""
    note(path)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for _ in range(int(count)):
        pid = os.fork()
        if pid:
            time.sleep(0.001)
            os._exit(0)
        os.setsid()
    sleep_for_ever()


def toil(share: str, seconds: str, path: str = "") -> None:
    """Use a share of a processor for a while without a word, in a child that is reaped at the end; exit 0."""
    if path:
        note(path)
    if os.fork():
        os.wait()
        sys.exit(0)
    end = time.monotonic() + float(seconds)
    while (now := time.monotonic()) < end:
        while time.monotonic() < now + 0.1 * float(share):
            pass
        time.sleep(0.1 * (1 - float(share)))
    os._exit(0)


def burst(seconds: str) -> None:
    """Use so much of a processor, at once."""
    while time.process_time() < float(seconds):
        pass


def polite(path: str, code: str) -> None:
    """Exit with a code at SIGTERM, after noting it."""

    def leave(_number: int, _frame: object) -> None:
        note(path)
        os._exit(int(code))

    signal.signal(signal.SIGTERM, leave)
    print("ready", flush=True)
    note(path + ".ready")
    sleep_for_ever()


def surroundings() -> None:
    """Print what was inherited as JSON: environment, open fds, ignored signals, session, directory."""
    fds = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            fds.append([int(path.name), str(path.readlink())])
        except OSError:
            continue
    status = Path("/proc/self/status").read_text("ascii")
    masks = {
        line.split(":")[0]: int(line.split()[1], 16)
        for line in status.splitlines()
        if line.startswith(("SigI", "SigB"))
    }
    print(
        json.dumps(
            {
                "env": dict(os.environ),
                "fds": fds,
                "ignored": masks["SigIgn"],
                "blocked": masks["SigBlk"],
                "leader": os.getsid(0) == os.getpid(),
                "cwd": str(Path.cwd()),
                "mode": Path().stat().st_mode & 0o777,
            }
        )
    )


def die(number: str) -> None:
    """End by a signal of its own."""
    signal.signal(int(number), signal.SIG_DFL) if int(number) not in (9, 19) else None
    os.kill(os.getpid(), int(number))
    sleep_for_ever()


def raw(hex_bytes: str, pause_s: str = "0") -> None:
    """Write bytes one by one, so that every chunk border lies within a character."""
    for byte in bytes.fromhex(hex_bytes):
        os.write(1, bytes([byte]))
        time.sleep(float(pause_s))


def echo() -> None:
    """Copy stdin to stdout, slowly at first."""
    time.sleep(0.05)
    while data := os.read(0, 65536):
        os.write(1, data)


def deaf(seconds: str = "0") -> None:
    """Close stdin without reading it, wait, and exit 0."""
    os.close(0)
    time.sleep(float(seconds))
    print("done")


def hog(path: str, mebibytes: str = "256", who: str = "leader") -> None:
    """Note the pid, take memory bit by bit up to a bound, and hang; ``child`` lets a child do that and waits."""
    note(path)
    if who == "child" and os.fork():
        sleep_for_ever()
    kept = []
    for _ in range(int(mebibytes)):
        kept.append(bytearray(b"x" * 1_048_576))
        time.sleep(0.001)
    sleep_for_ever()


def bomb(path: str, failures: str = "20", most: str = "200") -> None:
    """Fork children that leave session and hang, until so many forks were refused or there are enough; exit 3."""
    null = os.open("/dev/null", os.O_RDWR)
    count = refused = 0
    while refused < int(failures) and count < int(most):
        try:
            pid = os.fork()
        except BlockingIOError:
            refused += 1
            time.sleep(0.01)
            continue
        if pid == 0:
            os.setsid()
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            note(path)
            sleep_for_ever()
        count += 1
        time.sleep(0.005)
    print(f"refused {refused} of {count + refused}", file=sys.stderr)
    sys.exit(3)


def main() -> None:
    """Run the program that argv names."""
    verb, *arguments = sys.argv[1:]
    globals()[verb](*arguments)


if __name__ == "__main__":
    main()
