"""What every tracked file must keep to."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

from tests.support.processes import ROOT

LINES_MAX = 400
TEST_LINES_MAX = 800
FUNCTION_LINES_MAX = 60

LONGER_FILES = {
    "dispatch/ats/protocol.py": "one short function for each call of the wire protocol",
    "dispatch/settings.py": "one declaration for each setting; splitting it would hide where a setting is",
}
"""Files over the limit, each with its reason. Take a file out when it shrinks."""

LONGER_FUNCTIONS: dict[str, str] = {}
"""``path:function`` over the limit, each with its reason."""

FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc", "base", "stuff"}

TRACKED = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
).stdout.decode()
FILES = sorted(name for name in TRACKED.split("\0") if name and (ROOT / name).is_file())
SOURCES = [name for name in FILES if name.endswith(".py")]
# Written in pieces, so that this file does not hold what it forbids.
INDEX_HOSTS = ["pypi" + ".org", "python" + "hosted.org", "/simple" + "/", "--index" + "-url ", "--find" + "-links "]
INDEX_HOSTS += ["npm" + "js.", "registry" + "="]
PRIVATE_PATHS = re.compile(r"(?<![\w.])/(?:home|root|Users|work)" + r"/[\w.]+")


def text_of(name: str) -> str:
    """A file's text, or "" if it is not text."""
    try:
        return (ROOT / name).read_text("utf-8")
    except UnicodeDecodeError:
        return ""


def test_no_file_names_a_package_index_or_a_private_path() -> None:
    """A clone works anywhere: no address of a package index, no path of one person's machine."""
    texts = {name: text_of(name) for name in FILES}
    assert not [(name, host) for name, text in texts.items() for host in INDEX_HOSTS if host in text]
    assert not [(name, found) for name, text in texts.items() if (found := PRIVATE_PATHS.findall(text))]


def test_the_lock_has_versions_and_hashes_only() -> None:
    """Every requirement is pinned and hashed; there is no URL, no option and no comment."""
    lines = text_of("constraints.txt").splitlines()
    pins = [line for line in lines if not line.startswith(" ")]
    hashes = [line for line in lines if line.startswith(" ")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==\S+( ; [^\\]+)? \\", line) for line in pins)
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes)
    assert len(hashes) > len(pins) > 50


def test_the_lock_holds_what_the_project_asks_for() -> None:
    """Each direct dependency, those of the extras and of the build included, is in the lock."""
    project = tomllib.loads(text_of("pyproject.toml"))
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"], "editables"]
    wanted += [item for extra in project["project"]["optional-dependencies"].values() for item in extra]
    names = {re.split(r"[\[<>=;! ]", item)[0].lower().replace("_", "-") for item in wanted} - {"ats-dispatch"}
    locked = set(re.findall(r"^([a-z0-9.-]+)==", text_of("constraints.txt"), re.MULTILINE))
    assert names <= locked


def test_the_lock_of_npm_has_versions_and_hashes_only() -> None:
    """Every package from npm is pinned and hashed, and comes from whatever registry npm is set to."""
    lock = json.loads(text_of("tests/npm/package-lock.json"))
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    assert all(re.fullmatch(r"sha512-[\w+/=]{88}", entry["integrity"]) for entry in packages.values())
    assert not [name for name, entry in packages.items() if "resolved" in entry or "link" in entry]
    wanted = json.loads(text_of("tests/npm/package.json"))["dependencies"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted


def test_files_are_of_readable_length() -> None:
    """A module of over 400 lines needs a reason here, a test file may have 800."""
    lines = {name: len(text_of(name).splitlines()) for name in SOURCES}
    limits = {name: TEST_LINES_MAX if name.startswith("tests/") else LINES_MAX for name in SOURCES}
    wrong = [name for name in SOURCES if (lines[name] > limits[name]) is not (name in LONGER_FILES)]
    assert not [f"{name} has {lines[name]} lines" for name in wrong]


def test_functions_are_of_readable_length() -> None:
    """A function of over 60 lines, its docstring not counted, needs a reason here. A migration is one long list."""
    found = [
        (f"{name}:{node.name}", lines_of(node))
        for name in SOURCES
        if "/migrations/versions/" not in name
        for node in ast.walk(ast.parse(text_of(name)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    wrong = [(one, lines) for one, lines in found if (lines > FUNCTION_LINES_MAX) is not (one in LONGER_FUNCTIONS)]
    assert not [f"{one} has {lines} lines" for one, lines in wrong]


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """A function's length without its docstring."""
    said = node.body[0] if ast.get_docstring(node) else None
    prose = said.end_lineno - said.lineno + 1 if said is not None and said.end_lineno else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - prose


def test_no_module_has_a_name_that_says_nothing() -> None:
    """A module is named for what it does."""
    assert not [name for name in SOURCES if {*Path(name).parts[:-1], Path(name).stem} & FORBIDDEN_NAMES]


def test_reasons_name_files_that_exist() -> None:
    """The lists of exceptions hold nothing that is gone."""
    assert set(LONGER_FILES) <= set(SOURCES)
    assert {name.partition(":")[0] for name in LONGER_FUNCTIONS} <= set(SOURCES)
