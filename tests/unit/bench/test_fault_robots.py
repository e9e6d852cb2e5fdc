"""The robots of the fault table tell right answers from wrong, refused, lost and not taken ones."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from policy_server import ANSWER, Server, running_server

from bench.faults.page import Found, write
from bench.faults.records import file_of, keep, measured_on
from bench.faults.robots import Ask, Outcome, Robots, Seen
from bench.faults.table import Result, read, survived

REFUSED = json.dumps({"error": {"code": "overloaded", "field": None, "message": ""}})
RIGHT = np.array(ANSWER["actions"])


def seen_of(server: Server | None, actions: np.ndarray = RIGHT, port: int = 0) -> Seen:
    began = time.monotonic()
    ask = Ask(b"\x80", {"Content-Type": "application/msgpack"}, actions)
    with Robots(server.server_port if server else port, [ask], hz=50) as robots:
        time.sleep(0.3)
    return Seen.of(robots.outcomes, began)


def test_answers_are_compared() -> None:
    with running_server() as server:
        right, wrong = seen_of(server), seen_of(server, RIGHT + 1e-3)

    assert (set(right.kinds), right.wrong, right.again_s) == ({"200"}, 0, 0.0)
    assert wrong.wrong == wrong.kinds["200"] > 3


def test_a_refusal_is_no_loss() -> None:
    with running_server() as server:
        server.answer, server.status = REFUSED, 429
        seen = seen_of(server)

    assert (set(seen.kinds), seen.lost, seen.again_s) == ({"429 overloaded"}, 0, None)


def test_a_request_without_an_answer_is_lost() -> None:
    with running_server() as server:
        server.hang_up_on = {2}
        seen = seen_of(server)
        port = server.server_port
    gone = seen_of(None, port=port)

    assert (seen.kinds["reset"], seen.lost) == (1, 1)
    assert seen.again_s
    assert seen.again_s < 0.3
    assert (set(gone.kinds), gone.lost) == ({"no connection"}, 0)


def test_serving_again_counts_from_the_fault() -> None:
    outcomes = [
        Outcome("200", 0.0, 0.9),
        Outcome("503 unavailable", 1.0, 1.2),
        Outcome("200", 1.1, 3.5),
        Outcome("200", 3.6, 3.7),
    ]

    seen = Seen.of(outcomes, since_s=1.0)

    assert (seen.kinds, seen.again_s) == ({"200": 2, "503 unavailable": 1}, 2.5)
    assert seen.slowest_s == pytest.approx(2.4)


def test_the_page_says_what_was_lost(tmp_path: Path) -> None:
    machine = {"cpu": "a", "cores": 2, "commit": "c" * 40, "load_average": 1.5, "date": "2026-01-01"}
    lost = Seen({"200": 3, "reset": 1}, 1, 0, 2.04, 0.1)
    fine = Seen({"200": 4}, 0, 0, 0.0, 0.1)
    results = [
        Result("gate killed", "deployed", fine, "", machine),
        Result("gate killed", "alone", lost, "", machine),
        Result("disk full", "alone", None, "not provoked: no root", machine),
    ]
    write(tmp_path / "faults.md", Found(results))
    lines = (tmp_path / "faults.md").read_text().splitlines()

    assert (
        "| gate killed | 200 x 4 | 200 x 3, reset x 1; **lost 1, wrong 0**; serves again after 2.0 s |"
        in lines
    )
    assert "| disk full | - | not provoked: no root |" in lines
    assert [survived(result) for result in results] == [True, True, True]
    assert not survived(Result("gate killed", "deployed", lost, "", machine))


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    results = [
        Result("gate killed", "deployed", Seen({"200": 4}, 0, 0, 0.0, 0.1), "", measured_on()),
        Result("gate killed", "alone", None, "not provoked", measured_on()),
    ]
    for result in results:
        keep(result, file_of(tmp_path, result.way, result.fault))
    write(tmp_path / "faults.md", Found(read(tmp_path)))

    assert read(tmp_path) == results
    assert f", {os.cpu_count()} cores, load average " in (tmp_path / "faults.md").read_text()


def test_a_section_without_new_results_stays(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    page.write_text("# Faults and attacks\n\n## Faults\n\noutdated\n\n## Memory\n\nkept\n")
    machine = {"cpu": "a", "cores": 2, "commit": "c" * 40, "load_average": 1.5, "date": "2026-01-01"}
    write(page, Found([Result("disk full", "alone", None, "no root", machine)]))
    once = page.read_text()
    write(page, Found([]))

    assert "outdated" not in once
    assert once.endswith("| disk full | - | no root |\n\n## Memory\n\nkept\n")
    assert page.read_text() == once
