"""``dispatch api-key`` as an operator types it, with and without a running service."""

from __future__ import annotations

import re
import stat
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from dispatch.service import migrations
from tests.support.cli import Cli
from tests.support.processes import LogProcess
from tests.support.service import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = re.compile(r"dsk_[0-9a-f]{12}_[0-9a-f]{64}\n")
UUID = "8F14E45F-ceea-467f-9a36-dedd4bea2543"


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command line on an empty data directory that does not exist yet."""
    made = Cli(tmp_path, {"DISPATCH_DATA_DIR": str(tmp_path / "data"), "DISPATCH_BIND": "127.0.0.1:0"})
    yield made
    made.close()


def test_the_key_is_all_of_stdout_and_shown_once(cli: Cli, tmp_path: Path) -> None:
    """What is piped is the key; words go to stderr, with the database; list shows all but the key; all is private."""
    assert f"no keys in {tmp_path}/data/tasks.db:" in cli("api-key", "list").err
    ended = cli("api-key", "create", "fleet")
    assert (ended.code, bool(KEY.fullmatch(ended.out))) == (0, True), ended
    secret = ended.out.strip().rpartition("_")[2]
    assert "write access" in ended.err
    assert f"first key in {tmp_path}/data/tasks.db:" in ended.err
    assert secret not in ended.err
    listed = cli("api-key", "list")
    assert listed.out.split("\t")[1:5] == ["live", "fleet", "write", "agent:fleet"]
    assert secret not in listed.out + cli("api-key", "list", "--json").out
    for path in (tmp_path / "data").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert "first key" not in cli("api-key", "create", "second").err


def test_json(cli: Cli) -> None:
    """One object with the key in it, and nothing on stderr."""
    ended = cli.here(
        "api-key", "create", "ci", "--json", "--access", "read", "--project", "default/main", "--expires", "90d"
    )
    made = ended.json
    assert ended.err == ""
    assert KEY.fullmatch(made.pop("key") + "\n")
    assert (made["access"], made["projects"], made["state"]) == ("read", ["default/main"], "live")
    assert made["expires_at"] > made["created_at"]
    assert cli.here("api-key", "list", "--json").json == [made]
    agent = cli.here("api-key", "create", "agent", "--json", "--agent", UUID).json
    assert agent["actor"] == {"type": "agent", "id": UUID.lower()}
    human = cli.here("api-key", "create", "ann-laptop", "--json", "--actor", "ann", "--type", "human").json
    assert human["actor"] == {"type": "human", "id": "ann"}


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (["create", "a b"], 2, "1 to 64"),
        (["create", "x" * 65], 2, "1 to 64"),
        (["create", ""], 2, "1 to 64"),
        (["create", "taken"], 1, "already"),
        (["create", "n", "--access", "root"], 2, "root"),
        (["create", "n", "--agent", "bob"], 2, "not a UUID"),
        (["create", "n", "--agent", UUID, "--type", "human"], 2, "--agent"),
        (["create", "n", "--project", "acme"], 2, "ORG/PROJECT"),
        (["create", "n", "--project", "acme/web"], 1, "no project acme/web"),
        (["create", "n", "--expires", "soon"], 2, "duration"),
        (["create", "n", "--expires", "0d"], 2, "duration"),
        (["create", "n", "--expires", "101y"], 2, "duration"),
        (["revoke", "nobody"], 1, "no key nobody"),
        (["revoke", f"dsk_0123456789ab_{'0' * 64}"], 2, "never the key itself"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(cli: Cli, args: list[str], code: int, word: str) -> None:
    """Wrong usage is 2, a refusal 1; no key is printed or made."""
    assert cli.here("api-key", "create", "taken").code == 0
    ended = cli.here("api-key", *args)
    assert (ended.code, ended.out) == (code, ""), ended
    assert word in ended.err
    assert len(cli.here("api-key", "list", "--json").json) == 1


def test_revoked_names_can_be_given_again(cli: Cli) -> None:
    """By id or by name, twice is no mistake, and the list keeps what was."""
    for how in ("id", "name"):
        made = cli.here("api-key", "create", "ci", "--json").json
        for word in ("is revoked", "was revoked already"):
            assert word in cli.here("api-key", "revoke", made["id"] if word.startswith("was") else made[how]).err
    assert [key["state"] for key in cli.here("api-key", "list", "--json").json] == ["revoked", "revoked"]


def test_overlapping_actors_are_pointed_out(cli: Cli) -> None:
    """A key that may act as another key's actor is made, and said to be one."""
    cli.here("api-key", "create", "dispatch")
    assert "Mind" not in cli.here("api-key", "create", "other").err
    assert "Mind" not in cli.here("api-key", "create", "next", "--actor", "dispatch").err
    said = cli.here("api-key", "create", "dispatch-2").err
    assert "key dispatch, which acts as dispatch, can also act as dispatch-2, the actor of key dispatch-2." in said


def test_from_the_first_key_to_a_public_service(cli: Cli) -> None:
    """Without keys a public address is refused and the sentence says how to make one; then it is served."""
    public = {"DISPATCH_BIND": "0.0.0.0:0"}
    refused = cli("serve", env=public)
    assert refused.code == 78
    assert "dispatch api-key create" in refused.err
    text = cli("api-key", "create", "admin", "--access", "admin").out.strip()
    process = LogProcess("serve", [sys.executable, "-m", "dispatch", "serve"], {**cli.env, **public})
    try:
        url = process.wait_event("service_ready", keys=True)["url"]
        with closing(Client(url, token=text)) as client:
            client.create()
        with closing(Client(url, token=cli("api-key", "create", "beside").out.strip())) as client:
            assert client.get("/tasks")["count"] == 1
            assert cli("api-key", "revoke", "beside").code == 0
            assert client.refused("GET", "/tasks")[0] == 401
    finally:
        process.stop()


def test_an_older_database_is_brought_up_to_date_but_not_under_a_service(cli: Cli, tmp_path: Path) -> None:
    """With the schema of an earlier version the command migrates, unless a service of that version holds the file."""
    file = tmp_path / "data" / "tasks.db"
    file.parent.mkdir(mode=0o700)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with create_engine(f"sqlite:///{file}").begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    program = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2)\n"
    program += """print('{"event": "held"}', flush=True); time.sleep(60)"""
    lock = [sys.executable, "-c", program, f"{file}.lock"]
    holder = LogProcess("holder", lock, cli.env)
    try:
        holder.wait_event("held")
        refused = cli("api-key", "create", "k")
        assert (refused.code, refused.out) == (78, "")
        assert "another version" in refused.err
    finally:
        holder.stop()
    assert KEY.fullmatch(cli("api-key", "create", "k").out)
