"""keygen, add-key, remove-key, list-keys, pending, approve, reject-key and config, as an operator types them."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from dispatch.crypto import encoding, keys
from dispatch.crypto.files import KeyFiles
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.register import register
from tests.support.cli import Cli, CliHere
from tests.support.fake_ats import FakeAts


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> CliHere:
    """The command line on an empty data directory, with no service anywhere."""
    made = CliHere(monkeypatch, capfd, tmp_path)
    made.env(DISPATCH_ATS_URL="http://127.0.0.1:1")
    return made


@pytest.fixture
def files(tmp_path: Path) -> KeyFiles:
    """The files that the commands work on."""
    return KeyFiles(tmp_path / "data" / "keys")


def new_key() -> str:
    """A sender's public key as it is typed."""
    return encoding.encode(KeyPair.make().public)


def ask(files: KeyFiles, task_id: str = "100") -> str:
    """Let a new key ask to be trusted; returns its fingerprint."""
    public = KeyPair.make().public
    register(files, encoding.encode(public), task_id, time.time())
    return keys.kid_of(public)


def test_keygen_prints_the_public_key_and_never_makes_a_second_one(cli: CliHere, files: KeyFiles) -> None:
    """stdout is the public key alone; the second time nothing changes, and the sentence says how to rotate."""
    made = cli("keygen")
    pair = files.own_keys()[0].pair
    assert (made.code, made.out) == (0, encoding.encode(pair.public) + "\n")
    assert pair.kid in made.err
    assert encoding.encode(pair.private) not in made.out + made.err
    again = cli("keygen")
    assert (again.code, again.out) == (1, "")
    assert pair.kid in again.err
    assert "keygen --rotate --overlap 30d" in again.err
    assert files.own_keys()[0].pair == pair
    assert stat.S_IMODE(files.directory.stat().st_mode) == 0o700


def test_keygen_rotates(cli: CliHere, files: KeyFiles) -> None:
    """The old pair opens for the overlap, by default 30 days, or not at all, and no older one for longer."""
    cli("keygen")
    rotated = cli("keygen", "--rotate", "--json")
    assert rotated.err == ""
    new, old = rotated.json["keys"]
    assert (new["state"], old["state"]) == ("current", "opens")
    assert rotated.json["public_key"] == new["public_key"]
    left_s = (files.own_keys()[1].opens_until_s or 0) - time.time()
    assert 29.9 * 86_400 < left_s <= 30 * 86_400
    shorter = cli("keygen", "--rotate", "--overlap", "12h")
    assert "opens tasks until" in shorter.err
    assert len(files.own_keys()) == 3
    assert files.own_keys()[2].opens_until_s == files.own_keys()[1].opens_until_s
    stolen = {key.pair.kid for key in files.own_keys()}
    cli("keygen", "--rotate", "--overlap", "0")
    (only,) = files.own_keys()
    assert only.pair.kid not in stolen


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["keygen", "--overlap", "30d"], 2, "--overlap goes with --rotate"),
        (["keygen", "--rotate", "--overlap", "soon"], 2, "is not a duration"),
        (["add-key", "alice", "short"], 2, "KEY is not base64"),
        (["add-key", "alice", encoding.encode(bytes(31))], 2, "KEY has 31 bytes instead of 32"),
        (["add-key", "alice", encoding.encode(bytes(33))], 2, "KEY has 33 bytes instead of 32"),
        (["add-key", "alice", encoding.encode(bytes(32))], 2, "hides nothing (low order)"),
        (["add-key", "alice", "M" * 42 + "N="], 2, "another spelling"),
        (["add-key", "a b", "KEY"], 2, "is no name for a sender"),
        (["add-key", "alice", "KEY", "--version", "3"], 2, "--version"),
        (["remove-key", "nobody"], 1, "no sender 'nobody'"),
        (["approve", "0123", "alice"], 1, "run 'dispatch keygen' first"),
        (["reject-key", "0123"], 2, "no whole fingerprint"),
        (["reject-key", "0" * 32], 1, "'dispatch pending' lists them"),
        (["reject-key", "0" * 32, "two\nlines"], 2, "one line"),
        (["config", "colour"], 2, "colour"),
        (["config", "require_encryption", "yes"], 2, "yes"),
        (["approve-key"], 2, "Did you mean"),
    ],
)
def test_refusals(cli: CliHere, files: KeyFiles, args: list[str], code: int, words: str) -> None:
    """Each refusal is a sentence that says what is wrong; nothing is written."""
    ended = cli(*[new_key() if arg == "KEY" else arg for arg in args])
    assert (ended.code, ended.out) == (code, ""), ended
    assert words in ended.err
    assert not files.trust().senders
    assert not files.own_keys()


def test_senders_are_added_listed_and_removed(cli: CliHere, files: KeyFiles) -> None:
    """Permissions arrive; names and keys are given once; a removed key stays listed as removed and cannot return."""
    alice, bob = new_key(), new_key()
    assert "all channels, all executors" in cli("add-key", "alice", alice).err
    added = cli(
        *("add-key", "bob", bob, "--channel", "a", "--channel", "b", "--executor", "gpu"),
        *("--encrypted-only", "--version", "2", "--json"),
    ).json
    assert (added["channels"], added["executors"], added["versions"]) == (["a", "b"], ["gpu"], [2])
    assert added["encrypted_only"]
    assert cli("add-key", "alice", new_key()).code == 1
    assert "This key is bob's already" in cli("add-key", "carol", bob).err
    assert "is revoked" in cli("remove-key", "bob").err
    assert "was revoked already" in cli("remove-key", "bob").err
    assert "was removed on" in cli("add-key", "bob", bob).err
    lines = [line.split("\t") for line in cli("list-keys").out.splitlines()]
    assert [line[:3] for line in lines] == [["sender", "alice", "trusted"], ["sender", "bob", "revoked"]]
    cli("keygen")
    listed = cli("list-keys", "--json").json
    assert [one["fingerprint"] for one in listed["dispatcher"]] == [files.own_keys()[0].pair.kid]
    assert [(one["name"], one["state"], one["public_key"]) for one in listed["senders"]] == [
        ("alice", "trusted", alice),
        ("bob", "revoked", bob),
    ]
    private = encoding.encode(files.own_keys()[0].pair.private)
    assert private not in cli("list-keys", "--json").out + cli("list-keys").out


def test_an_open_file_is_exit_78(cli: CliHere, files: KeyFiles) -> None:
    """Every command refuses to work with a key file that others can read, and says what to do."""
    cli("keygen")
    (files.directory / "dispatcher.json").chmod(0o644)
    for args in (["keygen"], ["keygen", "--rotate"], ["list-keys"], ["add-key", "a", new_key()], ["config"]):
        ended = cli(*args)
        assert ended.code == 78
        assert "is open to others (mode 0644)" in ended.err


def test_registrations_are_listed_and_answered(cli: CliHere, files: KeyFiles) -> None:
    """Only the whole fingerprint counts; the answer goes to the task's thread, for people and for programs."""
    with FakeAts(fencing=True) as ats:
        cli.env(DISPATCH_ATS_URL=ats.url)
        cli("keygen")
        assert cli("pending").out == ""
        first, second = (ask(files, str(ats.add(title="register")["id"])) for _ in range(2))
        assert [line.split("\t")[:2] for line in cli("pending").out.splitlines()] == [[first, "100"], [second, "101"]]
        assert [one["fingerprint"] for one in cli("pending", "--json").json] == [first, second]
        for part in (first[:16], first[:31], "", first + "0"):
            refused = cli("approve", part, "alice")
            assert (refused.code, "no whole fingerprint" in refused.err) == (2, True)
        assert not files.trust().senders
        approved = cli("approve", first.upper(), "alice", "--channel", "builds", "--version", "2")
        assert (approved.code, approved.out) == (0, "")
        alice = files.trust().senders["alice"]
        assert (alice.channels, alice.versions) == ({"builds"}, {2})
        text, data = ats.tasks[100]["messages"][0]["parts"]
        own = encoding.encode(files.own_keys()[0].pair.public)
        assert own in text["content"]
        assert (data["data"]["status"], data["data"]["dispatcher_public_key"]) == ("already_registered", own)
        rejected = cli("reject-key", second, "who are you?", "--json").json
        assert (rejected["told"], rejected["task_id"]) == (True, "101")
        assert "who are you?" in ats.tasks[101]["messages"][0]["parts"][0]["content"]
        assert cli("pending", "--json").json == []
        assert cli("approve", second, "bob").code == 1


def test_an_approval_counts_even_if_the_service_is_down(cli: CliHere, files: KeyFiles) -> None:
    """The key is trusted, and the operator is told to pass the dispatcher's key on."""
    cli("keygen")
    approved = cli("approve", ask(files), "alice")
    assert approved.code == 0
    assert "Tell the sender yourself" in approved.err
    assert encoding.encode(files.own_keys()[0].pair.public) in approved.err
    assert "alice" in files.trust().senders
    assert "will be told when the key asks again" in cli("reject-key", ask(files)).err


def test_config_shows_and_changes_the_policy(cli: CliHere, files: KeyFiles) -> None:
    """The change is in the file at once; the setting, where true, wins over it."""
    assert cli("config").out == "require_encryption\tfalse\n"
    assert cli("config", "require_encryption", "true").code == 0
    assert cli("config", "require_encryption").out == "true\n"
    assert files.trust().require_encryption
    assert cli("config", "--json").json == {"require_encryption": True}
    cli.env(DISPATCH_REQUIRE_ENCRYPTION="true")
    assert "the setting require_encryption is true and wins" in cli("config", "require_encryption", "false").err
    assert not files.trust().require_encryption


def test_a_terminal_gets_tables(tmp_path: Path) -> None:
    """Headings and words for people, in a real terminal."""
    real = Cli(tmp_path, {"DISPATCH_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200"})
    try:
        files = KeyFiles(tmp_path / "data" / "keys")
        fingerprint = ask(files)
        listed = real.on_terminal("pending")
        assert (listed.code, "FINGERPRINT" in listed.out, fingerprint in listed.out) == (0, True, True)
        assert "in 7 d" in listed.out
        assert "No sender is trusted yet" in real.on_terminal("list-keys").out
    finally:
        real.close()
