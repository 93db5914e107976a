"""What clients are told of the tools: small, stable, and the same as what the tools accept."""

from __future__ import annotations

import copy
import json
import string
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dispatch.errors import InvalidInputError, TaskError
from dispatch.service import strict
from dispatch.service.tools import params as p
from dispatch.service.tools.registry import PROFILES, TOOLS, LocalToolbox, definition
from tests.support.schemas import anything, valid

if TYPE_CHECKING:
    from dispatch.service.tools.model import Param

TOKENS_MAX = 5_000
CHARS_A_TOKEN = 3.85
"""Measured for compact JSON of this kind."""

PAGE = {
    "core_create_task": "project_key run_id agent_id title task_id parent_id depends_on detail status priority"
    " order_index assigned_to meta_json",
    "core_get_task": "task_id",
    "core_claim_task": "task_id agent_id note",
    "core_claim_and_start_task": "task_id agent_id claim_note start_note",
    "core_transition_task": "task_id agent_id to_status expected_from_status note release_lock",
    "core_update_task": "task_id agent_id assigned_to priority order_index meta_json merge_meta note",
    "core_list_tasks": "project_key status priority assigned_to title_search limit",
    "core_release_task_lock": "task_id agent_id note",
    "core_recover_task": "task_id agent_id to_status note",
    "post_task_message": "project_key task_id agent_id body kind tags meta",
    "list_task_messages": "project_key task_id limit",
}
"""The parameters of the Task Tools page."""
REQUIRED = {
    "core_create_task": 4,
    "core_get_task": 1,
    "core_claim_task": 2,
    "core_claim_and_start_task": 2,
    "core_transition_task": 3,
    "core_update_task": 2,
    "core_list_tasks": 1,
    "core_release_task_lock": 2,
    "core_recover_task": 4,
    "post_task_message": 4,
    "list_task_messages": 2,
}
"""How many of them, from the first, are required."""


async def told(profile: str = "default") -> Any:
    """Return what a client is told; the toolbox needs no store for that."""
    box = LocalToolbox.__new__(LocalToolbox)
    return await box.definitions(profile)


async def test_all_definitions_together_are_small() -> None:
    """A client that loads every tool spends less than 5,000 tokens."""
    size = len(json.dumps(await told(), separators=(",", ":"), ensure_ascii=False))
    assert size / CHARS_A_TOKEN < TOKENS_MAX


async def test_definitions_are_the_same_every_time() -> None:
    """Same order, same text, whoever asks, so that a client's cache of them stays good."""
    for profile in PROFILES:
        first = json.dumps(await told(profile))
        assert json.dumps(await told(profile)) == first
    assert [one["name"] for one in await told()][:11] == list(PAGE)
    assert [one["name"] for one in await told("page")] == list(PAGE)


async def test_an_unknown_profile_is_refused() -> None:
    """It names those that there are."""
    with pytest.raises(InvalidInputError, match="worker"):
        await told("everything")


@pytest.mark.parametrize("name", PAGE)
def test_the_page_is_kept(name: str) -> None:
    """Every tool has every parameter of the page under its name, and requires the same ones."""
    schema = definition(TOOLS[name])["inputSchema"]
    words = PAGE[name].split()
    assert set(words) <= set(schema["properties"])
    assert set(schema["required"]) == set(words[: REQUIRED[name]] if name != "core_recover_task" else words)


@pytest.mark.parametrize("name", TOOLS)
def test_definitions_are_valid_json_schema(name: str) -> None:
    """Input and output, with no argument beyond those that are named; read-only tools never claim to destroy."""
    shown = definition(TOOLS[name])
    for part in ("inputSchema", "outputSchema"):
        Draft202012Validator.check_schema(shown[part])
        assert shown[part]["type"] == "object"
        assert set(shown[part]["required"]) <= set(shown[part]["properties"])
    assert shown["inputSchema"]["additionalProperties"] is False
    hints = shown["annotations"]
    assert hints["openWorldHint"] is False
    assert not (hints["readOnlyHint"] and hints["destructiveHint"])
    assert hints["readOnlyHint"] is (TOOLS[name].access.name == "READ")


# --- the schema against the parser -----------------------------------------------------------------------------------

few = settings(max_examples=20, deadline=None)


def all_params() -> list[Any]:
    """Return every parameter of every tool, named; those that tools share come once."""
    found = {id(param): (tool.name, key, param) for tool in TOOLS.values() for key, param in tool.params.items()}
    return [pytest.param(param, key, id=f"{name}-{key}") for name, key, param in found.values()]


LOOSE = {"project_key", "channels", "types", "capabilities", "needs", "channel", "tasks", "fields", "cursor", "title"}
"""Parameters whose schema says less than the parser checks, to save tokens: names, slugs, blank texts."""


@pytest.mark.parametrize(("param", "key"), all_params())
@few
@given(data=st.data())
def test_what_the_schema_allows_the_parser_reads(param: Param, key: str, data: Any) -> None:
    """A value within the schema is accepted or, where the schema says less, refused with a sentence; never a crash."""
    value = data.draw(valid(dict(param.schema)))
    kept = copy.deepcopy(value)
    refusal = ""
    try:
        param.parse(key, value)
    except TaskError as exc:
        refusal = str(exc)
    blank = isinstance(value, str) and not value.strip()
    listed = isinstance(value, list) and any(isinstance(item, str) and not item.strip() for item in value)
    assert not refusal or key in LOOSE or blank or listed
    assert not refusal or refusal.endswith((".", "?"))
    assert value == kept


@pytest.mark.parametrize(("param", "key"), all_params())
@few
@given(value=anything)
def test_what_the_schema_forbids_the_parser_refuses(param: Param, key: str, value: Any) -> None:
    """A value of another type or out of bounds is refused with a TaskError, not guessed at."""
    if Draft202012Validator(dict(param.schema)).is_valid(value):
        return
    with pytest.raises(TaskError):
        param.parse(key, value)


@pytest.mark.parametrize("name", TOOLS)
@few
@given(data=st.data())
def test_whole_calls_agree_with_the_schema(name: str, data: Any) -> None:
    """Arguments that the schema forbids as a whole (a missing or an unknown one) are refused."""
    tool = TOOLS[name]
    schema = definition(tool)["inputSchema"]
    arguments = data.draw(valid(schema))
    dropped = data.draw(st.sampled_from(schema["required"]))
    without = {key: value for key, value in arguments.items() if key != dropped}
    extra = data.draw(st.text(string.ascii_letters, min_size=1, max_size=12).filter(lambda key: key not in tool.params))
    for wrong in (without, {**arguments, extra: 1}):
        with pytest.raises(TaskError):
            strict.parse_object(wrong, p.parsers(tool.params), required=tool.required)
