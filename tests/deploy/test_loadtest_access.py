"""The load test through the real proxy: by key, and by mutual TLS."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from test_proxy import make_certificates

from bench.faults.processes import ROOT, Running, proxy

TIER: dict[str, Any] = {
    "use": "tests",
    "robots": 2,
    "control_hz": 5,
    "ramp_s": 0,
    "warm_up_s": 1,
    "duration_s": 3,
    "latency_ms": {"p50": 3000},
    "max_failures": 0,
    "deadline_ms": 6000,
    "max_deadline_misses": 1,
    "memory_gib": 4,
    "adversaries": 1,
}


def load_test(
    url: str, served: Running, archive: Path, folder: Path, *options: object, **environment: str
) -> tuple[subprocess.CompletedProcess[str], Any]:
    (folder / "tiers.yaml").write_text(yaml.safe_dump({"lenient": TIER}))
    command = [sys.executable, "-m", "loadtest", "--tier", "lenient", "--tiers", folder / "tiers.yaml"]
    command += ["--url", url, "--policy", archive, "--report", folder / "report", *options]
    command += ["--management-url", f"http://127.0.0.1:{served.torchserve_port + 1}"]
    command += ["--metrics-url", f"http://127.0.0.1:{served.torchserve_port + 2}/metrics"]
    run = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = folder / "report.json"
    return run, json.loads(report.read_bytes()) if report.is_file() else None


def test_a_key_lets_the_robots_in(
    policy_replica: Running, policy_archive: Path, folder: Path, tmp_path: Path
) -> None:
    keys = folder / "loadtest_keys"
    keys.write_text("k-2 robots\n")
    with proxy(folder, policy_replica.port, AUTH="keys", KEYS_FILE=keys) as running:
        given = (running.url, policy_replica, policy_archive, tmp_path)
        outside, _ = load_test(*given)
        by_environment, report = load_test(*given, VLA_API_KEY="k-2")
        by_header, _ = load_test(*given, "--header", "Authorization: Bearer k-2")

    assert outside.returncode == 3, outside.stdout + outside.stderr
    assert f"error: {running.predictions_url} lets nobody in: 401 unauthorized: send your" in outside.stderr
    assert by_environment.returncode == 0, by_environment.stdout + by_environment.stderr
    assert report["requests"]["adversary"] > 0
    assert report["judgement"]["errors"] == {}
    assert "k-2" not in (tmp_path / "report.json").read_text()
    assert by_header.returncode == 0, by_header.stdout + by_header.stderr


def test_a_certificate_lets_the_robots_in(
    policy_replica: Running, policy_archive: Path, folder: Path, tmp_path: Path
) -> None:
    tls = folder / "loadtest_certificates"
    make_certificates(tls)
    own = ("--cert", tls / "robot.crt", "--key", tls / "robot.key")
    with proxy(folder, policy_replica.port, AUTH="mtls", TLS_FOLDER=tls) as running:
        given = (f"https://localhost:{running.port}", policy_replica, policy_archive, tmp_path)
        let_in, report = load_test(*given, "--ca", tls / "ca.crt", *own)
        untrusting, _ = load_test(*given, *own)

    assert let_in.returncode == 0, let_in.stdout + let_in.stderr
    assert report["judgement"]["errors"] == {}
    assert untrusting.returncode == 3, untrusting.stdout + untrusting.stderr
    assert "CERTIFICATE_VERIFY_FAILED" in untrusting.stderr
