"""What is declared is what is counted, documented and shown."""

from __future__ import annotations

import ast
import json
import re

from dispatch.metrics import METRICS
from tests.support.processes import ROOT

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


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """Every query of the dashboard names only metrics and labels that are declared, and every metric is shown."""
    dashboard = json.loads((ROOT / "config/grafana-dashboard.json").read_text("utf-8"))
    scraped = {
        name + suffix: one
        for name, one in NAMES.items()
        for suffix in (("_bucket", "_sum", "_count") if one.kind == "histogram" else ("",))
    }
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"\bdispatch_\w+", target["expr"])
            assert names
            assert set(names) <= set(scraped), target["expr"]
            labels = {label for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in by.split(", ")} - {
                "le"
            }
            assert all(labels <= set(scraped[name].labels) for name in names), target["expr"]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels
            shown |= {scraped[name].name for name in names}
    assert shown == set(NAMES)
