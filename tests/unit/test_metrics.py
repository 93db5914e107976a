"""What is declared is what is counted, documented and shown."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from prometheus_client.mmap_dict import MmapedDict

from dispatch import metrics
from dispatch.core.lifecycle import Status
from dispatch.metrics import METRICS
from tests.support.processes import ROOT

if TYPE_CHECKING:
    import pytest

NAMES = {one.name: one for one in METRICS}


def used() -> dict[str, set[str]]:
    """Metric -> the functions of dispatch.metrics that are called with its name anywhere in the code."""
    found: dict[str, set[str]] = {}
    for path in [*ROOT.glob("dispatch/**/*.py"), *ROOT.glob("workers/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                name = getattr(node.args[0], "value", None)
                if getattr(node.func.value, "id", "") == "metrics" and isinstance(name, str):
                    found.setdefault(name, set()).add(node.func.attr)
            if isinstance(node, ast.Dict) and path.name == "measures.py":
                for key in node.keys:
                    found.setdefault(getattr(key, "value", ""), set()).add("watch")
    return {name: how for name, how in found.items() if name.startswith("dispatch_")}


def test_every_metric_is_fed_and_nothing_else_is() -> None:
    """A counter is counted, a histogram observed, a gauge watched; no name is used that is not declared."""
    way = {"counter": {"count"}, "histogram": {"observe"}, "gauge": {"watch"}}
    assert used() == {name: way[one.kind] for name, one in NAMES.items()}
    assert len(NAMES) == len(METRICS)


def test_names_say_their_unit() -> None:
    """Counters end in _total, histograms in _seconds and have buckets, and all begin with dispatch_."""
    for one in METRICS:
        assert one.name.startswith("dispatch_")
        assert one.name.endswith("_total") is (one.kind == "counter")
        assert bool(one.buckets) is (one.kind == "histogram")
        assert one.kind != "histogram" or one.name.endswith("_seconds")


SCRAPED = {
    name + suffix: one
    for name, one in NAMES.items()
    for suffix in (("_bucket", "_sum", "_count") if one.kind == "histogram" else ("",))
}
OWN_LABELS = {"instance", "job", "le"}
"""What Prometheus itself, and a histogram, add to every metric."""


def names_in(query: str) -> set[str]:
    """Return the metrics in a query, after a look at its labels and their values: all must be declared."""
    names = set(re.findall(r"\bdispatch_\w+", query))
    assert names <= set(SCRAPED), query
    labels = {label for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(", ")} - OWN_LABELS
    assert all(labels <= set(SCRAPED[name].labels) for name in names), query
    for name, label, value in re.findall(r'\b(dispatch_\w+){(\w+)="(\w+)"}', query):
        assert (label,) == SCRAPED[name].labels, query
        known = SCRAPED[name].values or [state.value for state in Status]
        assert value in known, query
    return {SCRAPED[name].name for name in names}


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    return json.loads((ROOT / "config/grafana-dashboard.json").read_text("utf-8"))


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """Every query of the dashboard names only metrics and labels that are declared, and every metric is shown."""
    shown = set()
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            names = names_in(target["expr"])
            assert names
            by = {label for found in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in found.split(", ")}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= by
            shown |= names
    assert shown == set(NAMES)


def test_the_dashboard_is_one_that_grafana_can_show() -> None:
    """Panels have ids and places of their own within its 24 columns, and take the data source that was chosen."""
    found = dashboard()
    (variable,) = found["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] == "timeseries"
        assert panel["datasource"] == {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in {"short", "s", "ops", "bytes"}
        refs = [target["refId"] for target in panel["targets"]]
        assert refs == list("ABCDEF"[: len(refs)])
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + 8)}
        assert place["h"] == 8
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len(taken) == 24 * 8 * -(-len(panels) // 3), "there is a hole between the panels"


def test_alerts_ask_for_metrics_that_exist() -> None:
    """Every alert names declared metrics and labels, and jobs that the example scrapes; it says what and what then."""
    rules = yaml.safe_load((ROOT / "config/alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
    scraped = yaml.safe_load((ROOT / "config/prometheus.yml").read_text("utf-8"))
    assert scraped["rule_files"] == ["alerts.yml"]
    jobs = {job["job_name"] for job in scraped["scrape_configs"]}
    for rule in rules:
        assert names_in(rule["expr"]) or "up{job=" in rule["expr"]
        assert set(re.findall(r'job="([\w-]+)"', rule["expr"])) <= jobs
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"].keys() == {"summary", "description"}
    assert len({rule["alert"] for rule in rules}) == len(rules)


def test_a_full_disk_ends_nobody_who_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a file that is mapped into memory is taken at once; without any, what is counted goes into memory."""
    file = str(tmp_path / "counter_1.db")
    assert metrics.reserved(file) == file
    assert os.stat(file).st_blocks * 512 >= os.stat(file).st_size == 65_536
    kept = MmapedDict(file)
    kept.write_value("a", 1.0, 0.0)
    kept.close()
    again = MmapedDict(metrics.reserved(file))
    assert again.read_value("a") == (1.0, 0.0)
    again.close()

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    other = str(tmp_path / "counter_2.db")
    instead = metrics.reserved(other)
    counted = MmapedDict(instead)
    counted.write_value("a", 1.0, 0.0)
    assert counted.read_value("a") == (1.0, 0.0)
    counted.close()
    os.close(int(instead.rpartition("/")[2]))
    assert not Path(other).exists()
