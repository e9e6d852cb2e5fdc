"""What config.properties and log4j2.xml close and quieten, seen from outside."""

import requests

from server.process import TorchServe


def test_no_model_can_be_registered(echo_server: TorchServe) -> None:
    answer = requests.post(f"{echo_server.management_url}/models", params={"url": "echo.mar"}, timeout=10)

    assert answer.status_code == 405


def test_metrics_count_requests(echo_server: TorchServe) -> None:
    requests.post(echo_server.predictions_url, data={"x": "1"}, timeout=10)

    assert (
        'ts_inference_requests_total{model_name="echo"'
        in requests.get(echo_server.metrics_url, timeout=10).text
    )


def test_request_over_4_mib_is_refused(echo_server: TorchServe) -> None:
    answer = requests.post(echo_server.predictions_url, data=b"x" * (4 << 20) + b"x", timeout=10)

    assert answer.status_code == 413


def test_requests_leave_no_line_in_the_log(echo_server: TorchServe) -> None:
    before = echo_server.log_tail()
    for _ in range(5):
        assert requests.post(echo_server.predictions_url, data={"x": "1"}, timeout=10).ok

    assert echo_server.log_tail() == before
