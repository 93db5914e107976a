"""Has this host what a worker needs: executors, a data directory, a user of its own, limits?"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from dispatch.core import command_line, idle, limits
from dispatch.core.routing import DEFAULT, shadowed
from dispatch.preflight.check import Check
from dispatch.runner import delegation
from dispatch.runner.executors import controllers_of, placed

if TYPE_CHECKING:
    from dispatch.core.routing import Executor
    from dispatch.settings import Settings

DISK_BYTES_MIN: Final = 100 * 1024 * 1024


def check_executor(settings: Settings) -> list[Check]:
    """Is what each executor needs on this host? Without the default's a worker does not start; others it gives back."""
    executors = settings.routing.executors
    is_table = executors[DEFAULT].command != settings.execution.command
    found = [check for executor in executors.values() for check in _executor(executor, is_table=is_table)]
    if is_table and "DISPATCH_COMMAND" in os.environ:
        sentence = "DISPATCH_COMMAND is set, and does nothing beside [executors.default] of the settings file."
        found.append(Check("executor", "warning", sentence, "Remove one of them."))
    return found


def check_routes(settings: Settings) -> list[Check]:
    """Does each route decide about some task?"""
    return [
        Check(
            "routes",
            "warning",
            f"[[routes]] number {later} never decides: whatever it would hold for, number {earlier} takes before.",
            "Put it before that one, or narrow that one.",
        )
        for later, earlier in shadowed(settings.routing.routes)
    ]


def _executor(executor: Executor, *, is_table: bool) -> list[Check]:
    if executor.kind == "http":
        unset = sorted(
            value.removeprefix("env:")
            for value in executor.headers.values()
            if value.startswith("env:") and not os.environ.get(value.removeprefix("env:"))
        )
        if unset:
            sentence = f"The executor {executor.name} needs {', '.join(unset)} in the worker's environment."
            return [Check("executor", _severity(executor), sentence, "Set it where the worker is started.")]
        return [Check("executor", "ok", f"The executor {executor.name} posts to {urlsplit(executor.url).netloc}.")]
    checks = [_function(executor)] if executor.kind == "python" else _program(executor, is_table=is_table)
    unset = sorted(name for name in executor.env if name not in os.environ)
    if unset:
        sentence = f"The executor {executor.name} may see {', '.join(unset)} of the worker's environment, not set here."
        checks.append(Check("executor", "warning", sentence, "Set it where the worker is started, or mend its name."))
    return checks


def _severity(executor: Executor) -> Literal["warning", "error"]:
    return "error" if executor.name == DEFAULT else "warning"


def _function(executor: Executor) -> Check:
    """Look for the module without running it; what its parent packages do when imported happens."""
    module = executor.function.partition(":")[0]
    try:
        is_there = importlib.util.find_spec(module) is not None
    except Exception as exc:  # noqa: BLE001 - a parent package may raise anything
        sentence = f"The executor {executor.name}: {module} cannot be imported: {exc}."
        return Check("executor", _severity(executor), sentence)
    if is_there:
        return Check("executor", "ok", f"The executor {executor.name} is {executor.function}.")
    sentence = f"The executor {executor.name}: there is no module {module}."
    return Check(
        "executor",
        _severity(executor),
        sentence,
        "Install it where the worker runs, or add its directory to PYTHONPATH.",
    )


def _program(executor: Executor, *, is_table: bool) -> list[Check]:
    """Look for the program, and at what else can be seen of the command without running it.

    ``is_table`` says that the default executor is a table of the settings file, and not DISPATCH_COMMAND.
    """
    program, severity = placed(executor.command[0]), _severity(executor)
    called = "" if executor.name == DEFAULT else f" {executor.name}"
    colon = called and f"{called}:"
    place = shutil.which(program)
    if place is not None:
        trouble = script_trouble(Path(place))
        if trouble:
            checks = [Check("executor", "warning", f"The executor{colon} {place} {trouble}.", "Mend its first line.")]
        else:
            checks = [Check("executor", "ok", f"The executor{called} is {place}.")]
        place_of = f"[executors.{executor.name}]" if called or is_table else "DISPATCH_COMMAND"
        return checks + [
            Check("executor", "warning", f"In {place_of} {doubt}") for doubt in command_line.doubts(executor.command)
        ]
    advice = "Install it on this host, or set DISPATCH_COMMAND to the command that shall run tasks."
    if called or is_table:
        advice = f"Install it on this host, or change [executors.{executor.name}]."
    path = Path(program)
    if path.is_dir():
        return [Check("executor", severity, f"The executor{colon} {program} is a directory.", advice)]
    if path.exists() and "/" in program:
        sentence = f"The executor{colon} {program} may not be executed."
        return [Check("executor", severity, sentence, f"Try 'chmod +x {program}'.")]
    where = "" if "/" in program else " on PATH"
    return [Check("executor", severity, f"The executor{colon} {program} was not found{where}.", advice)]


def script_trouble(path: Path) -> str:
    """Say why the kernel would not start a script, as the end of a sentence; "" when nothing is wrong to see."""
    try:
        with path.open("rb") as file:
            line = file.readline(256)
    except OSError:
        return ""
    if line.startswith(b"#!"):
        interpreter = os.fsdecode(line[2:].split()[0]) if line[2:].split() else ""
        return "" if Path(interpreter).is_file() else f"names an interpreter that is not there: {interpreter}"
    return "" if b"\0" in line or not line.isascii() else "is a text without a #! line, which the kernel does not start"


def check_user(_settings: Settings) -> list[Check]:
    """Would tasks run as root?"""
    if os.geteuid() != 0:
        return [Check("user", "ok", "Tasks do not run as root.")]
    sentence = "Tasks run as root here: what they start may do anything to this host."
    return [Check("user", "warning", sentence, "Run workers as a user of their own.")]


def check_data_dir(settings: Settings) -> list[Check]:
    """Can the data directory be written, and only by us?"""
    path = settings.local.data_dir
    advice = "Set DISPATCH_DATA_DIR to a directory that this user may write."
    base = path
    while not base.exists() and base != base.parent:
        base = base.parent
    if not base.is_dir() or not os.access(base, os.W_OK | os.X_OK):
        return [Check("data_dir", "error", f"The data directory {path} cannot be written.", advice)]
    checks = []
    if base == path:
        found = path.stat()
        if found.st_uid not in (os.getuid(), 0):
            return [Check("data_dir", "error", f"The data directory {path} belongs to somebody else.", advice)]
        if found.st_mode & 0o077:
            sentence = f"Others may read the data directory {path}."
            checks.append(Check("data_dir", "warning", sentence, f"Try 'chmod 700 {path}'."))
    free = shutil.disk_usage(base).free
    if free < DISK_BYTES_MIN:
        sentence = f"Only {free // 1_048_576} MiB are free where the data directory {path} is."
        checks.append(Check("data_dir", "warning", sentence, "Make room."))
    what = f"can be written{_database(settings)}" if base == path else "will be made when it is needed"
    return checks or [Check("data_dir", "ok", f"The data directory {path} {what}.")]


def _database(settings: Settings) -> str:
    """Say how large the task service's SQLite file is, if it is on this host."""
    file = Path(settings.database_url.removeprefix("sqlite:///")).expanduser()
    try:
        size = sum(path.stat().st_size for path in (file, Path(f"{file}-wal")) if path.exists())
    except OSError:
        return ""
    return f"; the database has {size / 1_048_576:.1f} MiB" if size else ""


def check_limits(settings: Settings) -> list[Check]:
    """Would limits of attempts be held by the kernel, or only be watched, by a worker that is started from here?"""
    needed = controllers_of(settings.routing, settings.execution)
    is_well, sentence, advice = limits.finding(needed, settings.execution.attempt_limits, delegation.look().grounds)
    return [Check("limits", "ok" if is_well else "warning", sentence, advice)]


def check_idle(settings: Settings) -> list[Check]:
    """Is an attempt that hangs ended before its time limit?"""
    is_well, sentence, advice = idle.finding(settings.routing)
    return [Check("idle", "ok" if is_well else "warning", sentence, advice)]
