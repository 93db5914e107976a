"""The alerts of config/, put to promtool: they are valid, ring when they should, and are quiet when all is well.

That they name metrics which exist is held without promtool, in tests/unit/test_metrics.py.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes import ROOT
from tests.support.prometheus import is_here, promtool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not is_here(), reason="promtool is not installed (Debian: prometheus)")
WORKER = 'job="dispatch-worker", instance="10.0.0.2:9711"'
WELL = {
    'up{job="dispatch-service"}': "1",
    'up{job="dispatch-ingress"}': "1",
    f"up{{{WORKER}}}": "1",
    "dispatch_database_bytes": "40000",
    "dispatch_redis_up": "1",
    "dispatch_fleet_slots": "4",
    'dispatch_tasks{status="todo"}': "5",
    "dispatch_waiting_tasks": "2",
    'dispatch_queue_age_seconds{channel="default"}': "30",
    "dispatch_leases_overdue": "0",
    f'dispatch_renewals_total{{result="ok", {WORKER}}}': "0+20",
    f'dispatch_renewals_total{{result="failed", {WORKER}}}': "0+1",
    f"dispatch_spool_reports{{{WORKER}}}": "0",
    'dispatch_deliveries_total{outcome="failed"}': "0",
}
"""Each is what it is at minute 0, or that and what comes on top of it each minute; "_" when it is not there."""
RINGS: dict[str, dict[str, str]] = {
    "DispatchServiceUnreachable": {'up{job="dispatch-service"}': "0"},
    "DispatchDatabaseAway": {"dispatch_database_bytes": "_"},
    "DispatchIngressUnreachable": {'up{job="dispatch-ingress"}': "0"},
    "DispatchRedisDown": {"dispatch_redis_up": "0"},
    "DispatchNoSlots": {"dispatch_fleet_slots": "0"},
    "DispatchQueueAge": {'dispatch_queue_age_seconds{channel="default"}': "901"},
    "DispatchLeasesOverdue": {"dispatch_leases_overdue": "3"},
    "DispatchRenewalsFail": {f'dispatch_renewals_total{{result="failed", {WORKER}}}': "0+10"},
    "DispatchSpoolNotDelivering": {f"dispatch_spool_reports{{{WORKER}}}": "2"},
    "DispatchCallbacksFail": {'dispatch_deliveries_total{outcome="failed"}': "0+1"},
    "DispatchWorkerUnreachable": {f"up{{{WORKER}}}": "0"},
}
NO_ALARM: dict[str, dict[str, str]] = {
    "all that is ready waits for others": {"dispatch_fleet_slots": "0", "dispatch_waiting_tasks": "5"},
    "nothing is there to do": {"dispatch_fleet_slots": "0", 'dispatch_tasks{status="todo"}': "0"},
}


def case(changes: dict[str, str], rings: str = "") -> dict[str, Any]:
    """Return a test of all alerts 20 minutes later, of which ``rings`` and no other rings."""
    series = {name: text if "+" in text or text == "_" else f"{text}+0" for name, text in (WELL | changes).items()}
    names = sorted(RINGS)
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": f"{text}x30"} for name, text in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count by (alertname) (ALERTS{{alertstate="firing", alertname="{name}"}})',
                "eval_time": "20m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}] if name == rings else [],
            }
            for name in names
        ],
    }


def test_each_alert_rings_for_its_trouble_and_for_no_other(tmp_path: Path) -> None:
    """One trouble at a time, and all well: what should ring does, nothing else. No alert is left out."""
    assert promtool("check", "config", str(ROOT / "config/prometheus.yml"))[0] == 0
    rules = ROOT / "config/alerts.yml"
    said = promtool("check", "rules", str(rules))[1]
    assert f"SUCCESS: {len(RINGS)} rules found" in said, said
    cases = [case({}), *(case(changes) for changes in NO_ALARM.values())]
    cases += [case(changes, name) for name, changes in RINGS.items()]
    (tmp_path / "rules.json").write_text(
        json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": cases})
    )
    code, said = promtool("test", "rules", str(tmp_path / "rules.json"))
    assert code == 0, said
