"""The benchmark's load: it sends what it says and counts what comes back."""

import contextlib
import json
import subprocess
import sys
import time

import pytest
from policy_server import ANSWER, running_server

from bench import bodies
from bench.bodies import Target
from bench.generator import Plan
from bench.load import drive
from loadtest import corpus
from loadtest.body import Body
from loadtest.corpus import commands

TIMING = {"queue": 2.0, "preprocess": 1.0, "inference": 5.0, "postprocess": 0.5, "batch_size": 2}
JPEG = corpus.pictures(1, ((16, 16),), seed=0)[0]
TEXT = "text/plain;"


@contextlib.contextmanager
def empty_endpoint():
    with subprocess.Popen(
        [sys.executable, "-m", "bench.empty"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def pool(folder, port, count=8, body: Body = "multipart", path="/predictions/vla"):
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
            "command": (TEXT, bodies.repeated(2)[1].encode()),
            "state": (TEXT, b"[0.5,-1.0]"),
            "image": ("image/jpeg", JPEG),
        }
    else:
        assert fields == {"command": bodies.repeated(2)[1], "state": [0.5, -1.0], "image": JPEG}
    assert answers.stages_ms == {"queue": 2.0, "preprocess": 1.0, "inference": 5.0, "postprocess": 0.5}
    assert answers.batch_sizes == {2: answers.requests}


def test_refusals_are_counted_and_the_load_goes_on(tmp_path):
    with running_server() as server:
        server.status, server.answer = 503, "{}"
        port = server.server_port
        answers = drive(Plan("127.0.0.1", port, str(pool(tmp_path, port)), 0.5, clients=2))
    assert answers.failed == answers.requests > 2
    assert answers.rate_hz == 0


def test_commands_of_the_uncached_load_are_all_different():
    assert len({*bodies.all_different(1100, 1), *bodies.all_different(1100, 2)}) == 2200
    assert len(set(bodies.repeated(1100))) == len(commands())
