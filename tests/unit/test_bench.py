"""The benchmark's own parts: it sends what it says, counts what comes back, and judges what it measured."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from policy_server import ANSWER, running_server

from bench import bodies, images
from bench.alone import Alone
from bench.bodies import Target
from bench.generator import Plan, Sample, Samples
from bench.load import Latency, drive, summarise
from bench.measure import Results, Round
from bench.report import targets
from bench.served import Load

TIMING = {"queue": 2.0, "preprocess": 1.0, "inference": 5.0, "postprocess": 0.5, "batch_size": 2}
JPEG = images.jpeg(np.zeros((16, 16, 3), np.uint8), 90)


@contextlib.contextmanager
def empty_endpoint():
    with subprocess.Popen(
        [sys.executable, "-m", "bench.empty"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def pool(folder, port, count=8, body="multipart", path="/predictions/vla"):
    target = Target("127.0.0.1", port, path, (0.5, -1.0))
    made = bodies.requests(target, [JPEG], bodies.repeated(count), body)
    return bodies.write(made, folder / "pool")


def test_closed_loop_keeps_every_client_busy(tmp_path):
    with empty_endpoint() as port:
        answers = drive(Plan("127.0.0.1", port, str(pool(tmp_path, port)), 1.0, clients=8))
    assert answers.failed == 0
    assert answers.requests > 100
    assert 1.0 <= answers.elapsed_s < 3.0
    # Little's law: clients in the system = rate x latency.
    assert answers.rate_hz * answers.latency.mean_ms / 1000 == pytest.approx(8, rel=0.4)


def test_arrivals_come_at_their_rate_whatever_the_server_does(tmp_path):
    with running_server() as server:
        server.answer, server.wait_s = json.dumps({**ANSWER, "timing_ms": TIMING}), 0.2
        port = server.server_port
        answers = drive(Plan("127.0.0.1", port, str(pool(tmp_path, port)), 2.0, rate_hz=40, seed=3))
        sent = len(server.requests)
    assert answers.failed == 0
    # A closed loop of 16 clients could send no more than 2 / 0.2 x 16; Poisson: 80 +- 9.
    assert 80 - 4 * 9 <= answers.requests == sent <= 80 + 4 * 9
    assert answers.latency.p50_ms >= 200


@pytest.mark.parametrize("body", ["multipart", "msgpack"])
def test_requests_have_the_contracts_fields(tmp_path, body):
    with running_server() as server:
        server.answer = json.dumps({**ANSWER, "timing_ms": TIMING})
        port = server.server_port
        before_s = time.time()
        answers = drive(Plan("127.0.0.1", port, str(pool(tmp_path, port, body=body)), 0.3, clients=1))
        path, headers, fields = server.requests[1]
    assert path == "/predictions/vla"
    assert before_s <= float(headers["x-request-start"].removeprefix("t=")) <= time.time()
    if body == "multipart":
        assert fields == {
            "command": (None, b"lift the green block"),
            "state": (None, b"[0.5, -1.0]"),
            "image": ("image/jpeg", JPEG),
        }
    else:
        assert fields == {"command": "lift the green block", "state": [0.5, -1.0], "image": JPEG}
    assert answers.stages_ms == {"queue": 2.0, "preprocess": 1.0, "inference": 5.0, "postprocess": 0.5}
    assert answers.batch_sizes == {2: answers.requests}


def test_refusals_are_counted_and_the_load_goes_on(tmp_path):
    with running_server() as server:
        server.status, server.answer = 503, "{}"
        port = server.server_port
        answers = drive(Plan("127.0.0.1", port, str(pool(tmp_path, port)), 0.5, clients=2))
    assert answers.failed == answers.requests > 2
    assert answers.rate_hz == 0


def test_pictures_are_all_different_and_of_their_size():
    kind = next(kind for kind in images.KINDS if kind.name == "30KB")
    files = images.jpegs(kind, 24)
    assert len(set(files)) == 24
    assert 24_000 < np.mean([len(file) for file in files]) < 36_000


def test_commands_of_the_uncached_load_are_all_different():
    assert len({*bodies.all_different(1100, 1), *bodies.all_different(1100, 2)}) == 2200
    assert len(set(bodies.repeated(1100))) == len(bodies.COMMANDS)


def loaded(rate_hz):
    """A load of this rate, from samples."""
    samples = [Sample(0.0, 0.1, 200, b"")] * round(rate_hz * 2)
    return Load(summarise(Samples(samples, 2.0, 0.2, 0)), 1.0, 1.0)


def results(closed, alone_hz=100.0, served_hz=95.0, uncached_hz=50.0, artifact_s=0.1):
    rounds = [Round(alone_hz, loaded(served_hz), loaded(uncached_hz))]
    curve = {2**index: loaded(rate) for index, rate in enumerate(closed)}
    latency = Latency.of([artifact_s])
    return Results({}, Alone(latency, latency, {}, {}), [], curve, {}, rounds, {}, {})


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


def test_robots_are_counted_at_the_highest_rate_that_kept_the_limit():
    def at(rate_hz, latency_s, status=200):
        samples = [Sample(0.0, latency_s, status, b"")] * rate_hz
        return Load(summarise(Samples(samples, 1.0, 0.1, 0)), 1.0, 1.0)

    opened = {10.0: at(10, 0.02), 20.0: at(20, 0.04), 30.0: at(30, 0.1), 40.0: at(40, 0.01, 503)}
    measured = dataclasses.replace(results([50]), open=opened)
    assert (measured.robots(50), measured.robots(200), measured.robots(5)) == (2.0, 3.0, 0.0)


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
    measured = report["results"][0]
    assert [load["answers"]["failed"] for load in measured["closed"].values()] == [0, 0]
    assert {lone["body"] for lone in measured["lone"]} == {"multipart", "msgpack"}
    assert (
        report["ceilings"]["generator"]["rate_hz"]
        > report["ceilings"]["front_end"]["msgpack"]["answers"]["rate_hz"]
    )
    assert (tmp_path / "report.md").read_text() in run.stdout
    assert (tmp_path / "clip_tiny.png").stat().st_size > 10_000
