"""Keys that ask to be trusted: what each is told, and the limits (C13, A8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatch.crypto import encoding, keys, pending_file
from dispatch.crypto.files import KeyFiles
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.register import register
from dispatch.crypto.registration import (
    EXPIRES_S,
    NEW_PER_HOUR_MAX,
    WAITING_MAX,
    Registrations,
    Rejected,
    Verdict,
    Waiting,
    decide,
)
from dispatch.crypto.trust import Sender
from dispatch.errors import NotFoundError

NOW_S = 1_763_700_000.0
HOUR_S = 3600.0


def key(number: int) -> bytes:
    """Any 32 bytes; the decision looks at nothing else."""
    return number.to_bytes(32, "big")


def test_a_new_key_waits() -> None:
    """It is kept with its task and time, under its whole fingerprint."""
    decision = decide([], Registrations(), key(1), task_id="7", now_s=NOW_S)
    assert decision.verdict is Verdict.PENDING
    assert decision.kept.waiting == (Waiting(key(1), "7", NOW_S),)
    assert decision.kept.waiting[0].fingerprint == keys.kid_of(key(1))


def test_asking_again_neither_counts_nor_lasts_longer() -> None:
    """The same key in another task still waits once; the answer will go to the newest task."""
    kept = Registrations()
    for number in range(NEW_PER_HOUR_MAX + 5):
        decision = decide([], kept, key(1), task_id=str(number), now_s=NOW_S + number)
        assert decision.verdict is Verdict.PENDING
        kept = decision.kept
    assert kept.waiting == (Waiting(key(1), str(NEW_PER_HOUR_MAX + 4), NOW_S),)
    assert kept.new_at_s == (NOW_S,)


def test_known_removed_and_rejected_keys_are_told_so() -> None:
    """A known key learns its name, a removed or rejected one is refused, and nothing new is kept."""
    senders = [Sender("alice", key(1)), Sender("bob", key(2), revoked_at="2026-01-01T00:00:00Z")]
    before = Registrations(rejected=(Rejected(key(3), "who?", NOW_S),))
    found = [decide(senders, before, key(n), task_id="7", now_s=NOW_S) for n in (1, 2, 3)]
    assert [(one.verdict, one.name, one.reason) for one in found] == [
        (Verdict.KNOWN, "alice", ""),
        (Verdict.REVOKED, "bob", ""),
        (Verdict.REJECTED, "", "who?"),
    ]
    assert all(one.kept == before for one in found)


def test_so_many_new_keys_an_hour() -> None:
    """The 31st within an hour is refused, whatever became of the others; an hour later there is room again."""
    kept = Registrations()
    for number in range(NEW_PER_HOUR_MAX):
        kept = decide([], kept, key(number), task_id="7", now_s=NOW_S + number).kept
    rejected = tuple(Rejected(one.public, "", NOW_S) for one in kept.waiting)
    for before in (kept, Registrations(rejected=rejected, new_at_s=kept.new_at_s)):
        assert decide([], before, key(99), task_id="7", now_s=NOW_S + HOUR_S - 1).verdict is Verdict.TOO_FAST
        assert decide([], before, key(99), task_id="7", now_s=NOW_S + HOUR_S).verdict is Verdict.PENDING


def test_so_many_keys_wait_and_none_for_ever() -> None:
    """The 101st is refused; after a week the oldest has gone and there is room again."""
    kept = Registrations(waiting=tuple(Waiting(key(n), "7", NOW_S + n * 60) for n in range(WAITING_MAX)))
    late_s = NOW_S + EXPIRES_S - 1
    assert decide([], kept, key(999), task_id="7", now_s=late_s).verdict is Verdict.TOO_MANY
    assert decide([], kept, key(5), task_id="8", now_s=late_s).verdict is Verdict.PENDING
    decision = decide([], kept, key(999), task_id="7", now_s=late_s + 1)
    assert decision.verdict is Verdict.PENDING
    assert key(0) not in {one.public for one in decision.kept.waiting}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 300)), max_size=200))
def test_the_limits_hold_whatever_comes(asked: list[tuple[int, float]]) -> None:
    """Never more than 100 wait, never more than 30 are new in an hour, and no key waits twice."""
    kept, now_s, new_at_s = Registrations(), NOW_S, []
    for number, pause_s in asked:
        now_s += pause_s
        before = {one.public for one in kept.at(now_s, []).waiting}
        kept = decide([], kept, key(number), task_id="7", now_s=now_s).kept
        after = [one.public for one in kept.waiting]
        if key(number) in after and key(number) not in before:
            new_at_s.append(now_s)
        assert len(after) == len(set(after)) <= WAITING_MAX
        assert len([at_s for at_s in new_at_s if now_s - at_s < HOUR_S]) <= NEW_PER_HOUR_MAX


@pytest.fixture
def files(tmp_path: Path) -> KeyFiles:
    """A host with a key pair."""
    files = KeyFiles(tmp_path / "keys")
    files.make_key(now_s=NOW_S)
    return files


def test_the_answers_are_those_of_the_node_executor(files: KeyFiles) -> None:
    """Pending first, known with the dispatcher's key after approval; a revoked or rejected key gets a reason."""
    public = KeyPair.make().public
    text, fingerprint = encoding.encode(public), keys.kid_of(public)
    first = register(files, text, "7", NOW_S)
    assert isinstance(first, dict)
    assert {"status": "pending_approval", "fingerprint": fingerprint}.items() <= first.items()
    assert first.keys() == {"status", "fingerprint", "message"}
    files.approve(fingerprint, lambda found: Sender("alice", found), now_s=NOW_S)
    assert files.registrations(now_s=NOW_S).waiting == ()
    own = encoding.encode(files.own_keys()[0].pair.public)
    second = register(files, text, "8", NOW_S)
    assert isinstance(second, dict)
    assert second.pop("message")
    assert second == {
        "status": "already_registered",
        "name": "alice",
        "ada_public_key": own,
        "dispatcher_public_key": own,
        "fingerprint": fingerprint,
    }
    files.revoke_sender("alice", now_s=NOW_S)
    assert "was removed by the operator" in str(register(files, text, "9", NOW_S))
    other = KeyPair.make().public
    register(files, encoding.encode(other), "10", NOW_S)
    assert files.reject(keys.kid_of(other), "who are you?", now_s=NOW_S).task_id == "10"
    assert register(files, encoding.encode(other), "11", NOW_S) == "The operator rejected this key: who are you?"
    files.add_sender(Sender("bob", other))
    assert isinstance(register(files, encoding.encode(other), "12", NOW_S), dict)


BAD_KEYS: list[Any] = [
    123,
    None,
    "",
    {},
    [],
    True,
    "not base64!",
    encoding.encode(bytes(31)),
    encoding.encode(bytes(33)),
    encoding.encode(bytes(32)),
    encoding.encode(b"\1" + bytes(31)),
    encoding.encode(bytes(range(32))) + "\n",
    encoding.encode(bytes(range(32))).rstrip("="),
    encoding.encode(b"\xff" * 32).replace("/", "_"),
    "\ud800",
]


@pytest.mark.parametrize("text", BAD_KEYS)
def test_what_is_no_key_is_refused_in_a_sentence(files: KeyFiles, text: Any) -> None:
    """A malformed registration fails its own task and nothing else (A8); nothing is kept of it."""
    answer = register(files, text, "7", NOW_S)
    assert isinstance(answer, str)
    assert answer.startswith("payload.pubkey ")
    assert files.registrations(now_s=NOW_S) == Registrations()


def test_without_a_key_pair_a_known_sender_is_told_so(tmp_path: Path) -> None:
    """There is no dispatcher key to hand out; a new key may wait all the same."""
    files = KeyFiles(tmp_path / "keys")
    alice = KeyPair.make()
    files.add_sender(Sender("alice", alice.public))
    assert "no key pair yet" in str(register(files, encoding.encode(alice.public), "7", NOW_S))
    assert isinstance(register(files, encoding.encode(KeyPair.make().public), "7", NOW_S), dict)


def test_too_many_and_too_fast_are_said(tmp_path: Path) -> None:
    """A flood fails its own tasks, in a sentence, and fills no disk."""
    files = KeyFiles(tmp_path / "keys")
    flood = Registrations(new_at_s=(NOW_S,) * NEW_PER_HOUR_MAX)
    full = Registrations(waiting=tuple(Waiting(key(n + 1), "7", NOW_S) for n in range(WAITING_MAX)))
    for kept, words in ((flood, "within the last hour"), (full, "Too many keys wait")):
        with files._files.locked():
            files._files.write(pending_file.PENDING_NAME, pending_file.write_pending(kept))
        assert words in str(register(files, encoding.encode(KeyPair.make().public), "7", NOW_S))
        assert files.registrations(now_s=NOW_S) == kept


@pytest.mark.parametrize("length", [0, 1, 16, 31, 33])
def test_only_the_whole_fingerprint_approves(files: KeyFiles, length: int) -> None:
    """A prefix could be another key's: it approves and rejects nothing (C13)."""
    public = KeyPair.make().public
    register(files, encoding.encode(public), "7", NOW_S)
    part = (keys.kid_of(public) + "0")[:length]
    with pytest.raises(NotFoundError, match="dispatch pending"):
        files.approve(part, lambda found: Sender("alice", found), now_s=NOW_S)
    with pytest.raises(NotFoundError, match="dispatch pending"):
        files.reject(part, "", now_s=NOW_S)
    assert len(files.registrations(now_s=NOW_S).waiting) == 1
    assert not files.trust().senders
