"""Documents that are written by the code: ``python -m tests.support.documents`` writes them, a test compares."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from dispatch import errors
from dispatch.core.lifecycle import ATS_WORD, MOVES, Status, Verb, path
from dispatch.metrics import METRICS
from dispatch.service.tools.registry import TOOLS
from dispatch.settings import ENV_PREFIX, SETTINGS
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from dataclasses import Field

ON_THIS_HOST = {"actor_id": "dispatch-<host>", "data_dir": "~/.local/state/dispatch"}
"""Defaults that depend on the host, as people are told them."""

TABLES = {
    "ats": "How to reach the task service, and as whom.",
    "execution": "How an attempt runs, and how often.",
    "broker": "Redis.",
    "ingress": "Admission and reconciling.",
    "service": "The task service of our own.",
    "trust": "Keys, and whose tasks are accepted.",
    "notify": "Who is told that something happened to a task.",
    "flower": "Flower, the page that shows workers, queues and attempts.",
    "metrics": "Prometheus metrics.",
    "traces": "OpenTelemetry traces.",
    "local": "This host.",
}

EXAMPLE_HEAD = """\
# Settings of dispatch. Every line shows a default; take the # away to change it.
# Put this file where DISPATCH_CONFIG points, or at ./dispatch.toml, or at ~/.config/dispatch/dispatch.toml.
# The environment wins over this file: lease_ms here is DISPATCH_LEASE_MS there.
# A secret can stand in a file of its own: ats_token_file = "/run/secrets/ats-token".
"""

ROUTING_HEAD = """
# Executors, routes and classes (docs/executors.md); none of these is a default.
#
"""

PAGE_HEAD = """\
# Settings

Every setting can be given in the environment, in a TOML file, and some as an option on the command line. The later
wins: default, TOML, environment, option. The file is the one that `DISPATCH_CONFIG` names, else `./dispatch.toml`, else
`~/.config/dispatch/dispatch.toml`; [config/dispatch.example.toml](../config/dispatch.example.toml) holds every setting
with its default. An unknown `DISPATCH_*` name or an unknown key is an error that suggests the nearest known one.

Secrets can be given as `DISPATCH_..._FILE` (in TOML: `..._file`), the path of a file that holds the value. They are
shown as stars wherever settings are shown, and so is a password in a URL.

This page is written by `make docs` from `dispatch/settings.py`.
"""

ERRORS_HEAD = """\
# Errors

A refusal has the same code and the same facts on every face: REST, WebSocket, MCP and command line. It changed nothing.
The body is `{"error": "<one sentence>", "code": "<code>", ...facts}`. Codes are stable; sentences are not.

This page is written by `make docs` from `dispatch/errors.py`.

## Refusals of the service

| code | HTTP status | when |
|---|---|---|
"""

EXITS = """
## Exit codes of the commands

| code | when |
|---|---|
| 0 | done |
| 1 | the operation failed; the sentence on stderr says why |
| 2 | wrong usage |
| 69 | the task service or Redis cannot be reached |
| 75 | try again later |
| 77 | not permitted |
| 78 | a setting is wrong or something needed is missing; nothing was claimed |
"""


def routing_example() -> str:
    """Return the executors, routes and classes of docs/executors.md."""
    page = (ROOT / "docs/executors.md").read_text("utf-8")
    return page.partition("```toml\n")[2].partition("```")[0]


def shown_default(name: str, item: Field[Any]) -> str | int | float | None:
    """Return a setting's default as people are told it."""
    default = item.metadata["default"]
    return ON_THIS_HOST[name] if callable(default) else default


def example_toml() -> str:
    """Return config/dispatch.example.toml."""
    parts = [EXAMPLE_HEAD]
    for table, about in TABLES.items():
        parts.append(f"\n[{table}]  # {about}\n")
        for name, item in settings_of(table):
            default = shown_default(name, item)
            value = '""' if default is None else json.dumps(default)
            parts.append(f"# {item.metadata['meaning']}{' (default: not set)' if default is None else ''}")
            parts.append(f"#{name} = {value}\n")
    lines = [f"# {line}".rstrip() for line in routing_example().splitlines()]
    return "\n".join(parts).rstrip() + "\n" + ROUTING_HEAD + "\n".join(lines) + "\n"


def settings_page() -> str:
    """Return docs/settings.md."""
    lines = [PAGE_HEAD]
    for table, about in TABLES.items():
        lines += [f"## `[{table}]`", "", about, "", "| environment | TOML | default | meaning |", "|---|---|---|---|"]
        for name, item in settings_of(table):
            default = shown_default(name, item)
            shown = "none" if default is None else f"`{str(default).lower()}`" if default is False else f"`{default}`"
            shown = "empty" if default == "" else shown
            written = json.dumps(default) if isinstance(default, bool) else default
            shown = "none" if default is None else f"`{written}`" if default != "" else "empty"
            secret = f"; secret, also `{ENV_PREFIX}{name.upper()}_FILE`" if item.metadata["secret"] else ""
            lines.append(f"| `{ENV_PREFIX}{name.upper()}` | `{name}` | {shown} | {item.metadata['meaning']}{secret} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def settings_of(table: str) -> Iterator[tuple[str, Field[Any]]]:
    """Yield the settings of a TOML table."""
    for name, (owner, item) in SETTINGS.items():
        if owner == table:
            yield name, item


def refusals() -> Iterator[type[errors.TaskError]]:
    """Yield the refusals of the service, in the order of the module."""
    for item in vars(errors).values():
        if isinstance(item, type) and issubclass(item, errors.TaskError) and item is not errors.TaskError:
            yield item


def errors_page() -> str:
    """Return docs/errors.md."""
    rows = [f"| `{e.code}` | {e.http_status} | {(e.__doc__ or '').splitlines()[0]} |" for e in refusals()]
    return ERRORS_HEAD + "\n".join(rows) + "\n" + EXITS


LIFECYCLE_HEAD = """\
# The lifecycle

Nine states, 28 legal moves out of 81, one table (`dispatch/core/lifecycle.py`) for every face: REST, WebSocket, MCP and
the command line. This page is written by `make docs` from that table.

```mermaid
stateDiagram-v2
"""

LIFECYCLE_END = """
`complete` stops in `in_review` when the task asks for review. `fail` also takes a task in `todo` when something that it
depends on has ended without being completed. `core_recover_task` puts a task from any state into `todo`, `failed` or
`in_review`; that is no move of the table, and it is recorded with its reason.
"""

TOOLS_HEAD = """\
# The tools

What each tool takes and returns, as MCP clients and `GET /tools` are told; required parameters are bold. How they work
together, and what the questions that they leave open are answered with: [task-tools.md](task-tools.md).

This page is written by `make docs` from `dispatch/service/tools`.
"""


def lifecycle_page() -> str:
    """Return docs/lifecycle.md."""
    lines = ["    [*] --> backlog", "    [*] --> todo"]
    lines += [f"    {current} --> {target}" for current in Status for target in Status if target in MOVES[current]]
    lines += ["```", "", "| from | ATS word | to |", "|---|---|---|"]
    for current in Status:
        targets = ", ".join(target for target in Status if target in MOVES[current])
        lines.append(f"| {current} | {ATS_WORD[current]} | {targets} |")
    lines += ["", "What an ATS verb walks through:", "", "| verb | from | through |", "|---|---|---|"]
    for verb, current, steps in verbs():
        lines.append(f"| {verb} | {current} | {' → '.join(steps)} |")
    return LIFECYCLE_HEAD + "\n".join(lines) + "\n" + LIFECYCLE_END


def verbs() -> Iterator[tuple[Verb, Status, tuple[Status, ...]]]:
    """Yield every way that a verb has, from its first state on."""
    for verb in Verb:
        for current in Status:
            with contextlib.suppress(errors.IllegalMoveError):
                yield verb, current, path(verb, current)


def _limits(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "")
    words = [kind if isinstance(kind, str) else " or ".join(kind)]
    if "enum" in schema:
        words = [", ".join(schema["enum"])]
    if schema.get("format"):
        words = [words[0].replace("string", schema["format"].upper())]
    if "maxLength" in schema:
        words.append(f"at most {schema['maxLength']} characters")
    if "minimum" in schema and schema["maximum"] < 2**62:
        words.append(f"{schema['minimum']} to {schema['maximum']}")
    if "maxItems" in schema:
        words.append(f"at most {schema['maxItems']}")
    if "default" in schema:
        words.append(f"default {json.dumps(schema['default'])}")
    return "; ".join(word for word in words if word)


def tools_page() -> str:
    """Return docs/tools.md."""
    lines = []
    for tool in TOOLS.values():
        hints = [word for word, is_so in (("read only", tool.read_only), ("may be repeated", tool.idempotent)) if is_so]
        access = f"Needs {tool.access.name.lower()} access{''.join(f'; {hint}' for hint in hints)}."
        lines += ["", f"## `{tool.name}`", "", tool.description, "", access, "", "| parameter | |", "|---|---|"]
        for name, param in tool.params.items():
            shown = f"**`{name}`**" if name in tool.required else f"`{name}`"
            lines.append(f"| {shown} | {_limits(param.schema)} |")
        fields = ", ".join(f"`{name}`" for name in tool.output["properties"])
        lines += ["", f"Returns {fields}."]
    return TOOLS_HEAD + "\n".join(lines) + "\n"


METRICS_HEAD = """\
# Metrics

Service, ingress and worker serve [Prometheus](https://prometheus.io) metrics at `/metrics` when a port is set:
`DISPATCH_SERVICE_METRICS_PORT`, `DISPATCH_INGRESS_METRICS_PORT`, `DISPATCH_WORKER_METRICS_PORT`. They are 0 by default,
which means none: nothing listens and nothing is counted. No key guards them, so they stay on loopback unless
`DISPATCH_METRICS_BIND` names another address. They show names of channels, and nothing else of tasks.

Two processes of one kind on one host need two ports; the second one that wants a port which is taken logs
`metrics_not_served` and goes on without. A worker shows the sums of all its pool children, dead ones included: they
count into files in `metrics/` of the data directory, which the worker removes. Counters begin at 0 with each process.

## Switching them on

With the units, in `/etc/dispatch/dispatch.env` on `10.0.0.1` and on a worker host:

```
DISPATCH_METRICS_BIND=10.0.0.1
DISPATCH_SERVICE_METRICS_PORT=9701
DISPATCH_INGRESS_METRICS_PORT=9702
```

```
DISPATCH_METRICS_BIND=10.0.0.2
DISPATCH_WORKER_METRICS_PORT=9711
```

A second worker of that host (`dispatch-worker@2`) has its own port in `/etc/dispatch/worker-2.env`:

```
DISPATCH_WORKER_METRICS_PORT=9712
```

In containers, which have addresses of their own: `METRICS_PORT=9700 docker compose -f docker/compose.yaml up -d`.
`dispatch up` takes the three ports from its environment or `dispatch.toml`. Whoever reaches an address may read what is
shown there: let it be one that Prometheus reaches and strangers do not.

## Prometheus and Grafana

[config/prometheus.yml](../config/prometheus.yml) scrapes these hosts and reads
[config/alerts.yml](../config/alerts.yml); put both into Prometheus's directory and write your hosts into the first.

| the alerts wake somebody (`severity: page`) when | and are for the morning (`severity: ticket`) when |
|---|---|
| the service, its database, every ingress, or Redis is away | a worker is away |
| tasks are ready and no worker takes any, or one has been ready for 15 minutes | callbacks were given up |
| leases are overdue, or a fifth of all renewals fails | |
| results lie on a worker host for 10 minutes | |

The bounds are a beginning: set them to what your tasks may wait.

[config/grafana-dashboard.json](../config/grafana-dashboard.json) shows all metrics; import it into Grafana and choose
the data source. Tests put every query and every alert to a real Prometheus where there is one.

## All of them

This page is written by `make docs` from `dispatch/metrics.py`.

| metric | kind | process | labels | meaning |
|---|---|---|---|---|
"""


def metrics_page() -> str:
    """Return docs/metrics.md."""
    lines = []
    for one in METRICS:
        labels = ", ".join(f"`{label}`" for label in one.labels) + (f": {', '.join(one.values)}" if one.values else "")
        lines.append(f"| `{one.name}` | {one.kind} | {one.process} | {labels} | {one.meaning} |")
    return METRICS_HEAD + "\n".join(lines) + "\n"


DOCUMENTS = {
    "docs/metrics.md": metrics_page,
    "docs/lifecycle.md": lifecycle_page,
    "docs/tools.md": tools_page,
    "config/dispatch.example.toml": example_toml,
    "docs/settings.md": settings_page,
    "docs/errors.md": errors_page,
}


if __name__ == "__main__":
    for name, render in DOCUMENTS.items():
        (ROOT / name).write_text(render(), "utf-8")
