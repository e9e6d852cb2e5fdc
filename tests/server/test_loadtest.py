"""Load tests of real servers: a good one, a wrong one, one that dies; and what their metrics say."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests
import yaml
from making import serve

from loadtest.body import FORM, example
from loadtest.known import COUNT
from loadtest.watch import parse, total
from server.gate.gate import Gate
from server.gate.gpus import GAUGES
from server.ports import free_port
from server.process import TorchServe

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0
# What even a busy machine keeps, so that these tests test the load test and not the machine.
TIER: dict[str, Any] = {
    "use": "tests",
    "robots": 2,
    "control_hz": 5,
    "ramp_s": 0,
    "warm_up_s": 1,
    "duration_s": 4,
    "latency_ms": {"p50": 3000},
    "max_failures": 0,
    "deadline_ms": 6000,
    "max_deadline_misses": 1,
    "memory_gib": 4,
    "scenario": "mixed",
    "adversaries": 1,
}


def load_test(
    server: TorchServe, folder: Path, model: str = "vla", **changes: object
) -> tuple[subprocess.CompletedProcess[str], Any]:
    """Run the command, and return how it ended and the report that it wrote."""
    (folder / "tiers.yaml").write_text(yaml.safe_dump({"lenient": TIER | changes}))
    command = [sys.executable, "-m", "loadtest", "--tier", "lenient", "--tiers", folder / "tiers.yaml"]
    command += ["--url", server.url, "--model", model, "--report", folder / "report"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    report = folder / "report.json"
    return run, json.loads(report.read_bytes()) if report.is_file() else None


@pytest.fixture(scope="module")
def good(served_policy: TorchServe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a good server's report, and of what the command said."""
    folder = tmp_path_factory.mktemp("good")
    run, _ = load_test(served_policy, folder)
    assert run.returncode == 0, run.stdout + run.stderr
    (folder / "said").write_text(run.stdout)
    return folder


def test_good_server_keeps_a_lenient_tier(good: Path) -> None:
    report = json.loads((good / "report.json").read_bytes())

    assert "tier lenient is kept with 2 robots at 5 Hz" in (good / "said").read_text()
    assert [(p["name"], p["verdict"]) for p in report["judgement"]["promises"]] == [
        ("latency p50", "kept"),
        ("deadline misses", "kept"),
        ("wrong answers", "kept"),
        ("failures", "kept"),
        ("outages", "kept"),
        ("memory", "kept"),
    ]
    assert 10 <= report["requests"]["mixed"] <= 42
    assert 1 <= report["requests"]["adversary"] <= 5
    assert 0.1 < max(moment["resident_gib"] for moment in report["memory"]) < 2
    assert report["server"]["batches"] >= 5
    assert set(report["server"]["stages_ms"]) == {"inference", "postprocess", "preprocess", "queue"}
    assert sum(report["server"]["errors"].values()) >= report["requests"]["adversary"]


def test_report_needs_no_network(good: Path) -> None:
    page = (good / "report.html").read_text()

    assert page.count("<svg") == 4
    assert "<script" not in page
    fetched = re.findall(r'(?:src|href)="([^#][^"]*)"|url\((?!#)([^)]*)\)|@import', page)
    assert fetched == []


def kill_under_load(server: TorchServe) -> None:
    """Kill the server when it has answered more than what is asked before the load."""
    while (
        total(parse(requests.get(server.metrics_url, timeout=10).text), "vla_batch_requests_sum") < 2 * COUNT
    ):
        time.sleep(0.2)
    os.kill(server.pid, signal.SIGKILL)


def test_server_that_is_killed_misses_with_the_time_of_the_outage(
    policy_archive: Path, tmp_path: Path
) -> None:
    with serve(policy_archive) as server:
        killer = Thread(target=kill_under_load, args=(server,))
        killer.start()
        run, report = load_test(server, tmp_path, adversaries=0, warm_up_s=0, duration_s=12)
        killer.join()

    assert run.returncode == 1, run.stdout + run.stderr
    (verdict,) = [line for line in run.stdout.splitlines() if line.startswith("tier lenient")]
    assert "outages" in verdict
    (outage,) = report["judgement"]["outages"]
    assert "connection refused" in outage["errors"]
    assert 0 < outage["start_s"] < 8
    assert outage["start_s"] + outage["duration_s"] == pytest.approx(12, abs=0.5)
    assert report["judgement"]["errors"]["connection refused"] > 10


def test_server_that_is_not_there_is_nothing_to_judge(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "loadtest",
        "--url",
        "http://127.0.0.1:9",
        "--report",
        tmp_path / "report",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    assert run.returncode == 3
    assert run.stderr.startswith("error: no description of model 'vla' at http://127.0.0.1:10 (")
    assert not list(tmp_path.iterdir())


def test_shipped_body_is_answered(served_policy: TorchServe, policy_archive: Path) -> None:
    shipped = (ROOT / "loadtest" / "bodies" / "grounded.bin").read_bytes()

    for data in (shipped, example(policy_archive)):
        answer = requests.post(
            served_policy.predictions_url, data, headers={"Content-Type": FORM}, timeout=30
        )
        assert (answer.status_code, len(answer.json()["actions"])) == (200, 8)


def test_metrics_count_what_happened(served_policy: TorchServe) -> None:
    example = served_policy.archive.example
    assert example is not None

    def post(**fields: str) -> int:
        return requests.post(
            served_policy.predictions_url, files=example.images, data={**example.fields, **fields}, timeout=30
        ).status_code

    before = parse(requests.get(served_policy.metrics_url, timeout=10).text)
    statuses = [post(), post(command="a command that was never said"), post(command="")]
    requests.get(f"{served_policy.management_url}/models/vla?customized=true", timeout=30)
    after = parse(requests.get(served_policy.metrics_url, timeout=10).text)

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert statuses == [200, 200, 422]
    assert grown("vla_batch_requests_count") == grown("vla_batch_requests_sum") == 2
    for stage in ("preprocess", "inference", "postprocess"):
        assert grown("vla_stage_seconds_count", stage=stage) == 2
    assert grown("vla_command_cache_total") == 2
    assert grown("vla_command_cache_total", result="miss") >= 1
    assert grown("vla_request_errors_total") == grown("vla_request_errors_total", code="invalid_value") == 1
    assert 1e8 < total(after, "vla_memory_bytes", kind="resident") < 2e9


def exposed(server: TorchServe) -> set[str]:
    """Names of the time series that a gate's metrics port declares, with an observed histogram's own."""
    port = free_port()
    with Gate(server, port, port + 1, "127.0.0.1", "127.0.0.1"):
        text = requests.get(f"http://127.0.0.1:{port + 1}/metrics", timeout=10).text
    names = set(re.findall(r"^# TYPE (\S+) (?:counter|gauge)$", text, re.MULTILINE))
    return names | {name for name, _ in parse(text)}


def expressions() -> dict[str, list[str]]:
    """All PromQL expressions of the dashboard and of the alert rules."""
    board = json.loads((ROOT / "docker" / "grafana" / "vla-serve.json").read_bytes())
    rules = yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yaml").read_bytes())
    variables = [variable.get("query", "") for variable in board["templating"]["list"]]
    return {
        "dashboard": [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        + [query for query in variables if query.startswith("label_values")],
        "alerts": [rule["expr"] for group in rules["groups"] for rule in group["rules"]],
    }


# Where `nvidia-smi` is; tests/unit/server/test_gate_gpus.py has them.
GPU_SERIES = {name for name, *_ in GAUGES}


def series(expression: str) -> set[str]:
    """Names of the series in a PromQL expression: what is no function, keyword, label or text."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]|\{[^}]*\}|\b(?:by|without)\s*\([^)]*\)', " ", expression)
    names = re.findall(r"\b[A-Za-z_][A-Za-z0-9_]*\b(?!\s*\()", bare)
    return set(names) - {"sum", "by", "offset", "instance", "and", "or", "unless", "h", "m", "up"}


@pytest.mark.parametrize("file", ["dashboard", "alerts"])
def test_dashboard_and_alerts_name_only_metrics_that_a_server_has(
    file: str, served_policy: TorchServe
) -> None:
    example = served_policy.archive.example
    assert example is not None
    requests.post(served_policy.predictions_url, files=example.images, data=example.fields, timeout=30)
    found = expressions()[file]

    named = set().union(*map(series, found))

    assert len(found) >= 10
    assert {"vla_gate_refusals_total", "vla_stage_seconds_bucket", "vla_gate_answers_total"} <= named
    assert named - exposed(served_policy) - GPU_SERIES == set()


def test_alert_rules_are_valid() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    rules = ROOT / "docker" / "prometheus" / "alerts.yaml"
    run = subprocess.run([promtool, "check", "rules", rules], capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert "SUCCESS: 15 rules found" in run.stdout
