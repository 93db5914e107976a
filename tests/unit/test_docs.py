"""What the documents say is what the code does."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from contextlib import closing
from typing import TYPE_CHECKING

import click
import pytest

from dispatch.cli.main import COMMANDS, cli
from dispatch.core.routing import TaskTraits, choose
from dispatch.crypto.refusal import Refusal
from dispatch.settings import SETTINGS, load
from tests.support.documents import DOCUMENTS, ON_THIS_HOST, routing_example
from tests.support.processes import ROOT
from tests.support.redis import ConfiguredRedis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("path", DOCUMENTS)
def test_written_pages_are_up_to_date(path: str) -> None:
    """Settings, errors and the example configuration are as the code writes them: run ``make docs``."""
    assert (ROOT / path).read_text("utf-8") == DOCUMENTS[path]()


def test_the_example_without_its_comments_is_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commented line of the example is a valid setting with its default value."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "config/dispatch.example.toml").read_text("utf-8")
    awake = re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE)
    found = {name: value for table in tomllib.loads(awake).values() for name, value in table.items()}
    assert set(found) == set(SETTINGS)
    (tmp_path / "named.toml").write_text("\n".join(line for line in awake.splitlines() if not line.endswith('""')))
    environ = {"DISPATCH_CONFIG": str(tmp_path / "named.toml")}
    on_host = dict.fromkeys(ON_THIS_HOST)
    assert all(value for name, value in found.items() if name in on_host)
    defaults = {name: getattr(getattr(load({}), table), item.name) for name, (table, item) in SETTINGS.items()}
    loaded = {name: getattr(getattr(load(environ), table), item.name) for name, (table, item) in SETTINGS.items()}
    assert {**loaded, **on_host} == {**defaults, **on_host}


def test_the_example_of_executors_is_valid(tmp_path: Path) -> None:
    """What docs/executors.md and the example file show of them is read, and means what it says."""
    shown = (ROOT / "config/dispatch.example.toml").read_text("utf-8").partition("docs/executors.md")[2]
    awake = "\n".join(line.removeprefix("#").removeprefix(" ") for line in shown.splitlines()[1:])
    assert tomllib.loads(awake) == tomllib.loads(routing_example())
    (tmp_path / "named.toml").write_text(awake)
    routing = load({"DISPATCH_CONFIG": str(tmp_path / "named.toml")}).routing
    assert {name: one.kind for name, one in routing.executors.items()} == {
        "default": "command",
        "thumbnail": "command",
        "search": "http",
        "report": "python",
    }
    assert routing.executors["default"].command == load({}).execution.command == ("claude", "-p")
    assert routing.classes == {"gpu": 1, "database": 2}
    choice = choose(routing, TaskTraits("default", "report", traits={"monthly": True}))
    assert (choice.executor, choice.classes, choice.review) == ("report", ("database",), True)
    assert choose(routing, TaskTraits("search-eu")).queue == "web"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_with_a_unit_says_it(name: str) -> None:
    """A name that ends in a unit has the unit in its meaning."""
    meaning = SETTINGS[name][1].metadata["meaning"]
    for suffix, unit in {"_ms": "milliseconds", "_s": "seconds", "_bytes_max": "bytes"}.items():
        if name.endswith(suffix):
            assert re.search(rf"\b{unit}\b", meaning), meaning


@functools.cache
def logged_events() -> list[tuple[str, str]]:
    """Every event that the code logs, with its place."""
    return list(events_in_code())


def events_in_code() -> Iterator[tuple[str, str]]:
    """Look for them."""
    for path in [*ROOT.glob("dispatch/**/*.py"), *ROOT.glob("workers/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = 0 if name in LEVELS else 1 if name == "log_line" else None
            if place is None or len(node.args) <= place:
                continue
            first = node.args[place]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_event_is_documented() -> None:
    """docs/logs.md lists each event that the code logs, and each one once."""
    listed = re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs/logs.md").read_text("utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    missing = {event: place for event, place in logged_events() if event not in listed}
    assert not missing, f"add to docs/logs.md: {missing}"


def test_event_names_are_words_joined_by_underscores() -> None:
    """An event is a name to search for, not a sentence."""
    odd = {event: place for event, place in logged_events() if not re.fullmatch(r"[a-z]+(_[a-z]+)+", event)}
    assert not odd


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    """Every relative link in a page names a file or folder of the repository."""
    text = (ROOT / page).read_text("utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in t]
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    """A path in backticks that looks like one of ours is one."""
    text = (ROOT / page).read_text("utf-8")
    named = re.findall(r"`((?:dispatch|workers|config|tests|docs|docker)/[\w./-]*)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_named_settings_exist(page: str) -> None:
    """A DISPATCH_ name in a page is a setting."""
    known = {f"DISPATCH_{name.upper()}" for name in SETTINGS} | {"DISPATCH_CONFIG"}
    known |= {name + "_FILE" for name in known}
    named = set(re.findall(r"(?<![A-Z_])DISPATCH_[A-Z][A-Z_]*[A-Z]", (ROOT / page).read_text("utf-8")))
    assert not named - known


def test_redis_conf_is_understood(short_dir: Path) -> None:
    """A real Redis takes config/redis.conf, and is as durable and as private as it says."""
    with ConfiguredRedis(short_dir) as server, closing(server.client()) as client:
        wanted = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "protected-mode": "yes",
            "bind": "127.0.0.1 -::1",
        }
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_flower_takes_its_configuration(tmp_path: Path) -> None:
    """Flower's own parser knows every option of config/flowerconfig.py; it keeps to loopback and gives no orders."""
    code = (
        "import flower.options; from tornado.options import options\n"
        "options.parse_config_file('config/flowerconfig.py', final=False)\n"
        "source = {}; exec(open('config/flowerconfig.py').read(), source)\n"
        "own = {name for name in source if not name.startswith('_')} - {'sys'}\n"
        "assert own <= set(options), own - set(options)\n"
        "print(options.address, options.port, options.read_only, options.basic_auth)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"DISPATCH_FLOWER_AUTH": "ops:word", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("127.0.0.1 5555 True ['ops:word']\n", "")


def test_every_refusal_of_a_sealed_task_is_documented() -> None:
    """docs/encryption.md lists each reason, in the order of the code."""
    text = (
        (ROOT / "docs/encryption.md").read_text("utf-8").partition("## Why a task is refused")[2].partition("\n## ")[0]
    )
    assert re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE) == [refusal.value for refusal in Refusal]


def test_every_command_is_documented() -> None:
    """docs/commands.md has a line for each command, and for each command of a group."""
    text = (ROOT / "docs/commands.md").read_text("utf-8")
    with click.Context(cli) as ctx:
        found = {name: cli.get_command(ctx, name) for section in COMMANDS.values() for name in section}
    names = [f"{name} {sub}" for name, made in found.items() if isinstance(made, click.Group) for sub in made.commands]
    names += [name for name, made in found.items() if not isinstance(made, click.Group)]
    assert not [name for name in names if not re.search(rf"^\| `dispatch {name}[ `]", text, re.MULTILINE)]
