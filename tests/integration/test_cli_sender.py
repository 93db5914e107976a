"""``dispatch sender`` as a sender types it, against a plain ATS and our own service; the dispatcher is the test's."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dispatch.ats import answers, protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor, Task, parse_task
from dispatch.crypto import encoding, keys, opening, register
from dispatch.crypto.files import KeyFiles
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.opening import Opened, Outside
from tests.support.cli import Cli, CliHere
from tests.support.fake_ats import FakeAts
from tests.support.processes import eventually
from tests.support.service import ServiceProcess

ANSWER = "The answer: \U0001f9ee <42>"


class Dispatcher:
    """Answers registrations and sealed tasks as ingress and worker do, with the same decisions."""

    def __init__(self, url: str, files: KeyFiles) -> None:
        self.files = files
        self.client = Client(protocol.endpoint(url), Actor("agent", "dispatch-test", "dispatch"))
        self.opened: list[Opened] = []
        self._stop = threading.Event()

    @property
    def public(self) -> str:
        """The public key that senders seal for."""
        return encoding.encode(self.files.own_keys()[0].pair.public)

    def tasks(self) -> list[Task]:
        """What waits."""
        return answers.tasks_of(self.client.send(protocol.list_tasks(status="pending")))

    def work(self) -> None:
        """Answer everything that waits now."""
        for task in self.tasks():
            self.client.send(protocol.claim(task.id, lease_s=60))
            if task.title == "register":
                self._register(task)
            else:
                self._answer(task)

    def _register(self, task: Task) -> None:
        said = register.register(self.files, task.payload["pubkey"], task.id, time.time())
        done = protocol.fail(task.id, said) if isinstance(said, str) else protocol.complete(task.id, [said])
        self.client.send(done)

    def _answer(self, task: Task) -> None:
        outside = Outside(task.id, task.title, task.channel, task.payload, time.time())
        opened = opening.open_task(outside, self.files.trust(), now_s=time.time())
        self.opened.append(opened)
        if opened.content.title == "fails":
            self.client.send(protocol.post_message(task.id, json.dumps(self.seal(opened, task, "exit 3", "failed"))))
            self.client.send(protocol.fail(task.id, "It failed; the reason is sealed."))
            return
        note = self.seal(opened, task, "half way", "running")
        self.client.send(protocol.post_message(task.id, json.dumps(note)))
        self.client.send(protocol.complete(task.id, [self.seal(opened, task, ANSWER, "completed")]))

    def seal(self, opened: Opened, task: Task, text: str, status: str) -> dict[str, Any]:
        """Seal a text for the sender."""
        return opening.answer(
            opened, text, task_id=task.id, attempt=1, status=status, now_s=time.time(), random=secrets.token_bytes(28)
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Work in a thread for a while."""

        def loop() -> None:
            while not self._stop.wait(0.02):
                self.work()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self._stop.clear()


@contextmanager
def service_of(kind: str, directory: Path) -> Iterator[str]:
    """A plain ATS, one that wraps nothing, or our own service; yields its URL."""
    if kind == "ours":
        with ServiceProcess(directory / "service") as service:
            yield service.url
    else:
        with FakeAts(envelope=kind == "plain") as ats:
            yield ats.url


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> CliHere:
    """A sender's command line, with a home of its own."""
    monkeypatch.setattr("dispatch.cli.sender_keys.LOOK_S", 0.02)
    return CliHere(monkeypatch, capfd, tmp_path)


@pytest.fixture
def ats() -> Iterator[FakeAts]:
    """A plain ATS."""
    with FakeAts() as fake:
        yield fake


@pytest.fixture
def dispatcher(ats: FakeAts, cli: CliHere, tmp_path: Path) -> Iterator[Dispatcher]:
    """A dispatcher on the plain ATS that trusts the sender as alice; its keys lie where operators' commands look."""
    cli.env(DISPATCH_ATS_URL=ats.url)
    made = Dispatcher(ats.url, KeyFiles(tmp_path / "data" / "keys"))
    made.files.make_key(now_s=time.time())
    assert cli("add-key", "alice", cli("sender", "keygen").out.strip()).code == 0
    with closing(made.client):
        yield made


@pytest.mark.parametrize("kind", ["plain", "bare", "ours"])
def test_the_whole_way(kind: str, cli: CliHere, tmp_path: Path) -> None:
    """Make a key, register, be approved, seal in both versions, read the answers; the service sees no word of it."""
    with service_of(kind, tmp_path) as url:
        cli.env(DISPATCH_ATS_URL=url)
        dispatcher = Dispatcher(url, KeyFiles(tmp_path / "data" / "keys"))
        with closing(dispatcher.client):
            assert cli("keygen").code == 0
            mine = cli("sender", "keygen").out.strip()
            fingerprint = keys.kid_of(encoding.decode(mine))
            asked = cli("sender", "register")
            assert fingerprint in asked.err
            dispatcher.work()
            assert cli("approve", fingerprint, "alice").code == 0
            with dispatcher.running():
                registered = cli("sender", "register", "--wait")
            assert (registered.code, registered.out.strip()) == (0, dispatcher.public), registered
            assert dispatcher.files.own_keys()[0].pair.kid in registered.err
            for envelope in ("1", "2"):
                made = cli(
                    *("sender", "submit", f"Secret {envelope}", "--to", dispatcher.public, "--envelope", envelope),
                    *("-d", "-", "--payload", '{"n": [1, 2]}', "--callback-url", "https://x.example/", "--quiet"),
                    *("--hide-title", "--depends-on", asked.out.strip()),
                    stdin="all of it \U0001f512\n",
                )
                seen = parse_task(dispatcher.client.send(protocol.get(made.out.strip())))
                dispatcher.work()
                said = dispatcher.opened[-1].content
                assert (said.title, said.description) == (f"Secret {envelope}", "all of it \U0001f512\n")
                assert (said.payload, said.quiet) == ({"n": [1, 2]}, True)
                assert (said.callback_url, said.depends_on) == ("https://x.example/", (asked.out.strip(),))
                assert "Secret" not in json.dumps(seen.raw)
                assert seen.title == opening.TITLE
                opened = cli("sender", "decrypt", made.out.strip())
                assert (opened.code, opened.out.rstrip("\n"), opened.err.strip()) == (0, ANSWER, "half way")
                told = cli("sender", "decrypt", made.out.strip(), "--json").json
                assert (told["answer"], told["messages"], told["status"]) == (ANSWER, ["half way"], "completed")


def test_register_waits_for_the_operator(dispatcher: Dispatcher, ats: FakeAts, cli: CliHere, tmp_path: Path) -> None:
    """With --wait the sender gets the operator's answer from the thread: the dispatcher's key, or why not."""
    operator = Cli(tmp_path, {"DISPATCH_DATA_DIR": str(tmp_path / "data"), "DISPATCH_ATS_URL": ats.url})
    with closing(operator), dispatcher.running():
        for name, args in (("bob", ["approve", "", "bob"]), ("eve", ["reject-key", "", "who are you?"])):
            key = cli("sender", "keygen", "--key-file", f"{name}.json", "--json").json
            args[1] = key["fingerprint"]
            thread = threading.Thread(target=_once_it_waits, args=(dispatcher, key["fingerprint"], operator, args))
            thread.start()
            registered = cli("sender", "register", "--wait", "--key-file", f"{name}.json")
            thread.join()
            if name == "bob":
                assert (registered.code, registered.out.strip()) == (0, dispatcher.public)
            else:
                assert (registered.code, registered.out) == (1, "")
                assert "who are you?" in registered.err
        again = cli("sender", "register", "--wait", "--key-file", "eve.json")
        assert (again.code, "The operator rejected this key: who are you?" in again.err) == (1, True)


def _once_it_waits(dispatcher: Dispatcher, fingerprint: str, operator: Cli, args: list[str]) -> None:
    eventually(
        lambda: fingerprint in [one.fingerprint for one in dispatcher.files.registrations(now_s=time.time()).waiting]
    )
    assert operator(*args).code == 0


def test_submit_waits_and_opens(dispatcher: Dispatcher, ats: FakeAts, cli: CliHere) -> None:
    """With --wait stdout is the opened answer, or the sealed reason of the failure, and the exit code tells which."""
    with dispatcher.running():
        good = cli("sender", "submit", "Do it", "--to", dispatcher.public, "--wait")
        assert (good.code, good.out.rstrip("\n")) == (0, ANSWER)
        bad = cli("sender", "submit", "fails", "--to", dispatcher.public, "--wait", "--json")
        assert bad.code == 1
        assert (bad.json["status"], bad.json["answer"], bad.json["messages"]) == ("failed", None, ["exit 3"])


def test_a_dry_run_creates_nothing(dispatcher: Dispatcher, ats: FakeAts, cli: CliHere) -> None:
    """--dry-run prints the payload, sealed with a new nonce each time; no call is made."""
    before = len(ats.calls)
    first, second = (cli("sender", "submit", "T", "--to", dispatcher.public, "--dry-run").json for _ in range(2))
    assert first.keys() == {"encrypted", "v", "from", "to", "nonce", "ciphertext"}
    assert first["nonce"] != second["nonce"]
    old = cli("sender", "submit", "T", "--to", dispatcher.public, "--dry-run", "--envelope", "1", "--sender", "alice")
    assert old.json.keys() == {"encrypted", "sender", "nonce", "ciphertext"}
    assert len(ats.calls) == before


def test_version_1_shows_its_title_unless_told_not_to(dispatcher: Dispatcher, ats: FakeAts, cli: CliHere) -> None:
    """Dispatchers of version 1 may show titles to people; --hide-title keeps it inside."""
    for args, title in (([], "A title"), (["--hide-title"], opening.TITLE)):
        made = cli("sender", "submit", "A title", "--to", dispatcher.public, "--envelope", "1", *args)
        assert ats.tasks[int(made.out)]["title"] == title
    dispatcher.work()
    assert [one.content.title for one in dispatcher.opened] == ["A title", "A title"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["T"], "Missing option '--to'"),
        (["T", "--to", "x"], "--to is not base64"),
        (["T", "--to", encoding.encode(bytes(32))], "hides nothing"),
        (["T", "--to", "KEY", "--sender", "alice"], "--sender goes with --envelope 1"),
        (["T", "--to", "KEY", "--envelope", "1", "--expires", "1d"], "--expires goes with --envelope 2"),
        (["T", "--to", "KEY", "--expires", "soon"], "is not a duration"),
        (["T", "--to", "KEY", "--payload", "{"], "--payload is not JSON"),
        (["T", "--to", "KEY", "--payload", "[]"], "must be a JSON object"),
        (["T", "--to", "KEY", "--payload", '{"depends_on": 7}'], "Give depends_on with --depends-on"),
        (["T", "--to", "KEY", "--depends-on", "x"], "neither a task's number nor a UUID"),
        ([" ", "--to", "KEY"], "A dispatcher would refuse this task: title is missing"),
        (["T" * 513, "--to", "KEY"], "at most 512 characters"),
    ],
)
def test_what_cannot_be_sealed_is_not_created(
    dispatcher: Dispatcher, ats: FakeAts, cli: CliHere, args: list[str], words: str
) -> None:
    """Each refusal is a sentence, exit 2, and no call is made."""
    before = len(ats.calls)
    ended = cli("sender", "submit", *[dispatcher.public if arg == "KEY" else arg for arg in args])
    assert (ended.code, ended.out, len(ats.calls)) == (2, "", before)
    assert words in ended.err


def test_keys_of_ones_own(cli: CliHere, tmp_path: Path) -> None:
    """keygen makes a file in the Node executor's form that nobody else may read, and never overwrites one."""
    assert "dispatch sender keygen" in cli("sender", "register").err
    made = cli("sender", "keygen")
    path = tmp_path / ".config" / "dispatch" / "my-keys.json"
    assert path.stat().st_mode & 0o777 == 0o600
    value = json.loads(path.read_text())
    assert value.keys() == {"publicKey", "secretKey"}
    assert value["publicKey"] == made.out.strip()
    assert value["secretKey"] not in made.out + made.err
    again = cli("sender", "keygen")
    assert (again.code, value["publicKey"] in again.err, json.loads(path.read_text())) == (1, True, value)
    path.chmod(0o644)
    assert cli("sender", "register").code == 78
    path.chmod(0o600)
    path.write_text('{"publicKey": "x"}')
    assert "holds no key pair" in cli("sender", "register").err


def sealed_task(dispatcher: Dispatcher, ats: FakeAts, cli: CliHere, envelope: str = "2") -> dict[str, Any]:
    """A completed sealed task, as the service keeps it."""
    made = cli("sender", "submit", "T", "--to", dispatcher.public, "--envelope", envelope)
    dispatcher.work()
    return ats.tasks[int(made.out)]


def test_an_answer_wrapped_or_bare_is_found(dispatcher: Dispatcher, ats: FakeAts, cli: CliHere) -> None:
    """Services wrap outputs in a list, or do not, and put other things beside (C15)."""
    task = sealed_task(dispatcher, ats, cli)
    for outputs in ([*task["outputs"]], task["outputs"][0], [{"log": 1}, *task["outputs"]]):
        task["outputs"] = outputs
        assert cli("sender", "decrypt", str(task["id"])).out.rstrip("\n") == ANSWER
    assert cli("sender", "decrypt", str(task["id"]), "--by", dispatcher.public).code == 0
    task["outputs"] = {**task["outputs"][1], "truncated": True}
    assert "shown in part" in cli("sender", "decrypt", str(task["id"])).err


@pytest.mark.parametrize(
    "harm", ["swapped", "relabelled", "older", "cut", "itself", "stranger", "plain", "none", "other message"]
)
def test_an_answer_that_is_not_the_answer_is_refused(
    dispatcher: Dispatcher, ats: FakeAts, cli: CliHere, harm: str
) -> None:
    """Whoever keeps the tasks can put another answer in its place; it is not printed as if it were the answer."""
    task, other = sealed_task(dispatcher, ats, cli), sealed_task(dispatcher, ats, cli)
    old = sealed_task(dispatcher, ats, cli, "1")
    task["messages"].clear()
    answer, payload = dict(task["outputs"][0]), task["payload"]
    opened = dispatcher.opened[0]
    now = Task(id=str(task["id"]))
    stranger = KeyPair.make()
    task["outputs"] = {
        "swapped": lambda: other["outputs"],
        "relabelled": lambda: [{name: value for name, value in answer.items() if name != "v"}],
        "older": lambda: old["outputs"],
        "cut": lambda: [{**answer, "encrypted_response": {"nonce": "AAAA", "ciphertext": "AAAA"}}],
        "itself": lambda: [{"encrypted_response": payload, "response_encrypted": True}],
        "stranger": lambda: [dispatcher.seal(replace(opened, pair=stranger), now, "lies", "completed")],
        "plain": lambda: [{"response": "lies"}],
        "none": lambda: None,
        "other message": lambda: [dispatcher.seal(replace(opened, message_id="0" * 32), now, "lies", "completed")],
    }[harm]()
    ended = cli("sender", "decrypt", str(task["id"]))
    assert (ended.code, ended.out) == (1, "")
    words = {
        "swapped": "another task",
        "relabelled": "a message of version 2",
        "older": "answers another message",
        "cut": "not to be trusted",
        "itself": "is the task itself",
        "stranger": "does not open",
        "plain": "It has an answer in the open",
        "none": "has no sealed answer; it is completed",
        "other message": "answers another message",
    }
    assert words[harm] in ended.err


def test_strangers_on_the_thread_do_not_hide_the_answer(dispatcher: Dispatcher, ats: FakeAts, cli: CliHere) -> None:
    """Everybody may write to a thread; what does not open is left out, with a note."""
    task = sealed_task(dispatcher, ats, cli)
    junk = {"encrypted_response": {"nonce": "x", "ciphertext": "y"}, "response_encrypted": True}
    for text in (json.dumps(junk), "[" * 100_000, "\x1b[2J", "7"):
        task["messages"].append({"id": len(task["messages"]) + 1, "parts": [{"type": "text", "content": text}]})
    opened = cli("sender", "decrypt", str(task["id"]))
    assert (opened.code, opened.out.rstrip("\n")) == (0, ANSWER)
    assert "is left out" in opened.err


def test_an_answer_without_a_key_to_open_it(dispatcher: Dispatcher, ats: FakeAts, cli: CliHere) -> None:
    """Whoever has not sealed with this key file must name the dispatcher's key."""
    task = sealed_task(dispatcher, ats, cli)
    cli("sender", "keygen", "--key-file", "other/my-keys.json")
    ended = cli("sender", "decrypt", str(task["id"]), "--key-file", "other/my-keys.json")
    assert (ended.code, "--by" in ended.err) == (2, True)
    ended = cli("sender", "decrypt", str(task["id"]), "--key-file", "other/my-keys.json", "--by", dispatcher.public)
    assert (ended.code, "does not open" in ended.err) == (1, True)
