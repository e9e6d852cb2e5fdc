"""What is deployed, as far as it can be checked without deploying it: rules, manifests, one replica a GPU."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
ALERTS = DOCKER / "prometheus/alerts.yaml"
# Of the autoscaler's metric: what prometheus-adapter writes for its templates.
FILLED_IN = {"<<.LabelMatchers>>": 'namespace="vla"', "<<.GroupBy>>": "pod"}
POD = '{namespace="vla",pod="a",job="vla-serve",instance="a:8082"%s}'


def read(path: str) -> Any:
    return yaml.safe_load((DOCKER / path).read_bytes())


def documents(path: str) -> dict[str, Any]:
    """Return a file's objects by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((DOCKER / path).read_bytes())}


def tool(name: str, package: str) -> str:
    if (found := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed: {package}")
    return found


def test_kubernetes_has_the_same_alert_rules() -> None:
    """After a change of alerts.yaml: docker/rules."""
    assert read("kubernetes/components/monitoring/rules.yaml")["spec"] == yaml.safe_load(ALERTS.read_bytes())


def test_the_pod_monitor_scrapes_the_replicas_under_the_rules_job() -> None:
    kubectl = tool("kubectl", "kubernetes-client")
    overlay = DOCKER / "kubernetes/overlays/monitored"
    built = subprocess.run([kubectl, "kustomize", overlay], capture_output=True, text=True, check=True).stdout
    objects = [one for one in yaml.safe_load_all(built) if one["metadata"]["name"] == "vla-server"]
    by_kind = {one["kind"]: one for one in objects}
    monitor, pod = by_kind["PodMonitor"]["spec"], by_kind["Deployment"]["spec"]["template"]

    wanted = monitor["selector"]["matchLabels"]
    assert wanted.items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["labels"][monitor["jobLabel"]] == "vla-serve"
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports


# Alert -> series that make it fire after ten minutes, one sample a minute.
FIRING = {
    "VlaServersVanished": {'up{job="other"}': "1+0x20"},
    "VlaServerMissing": {
        'up{job="vla-serve",instance="a"}': "1+0x20",
        'up{job="vla-serve",instance="b"}': "1+0x4 stale",
    },
    "VlaNotReady": {"vla_gate_ready" + POD % "": "0+0x20"},
    "VlaWorkerMissing": {
        "vla_gate_workers_ready" + POD % ',policy="vla"': "1+0x20",
        "vla_gate_workers_wanted" + POD % ',policy="vla"': "2+0x20",
    },
    "VlaOverloaded": {
        "vla_gate_refusals_total" + POD % ',code="overloaded"': "0+6x20",
        "vla_gate_answers_total" + POD % ',status="2xx"': "0+60x20",
    },
    "VlaDeadlineMisses": {
        "vla_gate_refusals_total" + POD % ',code="deadline_expired"': "0+6x20",
        "vla_gate_answers_total" + POD % ',status="2xx"': "0+60x20",
    },
}
HEALTHY = {
    'up{job="vla-serve",instance="a:8082"}': "1+0x20",
    "vla_gate_ready" + POD % "": "1+0x20",
    "vla_gate_workers_ready" + POD % ',policy="vla"': "2+0x20",
    "vla_gate_workers_wanted" + POD % ',policy="vla"': "2+0x20",
    "vla_gate_refusals_total" + POD % ',code="overloaded"': "0+0x20",
    "vla_gate_refusals_total" + POD % ',code="deadline_expired"': "0+0x20",
    "vla_gate_answers_total" + POD % ',status="2xx"': "0+60x20",
}


def input_series(found: dict[str, str]) -> list[dict[str, str]]:
    """Return series as promtool's tests have them."""
    return [{"series": series, "values": values} for series, values in found.items()]


def promtool_test(folder: Path, tests: list[dict[str, Any]]) -> str:
    """Run promtool's unit tests on the alert rules, and return what it says where they fail."""
    promtool = tool("promtool", "apt-get install prometheus")
    file = folder / "tests.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests})
    )
    run = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    return "" if run.returncode == 0 else run.stdout + run.stderr


def fires(name: str, found: dict[str, str], folder: Path) -> bool:
    """Whether an alert fires after ten minutes: promtool fails where none is expected."""
    expected = {"eval_time": "10m", "alertname": name, "exp_alerts": []}
    test = {"interval": "1m", "input_series": input_series(found), "alert_rule_test": [expected]}
    said = promtool_test(folder, [test])
    assert not said or f"alertname: {name}" in said, said
    return bool(said)


@pytest.mark.parametrize("name", FIRING)
def test_alerts_fire_when_they_should_and_only_then(name: str, tmp_path: Path) -> None:
    assert fires(name, FIRING[name], tmp_path)
    assert not fires(name, HEALTHY, tmp_path)


@pytest.mark.parametrize(("each_s", "requests", "expected"), [("0", "0", 0.0), ("3", "60", 0.05)])
def test_the_autoscalers_metric_has_a_value_at_idle(
    each_s: str, requests: str, expected: float, tmp_path: Path
) -> None:
    config = yaml.safe_load(read("kubernetes/overlays/autoscaling/metric.yaml")["data"]["config.yaml"])
    query = config["rules"][0]["metricsQuery"]
    for template, text in FILLED_IN.items():
        query = query.replace(template, text)
    found = {
        "vla_gate_wait_seconds_sum" + POD % "": f"5+{each_s}x20",
        "vla_gate_wait_seconds_count" + POD % "": f"100+{requests}x20",
    }
    value = {"labels": '{pod="a"}', "value": expected}
    test = {"expr": query.replace("[1m]", "[5m]"), "eval_time": "10m", "exp_samples": [value]}

    said = promtool_test(tmp_path, [{"interval": "1m", "input_series": input_series(found),
                                     "promql_expr_test": [test]}])  # fmt: skip

    assert not said


def test_the_job_fills_the_volume_of_archives(tmp_path: Path) -> None:
    claim = documents("kubernetes/base/server.yaml")["PersistentVolumeClaim"]
    pod = documents("kubernetes/models/fill.yaml")["Job"]["spec"]["template"]["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    models, store = tmp_path / "models", tmp_path / "store"
    models.mkdir()
    store.mkdir()
    (models / "vla.mar").write_bytes(b"archive")
    (models / "vla.mar.sha256").write_text("digest")
    (store / "vla.mar").write_bytes(b"old")

    script = container["args"][0].replace("/models", str(models)).replace("/store", str(store))
    subprocess.run([*container["command"], script], check=True)

    assert {file.name: file.read_bytes() for file in store.iterdir()} == {
        "vla.mar": b"archive",
        "vla.mar.sha256": b"digest",
    }


@pytest.mark.parametrize(("gpus", "profiles"), [(1, "gpu"), (3, "gpu,gpu-1,gpu-2")])
def test_one_replica_a_gpu(gpus: int, profiles: str, tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: NVIDIA H100 (UUID: x)'\n" for i in range(gpus)))
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run([DOCKER / "gpus"], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == profiles

    services = read("compose.yaml")["services"]
    started = [s for s in services.values() if set(s.get("profiles", ())) & set(profiles.split(","))]
    devices = [
        device_id
        for service in started
        for device in service.get("deploy", {})
        .get("resources", {})
        .get("reservations", {})
        .get("devices", [])
        for device_id in device["device_ids"]
    ]
    assert devices == [str(index) for index in range(gpus)]


def test_no_gpu_is_said(tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nexit 9\n")
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run([DOCKER / "gpus"], env=environment, capture_output=True, text=True, check=False)

    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("error: nvidia-smi lists no GPU here")
