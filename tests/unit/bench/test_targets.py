"""The benchmark judges what it measured, and writes all of it."""

import json
import subprocess
import sys

import pytest

from bench.alone import Alone, Described
from bench.figures import Results, Round
from bench.generator import Sample, Samples
from bench.load import Latency, summarise
from bench.report import targets
from bench.served import Load


def loaded(rate_hz):
    """A load of this rate, from samples."""
    samples = [Sample(0.0, 0.1, 200, b"")] * round(rate_hz * 2)
    return Load(summarise(Samples(samples, 2.0, 0.2, 0)), 1.0, 1.0)


def results(closed, alone_hz=100.0, served_hz=95.0, uncached_hz=50.0, artifact_s=0.1):
    rounds = [Round(alone_hz, loaded(served_hz), loaded(uncached_hz))]
    curve = {2**index: loaded(rate) for index, rate in enumerate(closed)}
    latency = Latency.of([artifact_s])
    policy = Described("tiny", 96, "float32", 4, "cpu", 2)
    return Results(policy, Alone(latency, latency, {}, {}), [], curve, {}, rounds, {}, {})


@pytest.mark.parametrize(
    ("measured", "met"),
    [
        (results([50, 90, 88]), [True, True, True]),
        (results([50, 90, 80]), [False, True, True]),  # 11 % under the peak
        (results([50, 90], served_hz=89), [True, False, True]),
        (results([50, 90], uncached_hz=80), [True, True, False]),
        (results([50, 90], served_hz=10, artifact_s=0.001), [True]),  # a small policy
    ],
)
def test_targets_are_judged(measured, met):
    assert [target.met for target in targets(measured)] == met


@pytest.mark.slow
def test_the_quick_run_writes_a_whole_report(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--output", tmp_path],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["measured"]
    measured = found["results"][0]
    assert [load["answers"]["failed"] for load in measured["closed"].values()] == [0, 0]
    assert {lone["body"] for lone in measured["lone"]} == {"multipart", "msgpack"}
    assert (
        found["ceilings"]["generator"]["rate_hz"]
        > found["ceilings"]["front_end"]["msgpack"]["answers"]["rate_hz"]
    )
    assert (tmp_path / "report.md").read_text() in run.stdout
    assert (tmp_path / "report.html").read_text().count("<table>") == 7
