"""Routing: which executor, queue, limits and classes a task gets, and how they are written."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.routing import DEFAULT, Executor, Route, Routing, TaskTraits, choose, shadowed, traits_of
from dispatch.errors import ConfigurationError
from dispatch.routing_settings import read
from dispatch.settings import load

FULL = """
[executors.gpu]
command = ["render", "{payload.file}"]
stdin = "task"
env = ["CUDA_HOME"]
[executors.api]
kind = "http"
url = "https://agents.example/run"
headers = { Authorization = "env:AGENT_KEY" }
[executors.thumb]
kind = "python"
function = "media.thumbs:make"
[classes.gpu]
limit = 2
[classes.claude]
limit = 5
[[routes]]
channel = "media-*"
payload = { gpu = true, size = 3 }
executor = "gpu"
queue = "gpu"
timeout_ms = 60000
max_attempts = 1
classes = ["claude"]
review = true
notify = false
[[routes]]
type = "thumb"
executor = "thumb"
[[routes]]
sender = "alice"
executor = "api"
"""


def routing_of(text: str) -> Routing:
    """Read a TOML text with the usual defaults."""
    return read(tomllib.loads(text), command=("claude", "-p"), queue="dispatch", timeout_s=3600.0, max_attempts=3)


def test_every_key_of_executors_routes_and_classes_is_read() -> None:
    """What an operator writes is what decisions are made from."""
    routing = routing_of(FULL)
    assert routing.executors["gpu"] == Executor(
        name="gpu", command=("render", "{payload.file}"), stdin="task", env=("CUDA_HOME",)
    )
    assert routing.executors["api"].headers == {"Authorization": "env:AGENT_KEY"}
    assert routing.executors["thumb"].function == "media.thumbs:make"
    assert routing.executors[DEFAULT].command == ("claude", "-p")
    assert routing.classes == {"gpu": 2, "claude": 5}
    assert routing.queues() == ("dispatch", "gpu")
    assert routing.routes[0] == Route(
        channel="media-*",
        payload={"gpu": True, "size": 3},
        executor="gpu",
        queue="gpu",
        timeout_s=60.0,
        max_attempts=1,
        classes=("claude",),
        review=True,
        notify=False,
    )


@pytest.mark.parametrize(
    ("task", "executor", "queue", "classes"),
    [
        (TaskTraits("media-1", traits={"gpu": True, "size": 3}), "gpu", "gpu", ("claude", "gpu")),
        (TaskTraits("media-1", traits={"gpu": 1, "size": 3}), DEFAULT, "dispatch", ()),
        (TaskTraits("other", traits={"gpu": True, "size": 3}), DEFAULT, "dispatch", ("gpu",)),
        (TaskTraits("media-1", "thumb", None, {"gpu": False}), "thumb", "dispatch", ()),
        (TaskTraits("x", sender="alice"), "api", "dispatch", ()),
        (TaskTraits("x", sender=""), DEFAULT, "dispatch", ()),
        (TaskTraits("x"), DEFAULT, "dispatch", ()),
    ],
)
def test_the_first_route_that_holds_decides(task: TaskTraits, executor: str, queue: str, classes: Any) -> None:
    """All conditions of a route must hold; True is not 1; a switch in the payload takes part in its class."""
    choice = choose(routing_of(FULL), task)
    assert (choice.executor, choice.queue, choice.classes) == (executor, queue, classes)


def test_patterns_know_two_signs_only() -> None:
    """A star and a question mark stand for others; brackets are letters of a name like any others."""
    routing = routing_of('[[routes]]\nchannel = "a[1]*"\nqueue = "special"')
    queues = [choose(routing, TaskTraits(channel)).queue for channel in ("a[1]", "a[1]b", "a1", "A[1]")]
    assert queues == ["special", "special", "dispatch", "dispatch"]


def test_routes_that_never_decide_are_found() -> None:
    """Each of the even ones is behind one that holds wherever it would; the odd ones all decide about something."""
    conditions = [
        'channel = "a*"',
        'channel = "ab"\npayload = { x = 1 }',
        'channel = "b"\ntype = "t"\npayload = { x = true }',
        'channel = "b"\ntype = "t"\npayload = { x = true, y = 2 }',
        'channel = "b"\nsender = "*"\npayload = { x = 1 }',
        'channel = "b"\nsender = "eve"\npayload = { x = 1 }',
        'channel = "b"\ntype = "t*"\npayload = { x = 1 }',
        'channel = "a*"\ntype = "u"',
    ]
    routing = routing_of("".join(f"[[routes]]\n{text}\n" for text in conditions))
    assert shadowed(routing.routes) == [(2, 1), (4, 3), (6, 5), (8, 1)]


def test_a_queue_that_is_spelt_wrong_is_known() -> None:
    """A worker that takes from it would wait for ever."""
    routing = routing_of('[[routes]]\nqueue = "gpu"')
    assert routing.without_route(["gpu", "gpuu", "dispatch"]) == ("gpuu",)


def test_an_executor_is_called_by_what_does_the_work() -> None:
    """The program, the function; of a URL, which may hold secrets, that it is one."""
    every = (Executor(command=("sh", "x")), Executor(kind="python", function="a:b"), Executor(kind="http", url="u"))
    assert [executor.called() for executor in every] == ["sh", "a:b", "http"]


def test_a_switch_takes_a_task_out_of_a_class() -> None:
    """``gpu: false`` wins over the class of a route."""
    routing = routing_of('[[routes]]\nchannel = "*"\nclasses = ["gpu"]')
    assert choose(routing, TaskTraits("x")).classes == ("gpu",)
    assert choose(routing, TaskTraits("x", traits={"gpu": False})).classes == ()


def test_what_a_route_leaves_open_is_the_default() -> None:
    """No consequence is invented."""
    choice = choose(routing_of(""), TaskTraits("x"))
    assert (choice.timeout_s, choice.max_attempts, choice.review, choice.notify) == (3600.0, 3, False, True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[executors.a]\ncomand = 'x'", r"\[executors.a\]: comand is not known. Did you mean command\?"),
        ("[executors.a]", "kind command needs command"),
        ("[executors.a]\nkind = 'http'\nurl = 'ftp://x'", "url must be an http"),
        ("[executors.a]\nkind = 'http'\nurl = 'https://u:p@x'", "without a user"),
        ("[executors.a]\nkind = 'http'\nurl = 'https://x'\ncommand = 'x'", "command does not go with kind http"),
        ("[executors.a]\nkind = 'http'\nurl = 'https://x'\nheaders = {a = \"x\\ny\"}", "line ends"),
        ("[executors.a]\nkind = 'python'\nfunction = 'os.system'", "module:function"),
        ("[executors.'a b']\ncommand = 'x'", "must be a name"),
        ("[classes.gpu]\nlimit = 0", "limit must be a whole number between 1"),
        ("[[routes]]\nexecutor = 'none'", "there is no executor none"),
        ("[[routes]]\nclasses = ['none']", "there is no class none"),
        ("[[routes]]\ntimeout_ms = 1", "timeout_ms must be"),
        ("[[routes]]\nidle_s = 0.5", "idle_s must be 0 for no limit, or a number of seconds between 1 and 604800"),
        ("[executors.a]\ncommand = 'x'\nidle_s = true", r"\[executors.a\]: idle_s must be 0 for no limit"),
        ("[[routes]]\nmax_attempts = true", "max_attempts must be"),
        ("[[routes]]\nchanel = 'x'", "Did you mean channel"),
        ("[routes]\nexecutor = 'x'", "routes must be written as"),
        ("[[routes]]\ntimeout_ms = '60s'", r"\(it is '60s'\)\.$"),
        ("[[routes]]\npayload = {review = true}", "payload cannot look at review, which steers dispatch"),
        (
            f"[[routes]]\npayload = {{a = '{'x' * 65}'}}",
            "payload can never hold for a: names and texts have at most 64",
        ),
        ('[executors.a]\ncommand = "it\'s"', "must have a second quotation mark"),
        ("[executors.a]\ncommand = 'x'\nenv = ['DISPATCH_ATS_TOKEN']", "no child sees those"),
        ("[executors.a]\nkind = 'http'\nurl = 'http://h:99999/'", "url must be a URL such as"),
        ("[executors.a]\nkind = 'http'\nurl = 'http://[::1'", "url must be a URL such as"),
        ("[executors.a]\nkind = 'http'\nurl = 'http://h/a b'", "without blanks"),
        (
            "[executors.a]\nkind = 'http'\nurl = 'http://h'\nheaders = {'a b' = 'x'}",
            "'a b', which is no name of a header",
        ),
        ("[executors.a]\nkind = 'http'\nurl = 'http://h'\nheaders = {A = 'env:'}", "variable after env: in A"),
        ("[executors.a]\nkind = 'http'\nurl = 'http://h'\nheaders = {A = '\u00fc'}", "ASCII only in A"),
        ("[executors.a]\nkind = 'python'\nfunction = 'a..b:c'", "module:function"),
    ],
)
def test_what_is_wrong_is_named(text: str, sentence: str, tmp_path: Any) -> None:
    """A wrong table stops the start, with its name and what would be right."""
    path = tmp_path / "dispatch.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=sentence):
        load({"DISPATCH_CONFIG": str(path)})


def test_a_command_keeps_each_of_its_arguments(tmp_path: Any) -> None:
    """A list is the argv as it stands, with what comes twice and with blanks, in both places where a command is."""
    command = '["tool", "--allow", "a b ", "--allow", ""]'
    path = tmp_path / "dispatch.toml"
    path.write_text(f"[execution]\ncommand = {command}\n[executors.a]\ncommand = {command}\n")
    executors = load({"DISPATCH_CONFIG": str(path)}).routing.executors
    assert executors["a"].command == executors["default"].command == ("tool", "--allow", "a b ", "--allow", "")


def test_the_default_executor_is_the_command_setting(tmp_path: Any) -> None:
    """Whoever sets only DISPATCH_COMMAND needs no table."""
    settings = load({"DISPATCH_COMMAND": "bash run.sh", "DISPATCH_QUEUE": "q", "DISPATCH_CONFIG": ""})
    assert settings.routing.executors[DEFAULT].command == ("bash", "run.sh")
    assert settings.routing.queue == "q"
    assert settings.routing.classes == {"gpu": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=80), inner, max_size=20),
)


@given(JSON)
def test_traits_are_few_short_and_plain(payload: Any) -> None:
    """Whatever a payload holds, its traits are at most thirty-two short values, and none that steers dispatch."""
    traits = traits_of(payload)
    assert len(traits) <= 32
    assert all(isinstance(value, bool | int) or len(value) <= 64 for value in traits.values())
    assert not traits.keys() & {"callback_url", "ciphertext", "depends_on", "encrypted", "nonce"}
    if isinstance(payload, dict):
        assert all(payload[name] is value for name, value in traits.items())


def test_no_class_is_lost_in_a_crowd_of_fields() -> None:
    """However many plain fields a payload has, true and false are seen before the others."""
    crowd = {f"a{number:03d}": number for number in range(100)}
    assert traits_of({**crowd, "gpu": True})["gpu"] is True
    assert list(traits_of(crowd)) == [f"a{number:03d}" for number in range(32)]


@given(JSON)
def test_every_task_is_routed(payload: Any) -> None:
    """There is an answer for any payload, and its executor exists."""
    routing = routing_of(FULL)
    choice = choose(routing, TaskTraits("c", traits=traits_of(payload)))
    assert choice.executor in routing.executors
