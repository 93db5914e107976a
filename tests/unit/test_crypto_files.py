"""The files of keys: who may read them, what a crash leaves, what two writers lose (C9)."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dispatch.crypto import encoding, keys
from dispatch.crypto.files import KeyFiles, key_files
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.trust import Sender
from dispatch.errors import ConfigurationError, ConflictError, DispatchError, NotFoundError, UsageError
from dispatch.settings import load
from tests.support.processes import ROOT

NOW_S = 1_763_700_000.0
DAY_S = 86_400.0
OURS = ["dispatcher.json", "senders.json", "pending.json", "rejected.json", "policy.json"]


def sender(name: str, public: bytes | None = None, **more: Any) -> Sender:
    """A sender with a key of its own."""
    return Sender(name, public or KeyPair.make().public, **more)


@pytest.fixture
def files(tmp_path: Path) -> KeyFiles:
    """A directory that is not there yet."""
    return KeyFiles(tmp_path / "state" / "keys")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file of ours, with something in it; made once, for the disk is slow to say that it has written."""
    files = KeyFiles(tmp_path_factory.mktemp("template") / "state" / "keys")
    before = os.umask(0)
    try:
        files.make_key(now_s=NOW_S)
        files.add_sender(sender("alice"))
        for _ in range(2):
            files.ask(KeyPair.make().public, task_id="1", now_s=NOW_S)
        files.reject(files.registrations(now_s=NOW_S).waiting[0].fingerprint, "who?", now_s=NOW_S)
        files.set_require_encryption(required=True)
    finally:
        os.umask(before)
    return files.directory


@pytest.fixture
def full(files: KeyFiles, template: Path) -> KeyFiles:
    """A copy of the template."""
    files.directory.parent.mkdir(0o700)
    shutil.copytree(template, files.directory)
    return files


def read_all(files: KeyFiles) -> None:
    """Read what the daemon and the command line read."""
    files.trust()
    files.registrations(now_s=NOW_S)


def test_nothing_there_means_nothing_trusted(files: KeyFiles) -> None:
    """A missing directory is no error, is not made by reading, and trusts nobody."""
    trust = files.trust()
    assert trust.ring.current() is None
    assert not trust.senders
    assert not trust.require_encryption
    assert files.registrations(now_s=NOW_S).waiting == ()
    assert not files.directory.exists()


def test_only_the_owner_can_read_what_is_written(template: Path) -> None:
    """Directories are 0700 and files 0600 from the start, whatever the umask; no unfinished file is left."""
    assert stat.S_IMODE(template.stat().st_mode) == 0o700
    assert stat.S_IMODE(template.parent.stat().st_mode) == 0o700
    assert {path.name for path in template.iterdir()} == {*OURS, ".lock"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in template.iterdir()} == {0o600}


def _open_to_others(path: Path) -> None:
    path.chmod(0o644)


def _group_only(path: Path) -> None:
    path.chmod(0o640)


def _symlinked(path: Path) -> None:
    os.rename(path, path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def _null(path: Path) -> None:
    path.write_text("null")


def _with_a_field_too_many(path: Path) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "chanels": []}))


def _with_a_wrong_type(path: Path) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(dict.fromkeys(value, "maybe")))


def _huge(path: Path) -> None:
    path.write_bytes(b" " * 5_000_000 + path.read_bytes())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_open_to_others, "is open to others (mode 0644)"),
        (_group_only, "is open to others (mode 0640)"),
        (_symlinked, "is a symbolic link"),
        (_cut, "is no whole JSON document"),
        (_emptied, "is no whole JSON document"),
        (_a_pipe, "is no regular file"),
        (_a_directory, "is no regular file"),
        (_null, "is not of the right form"),
        (_with_a_field_too_many, "not of the right form"),
        (_with_a_wrong_type, "not of the right form"),
        (_huge, "holds more than"),
    ],
)
@pytest.mark.parametrize("name", OURS)
def test_a_file_that_cannot_be_trusted_stops_everything(
    full: KeyFiles, name: str, harm: Callable[[Path], None], words: str
) -> None:
    """Nothing is trusted or written any more, by a fresh reader and by one that knew the file before."""
    read_all(full)
    harm(full.directory / name)
    for files in (full, KeyFiles(full.directory)):
        with pytest.raises(ConfigurationError) as caught:
            read_all(files)
        assert words in str(caught.value)
        assert name in str(caught.value)


@pytest.mark.parametrize("name", OURS)
def test_a_file_of_somebody_else_is_refused(full: KeyFiles, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root can give a file away; for others it is the reader who becomes somebody else."""
    if os.geteuid() == 0:
        os.chown(full.directory / name, 12345, -1)
    else:
        monkeypatch.setattr("dispatch.crypto.safe_files._check_directory", lambda *_: None)
        monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(ConfigurationError, match=r"belongs to another user \(uid"):
        read_all(full)


def test_a_directory_of_somebody_else_is_refused(full: KeyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says as whom to run; root's directories are nobody else's."""
    if os.geteuid() == 0:
        os.chown(full.directory, 12345, -1)
    else:
        monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(ConfigurationError, match="run dispatch as that user"):
        full.trust()


def test_a_directory_that_others_can_change_is_refused(full: KeyFiles) -> None:
    """Who can write to the directory can put another file there."""
    full.directory.chmod(0o770)
    with pytest.raises(ConfigurationError, match="Others may write to"):
        full.trust()
    with pytest.raises(ConfigurationError, match="Others may write to"):
        full.add_sender(sender("bob"))


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    """The sentence names the setting."""
    (tmp_path / "keys").write_text("")
    with pytest.raises(ConfigurationError, match="DISPATCH_KEYS_DIR"):
        KeyFiles(tmp_path / "keys").trust()
    with pytest.raises(ConfigurationError, match="DISPATCH_KEYS_DIR"):
        KeyFiles(tmp_path / "keys" / "deeper").make_key(now_s=NOW_S)


def test_a_change_is_seen_at_once_and_an_unchanged_file_is_not_read(
    full: KeyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon sees what the command line did with its next look; while nothing changes it opens no file."""
    other = KeyFiles(full.directory)
    for number in range(8):
        other.add_sender(sender(f"bob{number}"))
        assert f"bob{number}" in full.trust().senders
        other.revoke_sender(f"bob{number}", now_s=NOW_S)
        assert full.trust().senders[f"bob{number}"].revoked_at
    for path in full.directory.iterdir():
        os.utime(path, (1, 1))
    monkeypatch.setattr("dispatch.crypto.safe_files._RACY_S", -1.0)
    before = full.trust()
    monkeypatch.setattr("os.open", lambda *_a, **_k: pytest.fail("a file was opened"))
    assert full.trust() is before


def test_rotation_keeps_the_old_key_for_opening(files: KeyFiles) -> None:
    """A new key seals; the old one opens until the overlap is over and is gone from the file at the next rotation."""
    first = files.make_key(now_s=NOW_S)
    second = files.rotate_key(overlap_s=30 * DAY_S, now_s=NOW_S)
    ring = files.trust().ring
    assert ring.current() == second
    assert ring.usable(NOW_S + 29 * DAY_S) == (second, first)
    assert ring.usable(NOW_S + 30 * DAY_S) == (second,)
    third = files.rotate_key(overlap_s=0, now_s=NOW_S + 31 * DAY_S)
    assert files.trust().ring.usable(NOW_S) == (third,)
    assert encoding.encode(first.private) not in (files.directory / "dispatcher.json").read_text()


def test_the_dispatchers_own_key_is_no_senders(files: KeyFiles) -> None:
    """Neither the current nor an old one is taken for a sender's, by add-key or approve."""
    own = [files.make_key(now_s=NOW_S), files.rotate_key(overlap_s=DAY_S, now_s=NOW_S)]
    for pair in own:
        with pytest.raises(ConflictError, match="dispatcher's own key"):
            files.add_sender(sender("alice", pair.public))
    files.ask(own[0].public, task_id="1", now_s=NOW_S)
    with pytest.raises(ConflictError, match="dispatcher's own key"):
        files.approve(own[0].kid, lambda public: sender("alice", public), now_s=NOW_S)
    assert files.trust().senders == {}


def test_after_a_theft_no_older_key_opens_either(files: KeyFiles) -> None:
    """Rotation without overlap ends every key that was in the file, and no older one outlives a short overlap."""
    first = files.make_key(now_s=NOW_S)
    second = files.rotate_key(overlap_s=30 * DAY_S, now_s=NOW_S)
    third = files.rotate_key(overlap_s=DAY_S, now_s=NOW_S)
    assert files.trust().ring.usable(NOW_S) == (third, second, first)
    assert files.trust().ring.usable(NOW_S + DAY_S) == (third,)
    fourth = files.rotate_key(overlap_s=0, now_s=NOW_S)
    assert files.trust().ring.usable(NOW_S) == (fourth,)
    text = (files.directory / "dispatcher.json").read_text()
    assert not [pair for pair in (first, second, third) if encoding.encode(pair.private) in text]


def test_a_second_key_is_not_made_silently(files: KeyFiles) -> None:
    """keygen says what is there and how to rotate, and changes nothing."""
    first = files.make_key(now_s=NOW_S)
    with pytest.raises(ConflictError, match=f"already .*{first.kid}.*--rotate"):
        files.make_key(now_s=NOW_S)
    assert files.trust().ring.current() == first


KILLED_AT = {
    "before the new file": "os.open = at(os.open, lambda a: str(a[0]).endswith('.new'))",
    "half written": "os.fsync = at(os.fsync)",
    "before the rename": "pathlib.Path.replace = at(pathlib.Path.replace)",
    "after the rename": "safe_files.SafeDirectory._sync = at(safe_files.SafeDirectory._sync)",
}


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_kill_during_rotation_leaves_the_old_key(files: KeyFiles, moment: str) -> None:
    """Wherever kill -9 hits, the old key still opens, and the next rotation works and leaves no litter."""
    old = files.make_key(now_s=NOW_S)
    code = f"""
import os, pathlib, signal, sys
from dispatch.crypto import safe_files
from dispatch.crypto.files import KeyFiles
def at(real, when=lambda a: True):
    def patched(*a, **k):
        if when(a):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    return patched
{KILLED_AT[moment]}
KeyFiles(pathlib.Path(sys.argv[1])).rotate_key(overlap_s=60, now_s={NOW_S})
"""
    done = subprocess.run([sys.executable, "-c", code, str(files.directory)], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert old in files.trust().ring.usable(NOW_S)
    assert (files.trust().ring.current() == old) is (moment != "after the rename")
    new = files.rotate_key(overlap_s=60, now_s=NOW_S)
    assert files.trust().ring.current() == new
    assert old in files.trust().ring.usable(NOW_S)
    assert not [path for path in files.directory.iterdir() if path.suffix == ".new"]


def _write_many(directory: Path, mark: str) -> None:
    files = KeyFiles(directory)
    for number in range(8):
        files.add_sender(sender(f"{mark}{number}"))
        files.ask(KeyPair.make().public, task_id=f"{mark}{number}", now_s=NOW_S)


def test_two_processes_lose_nothing_of_each_other(files: KeyFiles) -> None:
    """Daemon and command line write the same files at the same time, and a reader never sees half of one."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(files.directory, mark)) for mark in "ab"]
    for writer in writers:
        writer.start()
    try:
        while any(writer.is_alive() for writer in writers):
            files.trust()
            writers[0].join(0.001)
    finally:
        for writer in writers:
            writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    wanted = {f"{mark}{number}" for mark in "ab" for number in range(8)}
    assert set(files.trust().senders) == wanted
    assert {one.task_id for one in files.registrations(now_s=NOW_S).waiting} == wanted


def test_threads_lose_nothing_of_each_other(files: KeyFiles) -> None:
    """One KeyFiles serves several threads."""
    work = [threading.Thread(target=_write_each, args=(files, mark)) for mark in "ab"]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(files.trust().senders) == 10


def _write_each(files: KeyFiles, mark: str) -> None:
    for number in range(5):
        files.add_sender(sender(f"{mark}{number}"))


def test_who_waits_too_long_for_the_lock_is_told(files: KeyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that was stopped in its midst stops no other one for ever."""
    files.make_key(now_s=NOW_S)
    monkeypatch.setattr("dispatch.crypto.safe_files._LOCK_WAIT_S", 0.05)
    with files._files.locked(), pytest.raises(DispatchError, match="Another process has been changing"):
        KeyFiles(files.directory).add_sender(sender("bob"))


def test_names_and_keys_are_given_once(files: KeyFiles) -> None:
    """A name or key that is there is refused in a sentence; a removed key never comes back, its name may."""
    alice = sender("alice")
    files.add_sender(alice)
    with pytest.raises(ConflictError, match="alice already, with another key"):
        files.add_sender(sender("alice"))
    with pytest.raises(ConflictError, match="This key is alice's already"):
        files.add_sender(sender("bob", alice.public))
    gone, was_good = files.revoke_sender("alice", now_s=NOW_S)
    assert was_good
    assert gone.revoked_at == "2025-11-21T04:40:00Z"
    assert not files.revoke_sender("alice", now_s=NOW_S)[1]
    with pytest.raises(ConflictError, match="was removed on 2025-11-21T04:40:00Z"):
        files.add_sender(sender("bob", alice.public))
    files.add_sender(new := sender("alice"))
    senders = files.trust().senders
    assert senders["alice"] == new
    assert {one.public: one.revoked_at for one in senders.values()} == {new.public: None, alice.public: gone.revoked_at}
    files.revoke_sender("alice", now_s=NOW_S)
    assert {one.public for one in files.trust().senders.values() if one.revoked_at} == {new.public, alice.public}
    with pytest.raises(NotFoundError, match="no sender 'nobody'"):
        files.revoke_sender("nobody", now_s=NOW_S)


@pytest.mark.parametrize("name", ["", "#alice", "a b", "-x", "x" * 65, "ä", "a\n", "__proto__"])
def test_a_name_is_plain(files: KeyFiles, name: str) -> None:
    """Names stand in commands, logs and messages, so they are letters, digits and a few signs."""
    with pytest.raises(UsageError, match="no name for a sender"):
        files.add_sender(sender(name))


def test_permissions_survive_the_file(files: KeyFiles) -> None:
    """What add-key was told is what decides."""
    given = sender(
        "alice",
        added_at="2026-11-21T08:00:00Z",
        channels=frozenset({"a", "b"}),
        executors=frozenset({"gpu"}),
        versions=frozenset({2}),
        encrypted_only=True,
    )
    files.add_sender(given)
    assert KeyFiles(files.directory).trust().senders == {"alice": given}


def node_files(directory: Path) -> tuple[KeyPair, KeyPair]:
    """The files of a Node executor that knows one sender; returns its pair and the sender's."""
    directory.mkdir(mode=0o700, parents=True)
    own, alice = KeyPair.make(), KeyPair.make()
    known = {"publicKey": encoding.encode(alice.public), "fingerprint": "0123456789abcdef", "addedAt": "2026-01-01"}
    for name, value in {
        "dispatch-keys.json": {"publicKey": encoding.encode(own.public), "secretKey": encoding.encode(own.private)},
        "trusted-keys.json": {"alice": known},
        "config.json": {"require_encryption": True},
    }.items():
        (directory / name).touch(0o600)
        (directory / name).write_text(json.dumps(value))
    return own, alice


def test_the_node_executors_files_are_read(files: KeyFiles) -> None:
    """Whoever comes from the Node executor keeps key, senders and policy."""
    own, alice = node_files(files.directory)
    trust = files.trust()
    assert trust.ring.current() == own
    assert trust.senders == {"alice": Sender("alice", alice.public, added_at="2026-01-01")}
    assert trust.require_encryption


GOOD_KEY = encoding.encode(KeyPair.of(b"\5" * 32).public)


def test_ours_win_over_the_node_executors(files: KeyFiles) -> None:
    """Its key is kept by a rotation, its sender can be removed, its policy overruled; its files are not changed."""
    own, alice = node_files(files.directory)
    before = {path.name: path.read_bytes() for path in files.directory.iterdir()}
    with pytest.raises(ConflictError, match=own.kid):
        files.make_key(now_s=NOW_S)
    new = files.rotate_key(overlap_s=60, now_s=NOW_S)
    assert files.trust().ring.usable(NOW_S) == (new, own)
    assert files.revoke_sender("alice", now_s=NOW_S)[1]
    assert files.trust().senders["alice"].revoked_at
    with pytest.raises(ConflictError, match="was removed on"):
        files.add_sender(sender("al", alice.public))
    files.add_sender(new_alice := sender("alice"))
    (files.directory / "trusted-keys.json").write_text(
        json.dumps({"alyce": {"publicKey": encoding.encode(alice.public)}, "bob": {"publicKey": GOOD_KEY}})
    )
    before["trusted-keys.json"] = (files.directory / "trusted-keys.json").read_bytes()
    trusted = {one.name: one.public for one in files.trust().senders.values() if not one.revoked_at}
    assert trusted == {"alice": new_alice.public, "bob": encoding.decode(GOOD_KEY)}
    files.set_require_encryption(required=False)
    assert not files.trust().require_encryption
    assert KeyFiles(files.directory, require_encryption=True).trust().require_encryption
    assert {name: (files.directory / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("name", ["dispatch-keys.json", "trusted-keys.json", "config.json"])
@pytest.mark.parametrize("harm", [_open_to_others, _symlinked, _cut, _with_a_wrong_type])
def test_the_node_executors_files_are_held_to_the_same_rules(
    files: KeyFiles, name: str, harm: Callable[[Path], None]
) -> None:
    """It made its files 0644: that is said, not overlooked."""
    node_files(files.directory)
    harm(files.directory / name)
    with pytest.raises(ConfigurationError, match=name):
        files.trust()


LOW_ORDER = encoding.encode(bytes(32))
GOOD = encoding.encode(bytes(range(32)))


@pytest.mark.parametrize(
    "text", [LOW_ORDER, encoding.encode(bytes(31)), encoding.encode(bytes(33)), GOOD[:-2] + "9=", GOOD + "\n", 7, None]
)
def test_an_unusable_key_in_a_file_is_refused(files: KeyFiles, text: Any) -> None:
    """A key that hides nothing, has a wrong size or another spelling is not silently trusted, or left out."""
    assert text in (7, None, LOW_ORDER) or base64.b64decode(text) != bytes(32)
    node_files(files.directory)
    (files.directory / "trusted-keys.json").write_text(json.dumps({"eve": {"publicKey": text}}))
    with pytest.raises(ConfigurationError, match="the key of eve"):
        files.trust()


def test_a_pair_whose_halves_do_not_match_is_refused(files: KeyFiles) -> None:
    """A public key beside another's private one would make senders seal for nobody."""
    node_files(files.directory)
    value = {"publicKey": encoding.encode(KeyPair.make().public), "secretKey": encoding.encode(KeyPair.make().private)}
    (files.directory / "dispatch-keys.json").write_text(json.dumps(value))
    with pytest.raises(ConfigurationError, match="do not belong together"):
        files.trust()


def test_the_settings_name_the_files(tmp_path: Path) -> None:
    """The directory, the versions and the policy come from the settings."""
    files = key_files(
        load(
            {
                "DISPATCH_KEYS_DIR": str(tmp_path / "k"),
                "DISPATCH_SEAL_VERSIONS": "2",
                "DISPATCH_REQUIRE_ENCRYPTION": "true",
            }
        )
    )
    assert files.directory == tmp_path / "k"
    assert files.trust().versions == {2}
    assert files.trust().require_encryption
    assert keys.kid_of(files.make_key(now_s=NOW_S).public) == files.own_keys()[0].pair.kid
