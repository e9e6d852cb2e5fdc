"""Plans of fleets: the curve that measurements make, the simulated replica, the fleet, the command."""

import math
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from loadtest import tiers
from loadtest.plan.command import main
from loadtest.plan.curve import Curve, CurveError, Loop, costs_ms, smoothed, spread
from loadtest.plan.deployment import (
    Autoscaler,
    Response,
    Setting,
    Site,
    fleet,
    growth,
    lost_host,
    response,
)
from loadtest.plan.replica import Robots, carried, simulate
from server.gate.company import WAIT_S

ROOT = Path(__file__).parents[3]
TIER = msgspec.structs.replace(tiers.select("small"), duration_s=5.0)


def loop(batches: dict[int, tuple[int, float]], **changes: float) -> Loop:
    """Return a loop of batches: size -> their count, and the mean duration of one [ms]."""
    counts = {size: count for size, (count, _) in batches.items()}
    taken_s = {size: count * mean / 1000 for size, (count, mean) in batches.items()}
    facts = {"clients": 1, "rate_hz": 1.0, "p50_ms": 1.0, "p95_ms": 1.0, "mean_ms": 1.0, "wait_ms": 0.0}
    requests = sum(size * count for size, count in counts.items())
    return msgspec.convert(
        facts | {"requests": requests, "relative": [], "bystanders": None} | changes
        | {"batches": counts, "batches_s": taken_s},
        Loop,
    )  # fmt: skip


def curve(batch_ms: dict[int, float], **changes: object) -> Curve:
    facts = {"policy": "p", "host": {}, "measured": "", "workers": 1, "largest": 32, "waiting": 128}
    costs = {"spread": [1.0, 1.0], "request_ms": 0.0, "answer_ms": 0.0, "start_s": None, "loops": []}
    return msgspec.convert(facts | costs | {"batch_ms": batch_ms} | changes, Curve)


def test_larger_batches_never_take_less_than_smaller_ones() -> None:
    found = smoothed(
        [loop({1: (30, 10.0), 2: (10, 20.0), 3: (10, 16.0)}), loop({1: (10, 14.0), 8: (5, 40.0)})]
    )

    assert found == pytest.approx({1: 11.0, 2: 18.0, 3: 18.0, 8: 40.0})


def test_server_that_counts_no_batches_makes_no_curve() -> None:
    with pytest.raises(CurveError, match="counted no batch"):
        smoothed([loop({})])


def test_curve_goes_on_beyond_the_largest_measured_batch() -> None:
    measured = curve({1: 10.0, 5: 30.0})

    assert [measured.of(size) for size in (1, 3, 5, 7)] == pytest.approx([10.0, 20.0, 30.0, 40.0])
    assert curve({4: 20.0}).of(8) == pytest.approx(40.0)
    assert msgspec.structs.replace(measured, workers=2).rate_hz(5) == pytest.approx(2 * 5 / 0.03)


def test_what_a_request_costs_besides_is_read_off_the_loops() -> None:
    # 3 ms fixed, and 0.5 ms for each answer before its own: 0, 3.5 and 7.5 of them in the mean.
    loops = [loop({n: (9, 10.0)}, mean_ms=15.0 + 0.5 * (n - 1) / 2, wait_ms=2.0) for n in (1, 8, 16)]

    assert costs_ms(loops) == pytest.approx((3.0, 0.5))
    assert costs_ms(loops[:1]) == pytest.approx((3.0, 0.0))


def test_spread_has_the_mean_of_its_durations() -> None:
    found = spread([loop({1: (1, 1.0)}, relative=[0.5, 1.0, 1.0, 1.5])])  # type: ignore[arg-type]

    assert found[0] < 0.6
    assert found[-1] > 1.4
    assert sum(found) / len(found) == pytest.approx(1.0, abs=0.02)


def test_curve_survives_its_file_and_others_are_refused(tmp_path: Path) -> None:
    written = curve({1: 10.0, 2: 15.0})
    written.save(tmp_path / "curve.json")

    assert Curve.read(tmp_path / "curve.json") == written
    with pytest.raises(CurveError, match="measure one with"):
        Curve.read(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"policy": "p"}')
    with pytest.raises(CurveError, match="is no curve"):
        Curve.read(tmp_path / "other.json")


def test_lone_robot_waits_for_its_request_and_a_batch_of_one() -> None:
    found = simulate(curve({1: 12.0, 32: 12.0}, request_ms=3.0), TIER, Robots(1, 10.0))

    assert found.verdict == "kept"
    assert (found.p50_ms, found.p95_ms) == pytest.approx((15.0, 15.0))
    assert (found.misses, found.wait_ms) == pytest.approx((0.0, 0.0))
    assert found.busy == pytest.approx(0.12, abs=0.005)


def test_robots_in_phase_share_a_batch_behind_the_first() -> None:
    # The first is handed over alone, the others wait for it and are one batch; its answers leave 1 ms apart.
    found = simulate(curve({1: 10.0, 32: 10.0}, answer_ms=1.0), TIER, Robots(4, 10.0, in_phase=1.0))

    assert found.p50_ms == pytest.approx(20.0)
    assert found.p95_ms == pytest.approx(22.0)
    # 7.5 in the mean, and now and then the gate's wait for company.
    assert 7.4 < found.wait_ms < 7.5 + WAIT_S * 1000


def test_second_worker_takes_what_the_first_one_leaves() -> None:
    both = simulate(curve({1: 10.0, 32: 10.0}, workers=2), TIER, Robots(2, 10.0, in_phase=1.0))

    assert both.p95_ms == pytest.approx(10.0)


def test_batches_are_bounded_and_late_answers_are_misses() -> None:
    slow = simulate(curve({1: 60.0}, largest=1), TIER, Robots(4, 10.0, in_phase=1.0))

    # One of two at a time is answered within 100 ms, the rest are given up.
    assert slow.verdict == "missed"
    assert set(slow.missed) == {"latency p95", "deadline misses"}
    assert slow.misses > 0.5


def test_full_queue_refuses() -> None:
    found = simulate(curve({1: 60.0}, largest=1, waiting=1), TIER, Robots(8, 10.0, in_phase=1.0))

    assert "failures" in found.missed


def test_twice_as_fast_carries_twice_the_robots() -> None:
    slow, fast = (carried(curve({1: one, 32: 32 * one}), TIER) for one in (6.0, 3.0))

    # One request takes 6 ms in any batch: at most 1 / (10 Hz * 6 ms) robots.
    assert 10 <= slow <= 16
    assert fast == pytest.approx(2 * slow, rel=0.2)
    assert carried(curve({1: 60.0}), TIER) == 0


RESPONSE = Response([0.0, 10.0, 20.0], [0.0, 0.0, 1.0], [0.0, 10.0, 200.0], [10.0] * 3, [0.0, 0.5, 1.0])


def test_fleet_counts_replicas_hosts_gpus_and_cost() -> None:
    site = Site(replicas_per_host=2, gpus_per_replica=1, spare_hosts=1, replica_cost=0.5)

    plan = fleet(95, 10, RESPONSE, site)

    assert (plan.needed, plan.replicas, plan.hosts, plan.gpus, plan.cost) == (10, 12, 6, 12, 6.0)
    assert plan.load_without == pytest.approx(9.5)
    assert (plan.misses, plan.misses_without) == (0.0, 0.0)


def setting(**changes: float) -> Setting:
    return Setting(RESPONSE, TIER, Site(**changes), Autoscaler())  # pyright: ignore[reportArgumentType]


def test_lost_host_costs_what_is_sent_to_it_until_it_is_noticed() -> None:
    spare = lost_host(fleet(95, 10, RESPONSE, Site()), setting(noticed_s=4.0))
    tight = lost_host(fleet(95, 10, RESPONSE, Site(spare_hosts=0)), setting(noticed_s=4.0))

    # One of eleven replicas, 950 requests a second, for 4 s.
    assert spare.lost_steps == pytest.approx(4 * 950 / 11)
    assert spare.recovered_s == 4.0
    # The nine that are left have 10.6 robots each: some answers are late until the host is back.
    assert tight.recovered_s > 300
    assert tight.lost_steps > 10 * spare.lost_steps


def test_autoscaler_that_starts_pods_faster_loses_less() -> None:
    plan = fleet(100, 10, RESPONSE, Site(spare_hosts=0))

    fast, slow = (growth(plan, setting(start_s=start_s)) for start_s in (10.0, 100.0))

    assert 10 < fast.recovered_s < slow.recovered_s < math.inf
    assert fast.lost_steps < slow.lost_steps
    assert fast.seconds[-1].ready >= 10


def test_response_rises_with_the_load() -> None:
    found = response(curve({1: 6.0, 32: 192.0}), TIER, 12)

    assert found.robots == sorted(found.robots)
    assert found.misses_at(6) < 0.01
    assert found.misses_at(36) > 0.5
    assert found.wait_s_at(3) < found.wait_s_at(12) < found.wait_s_at(24)


def test_plan_is_written_with_its_table_and_plots(tmp_path: Path) -> None:
    curve({1: 8.0, 32: 130.0}, loops=[loop({1: (30, 8.0)})]).save(tmp_path / "curve.json")
    command = [sys.executable, "-m", "loadtest", "plan", "--curve", f"{tmp_path}/curve.json"]
    command += ["--robots", "500", "--report", f"{tmp_path}/plan"]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert ended.returncode == 0, ended.stderr
    assert "\n# Plan: 500 robots at 10 Hz in tier small\n" in "\n" + ended.stdout
    written = msgspec.json.decode((tmp_path / "plan.json").read_bytes())
    assert written["chosen"]["needed"] == math.ceil(500 / written["chosen"]["carried"])
    assert [one["robots"] for one in written["fleets"]] == [100, 300, 500, 1000, 3000, 10000, 30000, 100000]
    assert (tmp_path / "plan.html").read_text().count("<svg") == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--curve", "none.json"], "error: no curve at none.json: measure one with"),
        (["--in-phase", "2"], "--in-phase is a share from 0 to 1, got 2.0"),
        (["--robots", "0"], "--robots must be above 0, got 0"),
        (["--tier", "tiny"], "has no tier 'tiny'"),
    ],
)
def test_wrong_plan_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(options)
    except SystemExit as ended:  # of the command line's own
        status = ended.code

    assert status == 2
    assert said in re.sub(r"[│\s]+", " ", capsys.readouterr().err)
