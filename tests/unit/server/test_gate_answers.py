"""What the gate answers by itself, what it counts, and what becomes of TorchServe's answers."""

import json
import time

import msgspec
import pytest

from server.gate import refusal
from server.gate.batch import alone
from server.gate.counters import BUCKETS_S, CODES, Counters, Histogram, gauge
from server.gate.head import Head
from server.gate.refusal import JSON, Answer, Refusal
from server.gate.routes import check, is_model, model_of, of_torchserve, prediction


@pytest.mark.parametrize(
    ("error", "status", "code", "message", "field"),
    [
        (refusal.bad_request("no"), 400, "bad_request", "no", None),
        (refusal.malformed("no"), 400, "malformed_body", "no", None),
        (refusal.malformed("no", "state"), 400, "malformed_body", "no", "state"),
        (refusal.too_large(4 << 20), 413, "too_large", "a request has at most 4 MiB", None),
        (refusal.expired(120.5), 504, "deadline_expired", "no answer within 120.5 ms", "deadline_ms"),
        (
            refusal.not_found(),
            404,
            "not_found",
            "no such path, model or version; send POST /predictions/<model>",
            None,
        ),
        (refusal.UNAVAILABLE, 502, "unavailable", "TorchServe gave no answer", None),
        (refusal.FAILED, 500, "server_error", "the server failed on this request", None),
        (refusal.TIMEOUT, 504, "timeout", "the server did not answer in time", None),
        (refusal.SLOW, 408, "slow_request", "the request did not arrive in time", None),
    ],
)
def test_refusals(error: Refusal, status: int, code: str, message: str, field: str | None) -> None:
    answer = error.answer("id")

    assert (answer.status, answer.kind, str(error)) == (status, b"application/json", message)
    assert json.loads(answer.body) == {
        "error": {"code": code, "field": field, "message": message},
        "request_id": "id",
    }
    assert answer.headers == ((b"request-id", b"id"),)
    assert code in CODES


@pytest.mark.parametrize(
    ("error", "status", "code", "header"),
    [
        (refusal.OVERLOADED, 429, "overloaded", (b"retry-after", b"1")),
        (refusal.NOT_READY, 503, "not_ready", (b"retry-after", b"1")),
        (refusal.wrong_method(), 405, "method_not_allowed", (b"allow", b"POST")),
    ],
)
def test_refusals_that_say_what_to_do(
    error: Refusal, status: int, code: str, header: tuple[bytes, bytes]
) -> None:
    answer = error.answer("")

    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
    assert answer.headers == ((b"request-id", b""), header)
    assert code in CODES


def test_a_histogram_counts_what_is_at_most_its_bucket() -> None:
    histogram = Histogram()
    for duration_s in (0.0001, 0.001, 0.0011, 10.0, 11.0):
        histogram.add(duration_s)

    lines = histogram.lines("h", "help")
    assert lines[:2] == ["# HELP h help", "# TYPE h histogram"]
    assert lines[2:6] == [
        'h_bucket{le="0.0005"} 1',
        'h_bucket{le="0.001"} 2',
        'h_bucket{le="0.002"} 3',
        'h_bucket{le="0.003"} 3',
    ]
    assert lines[-4:] == ['h_bucket{le="10.0"} 4', 'h_bucket{le="+Inf"} 5', "h_sum 21.002200", "h_count 5"]
    assert len(lines) == 2 + len(BUCKETS_S) + 1 + 2
    assert list(BUCKETS_S) == sorted(BUCKETS_S)


def test_all_counters_are_there_from_the_start() -> None:
    counters = Counters()
    counters.answers[4] += 2
    counters.refusals["overloaded"] += 3
    text = counters.text().decode()
    fresh = Counters().text().decode().splitlines()

    assert [line for line in fresh if line.startswith(("vla_gate_answers", "vla_gate_abandoned"))] == [
        'vla_gate_answers_total{status="2xx"} 0',
        'vla_gate_answers_total{status="4xx"} 0',
        'vla_gate_answers_total{status="5xx"} 0',
        'vla_gate_abandoned_total{place="computing"} 0',
        'vla_gate_abandoned_total{place="waiting"} 0',
    ]
    assert 'vla_gate_answers_total{status="2xx"} 0\nvla_gate_answers_total{status="4xx"} 2\n' in text
    assert 'vla_gate_answers_total{status="5xx"} 0\n' in text
    assert 'vla_gate_refusals_total{code="overloaded"} 3\n' in text
    for code in set(CODES) - {"overloaded"}:
        assert f'vla_gate_refusals_total{{code="{code}"}} 0\n' in text
    for line in (
        'vla_gate_abandoned_total{place="computing"} 0',
        'vla_gate_abandoned_total{place="waiting"} 0',
        "# TYPE vla_gate_answers_total counter",
        "# HELP vla_gate_answers_total Answers that left the gate.",
        "# HELP vla_gate_refusals_total Requests that the gate answered itself.",
        "vla_gate_request_seconds_count 0",
        "vla_gate_wait_seconds_count 0",
    ):
        assert f"{line}\n" in text
    assert text.endswith("\n")
    assert gauge("g", "help", 2) == b"# HELP g help\n# TYPE g gauge\ng 2\n"


PATHS = {
    "/predictions/vla": "vla",
    "/explanations/a_B.c-9": "a_B.c-9",
    "/predictions/vla/1.0": "vla",
    "/predictions/vla/1.0/x": "",
    "/predictions/": "",
    "/predictions/a%20b": "",
    "/models/vla": "",
    "/x/predictions/vla": "",
    "/predictions/vla\n": "",
}


@pytest.mark.parametrize(("path", "model"), PATHS.items())
def test_paths_of_models(path: str, model: str) -> None:
    assert (model_of(path), is_model(path)) == (model, bool(model))


def head(
    method: str = "POST", path: str = "/predictions/vla", content_type: str = "", **headers: str
) -> Head:
    found = {"content-type": content_type} if content_type else {}
    return Head(
        method,
        path,
        found | {name.replace("_", "-"): value for name, value in headers.items()},
        0,
        keep_alive=True,
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predictions/vla", 405),
        ("HEAD", "/predictions/vla", 405),
        ("HEAD", "/nothing", 405),
        ("TRACE", "/health/live", 405),
        ("POST", "/openapi.json", 405),
        ("POST", "/nothing", 404),
        ("DELETE", "/models/vla", 404),
    ],
)
def test_heads_that_go_no_further(method: str, path: str, status: int) -> None:
    with pytest.raises(Refusal) as caught:
        check(head(method, path))
    assert caught.value.status == status


def test_a_request_that_may_go_on() -> None:
    check(head())


FORM = "multipart/form-data; boundary=b"
BODY = b'--b\r\nContent-Disposition: form-data; name="deadline_ms"\r\n\r\n5000\r\n--b--'


def sent(
    content_type: str, body: bytes, ours: set[str], **headers: str
) -> tuple[list[str], bytes, float | None]:
    asked = prediction(head(content_type=content_type, **headers), body, time.time(), ours)
    lines, _, data = alone(asked).partition(b"\r\n\r\n")
    return lines.decode().split("\r\n"), data, asked.deadline_ms


def test_a_form_for_our_worker_becomes_messagepack() -> None:
    lines, data, deadline_ms = sent(FORM, BODY, {"vla"}, accept="application/msgpack", x_request_id="a b")

    assert lines[:2] == ["POST /predictions/vla HTTP/1.1", "Host: torchserve"]
    assert lines[2].startswith("X-Request-Start: t=")
    assert abs(float(lines[2].partition("=")[2]) - time.time()) < 5
    assert lines[3:] == [
        "X-Request-Id: ab",
        "Content-Type: application/msgpack",
        "Accept: application/msgpack",
        f"Content-Length: {len(data)}",
    ]
    assert msgspec.msgpack.decode(data) == {"deadline_ms": b"5000"}
    assert deadline_ms == 5000


def test_a_form_for_another_worker_stays_as_it_is() -> None:
    lines, data, deadline_ms = sent(FORM, BODY, {"other"})

    assert lines[3:] == [f"Content-Type: {FORM}", f"Content-Length: {len(BODY)}"]
    assert (data, deadline_ms) == (BODY, 5000)


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_what_our_worker_reads_goes_on_without_parameters(kind: str) -> None:
    lines, data, deadline_ms = sent(f"{kind}; charset=utf-8", b"{}", {"vla"})

    assert lines[3:] == [f"Content-Type: {kind}", "Content-Length: 2"]
    assert (data, deadline_ms) == (b"{}", None)


def test_requests_that_are_refused_before_torchserve() -> None:
    for content_type, body, ours, status in (
        ("text/plain", b"x", {"vla"}, 415),
        ("", b"x", {"vla"}, 415),
        (FORM, b"x", set[str](), 400),
        ("multipart/form-data", BODY, set[str](), 400),
        ("application/x-www-form-urlencoded", b"a=1&" * 64, set[str](), 400),
    ):
        with pytest.raises(Refusal) as caught:
            sent(content_type, body, ours)
        assert caught.value.status == status
    assert sent("text/plain", b"x", set())[1] == b"x"


@pytest.mark.parametrize(("age_s", "late"), [(0.05, False), (0.2, True)])
def test_a_deadline_that_is_over_is_refused(age_s: float, late: bool) -> None:  # noqa: FBT001
    asked = head(content_type="application/json"), b'{"deadline_ms": 100}', time.time() - age_s, set[str]()
    if late:
        with pytest.raises(Refusal) as caught:
            prediction(*asked)
        assert (caught.value.status, caught.value.message) == (504, "no answer within 100 ms")
        assert caught.value.field == "deadline_ms"
    else:
        assert prediction(*asked).deadline_ms == 100


def torchserves(status: int, message: str = "no") -> Answer:
    return Answer(status, JSON, json.dumps({"code": status, "type": "T", "message": message}).encode())


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, JSON, b"{}"),
        Answer(399, JSON, b""),
        Answer(503, JSON, b'{"error": {}}'),
        Answer(500, b"text/html", b"<p>of a model"),
        Answer(400, JSON, b'{"code": 400, "type": "T"}'),
        Answer(400, JSON, b'[{"code": 1, "type": 2, "message": 3}]'),
    ],
)
def test_answers_of_a_model_are_handed_on(answer: Answer) -> None:
    assert of_torchserve(answer) is answer


FULL = 'Model "vla" has no worker to serve inference request. Please use scale workers API to add workers.'


@pytest.mark.parametrize(
    ("answer", "status", "code", "message"),
    [
        (None, 502, "unavailable", "TorchServe gave no answer"),
        (torchserves(503, FULL), 429, "overloaded", "the queue is full; wait as long as Retry-After says"),
        (torchserves(500, FULL), 500, "server_error", "the server failed on this request"),
        (torchserves(503), 503, "server_error", "the server failed on this request"),
        (
            torchserves(500, "Worker died."),
            500,
            "server_error",
            "Worker died while it had this request",
        ),
        (torchserves(404), 404, "not_found", refusal.not_found().message),
        (torchserves(400), 400, "bad_request", "TorchServe can't read this request"),
        (torchserves(499), 499, "bad_request", "TorchServe can't read this request"),
        (Answer(400, b"", b""), 400, "bad_request", "TorchServe can't read this request"),
        (Answer(500, b"", b""), 500, "server_error", "the server failed on this request"),
    ],
)
def test_torchserves_own_errors_become_the_contracts(
    answer: Answer | None, status: int, code: str, message: str
) -> None:
    found = of_torchserve(answer)

    assert isinstance(found, Refusal)
    assert (found.status, found.code, found.message) == (status, code, message)
