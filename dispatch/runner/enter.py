"""Go into the control groups of an attempt, then become its command: no instruction of the command runs outside.

``python -I -S enter.py STATUS_FD COUNT DOOR... COMMAND...``. Nothing comes over
the pipe STATUS_FD but its end when the command has taken over; else ``D`` for a
door or ``C`` for the command, and the number of the error.
"""

import os
import sys
from _signal import SIG_DFL, SIGPIPE, SIGXFSZ, signal  # type: ignore[import-not-found]  # what is behind signal, faster


def main() -> None:
    """See the module."""
    status_fd, count = int(sys.argv[1]), int(sys.argv[2])
    doors, command = sys.argv[3 : 3 + count], sys.argv[3 + count :]
    what = "D"
    try:
        os.set_inheritable(status_fd, False)
        for door in doors:
            fd = os.open(door, os.O_WRONLY)
            os.write(fd, b"0")
            os.close(fd)
        # As it was given to this process: Python itself may have added to it since.
        with open("/proc/self/environ", "rb") as file:  # noqa: PTH123 - pathlib is slow to import
            pairs = [pair.partition(b"=") for pair in file.read().split(b"\0") if pair]
        # Python ignores these two, and what is ignored stays ignored.
        signal(SIGPIPE, SIG_DFL)
        signal(SIGXFSZ, SIG_DFL)
        what = "C"
        os.execvpe(command[0], command, {name: value for name, _, value in pairs})  # noqa: S606
    except OSError as exc:
        os.write(status_fd, f"{what}{exc.errno or 0}".encode())
    os._exit(125)


if __name__ == "__main__":
    main()
