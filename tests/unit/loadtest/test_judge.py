"""The verdict, exactly: percentiles of raw samples, promises, outages, and when nothing can be judged."""

import msgspec
import pytest

from loadtest.judge import GIB, Judgement, Promise, find_outages, judge, percentile
from loadtest.samples import CLOSED, EXPIRED, REFUSED, WRONG, Beat, Recording, Sample
from loadtest.tiers import Tier

READY_S = 1_000.0
# Where the measurement of TIER begins and ends.
BEGIN_S, END_S = 1_005.0, 1_015.0
TIER = Tier(
    use="tests",
    robots=2,
    control_hz=10,
    ramp_s=1,
    warm_up_s=5,
    duration_s=10,
    latency_ms={"p95": 50},
    max_failures=0.01,
    deadline_ms=100,
    max_deadline_misses=0.02,
    memory_gib=4,
)
CALM = [Beat(BEGIN_S + i, 0.2) for i in range(10)]


def asked(count: int = 100, latency_ms: float = 20.0, **changes: object) -> list[Sample]:
    """Requests spread evenly over the measurement."""
    sample = Sample("robot", BEGIN_S, 0.5, latency_ms, "ok", batch=1)
    times = (BEGIN_S + 10 * i / count for i in range(count))
    return [msgspec.structs.replace(sample, due_s=due, **changes) for due in times]


def judged(
    samples: list[Sample], beats: list[Beat] = CALM, tier: Tier = TIER, memory: float = 1.0
) -> Judgement:
    return judge(Recording(READY_S, samples, beats), tier, [memory * GIB])


def promise(judgement: Judgement, name: str) -> Promise:
    return next(p for p in judgement.promises if p.name == name)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 50, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 3.0, 2.0, 1.0], 50, 2.0),
        ([float(i) for i in range(1, 101)], 95, 95.0),
        ([float(i) for i in range(1, 101)], 7, 7.0),
        ([float(i) for i in range(1, 101)], 99.5, 100.0),
        ([float(i) for i in range(1, 1001)], 99.9, 999.0),
        ([49.94, 49.96], 95, 49.96),
    ],
)
def test_percentile_is_a_value_that_was_measured(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no percentile of no values"):
        percentile([], 50)


def test_tier_is_kept() -> None:
    judgement = judged(asked())

    assert judgement == Judgement(
        promises=[
            Promise("latency p95", "under 50 ms", "20.0 ms", "kept"),
            Promise("deadline misses", "at most 2.00%", "0.00% of 100 steps", "kept"),
            Promise("wrong answers", "none", "0", "kept"),
            Promise("failures", "at most 1.00%", "0.00% of 100 requests", "kept"),
            Promise("outages", "none", "none", "kept"),
            Promise("memory", "at most 4 GiB", "1.00 GiB", "kept"),
        ],
        doubts=[],
        outages=[],
        errors={},
        examples={},
    )
    assert judgement.verdict == "kept"


def test_bound_itself_is_missed() -> None:
    assert judged(asked(latency_ms=49.999)).verdict == "kept"
    assert judged(asked(latency_ms=50.0)).missed == ["latency p95"]


def test_five_slow_of_a_hundred_are_inside_p95_and_six_are_not() -> None:
    assert judged(asked(95) + asked(5, latency_ms=90)).missed == []
    assert judged(asked(94) + asked(6, latency_ms=90)).missed == ["latency p95"]


def test_warm_up_and_what_follows_do_not_count() -> None:
    before = Sample("robot", BEGIN_S - 0.001, 0, 900, "ok")
    after = Sample("robot", END_S, 0, 900, REFUSED)

    assert judged([before, *asked(), after]) == judged(asked())


def test_latency_is_of_right_answers_only() -> None:
    judgement = judged(asked(1000) + asked(5, latency_ms=3000, outcome="503 policy_failed"))

    assert promise(judgement, "latency p95").measured == "20.0 ms"
    assert promise(judgement, "failures") == Promise(
        "failures", "at most 1.00%", "0.50% of 1005 requests", "kept"
    )
    assert judgement.errors == {"503 policy_failed": 5}


def test_too_few_answers_leave_a_percentile_open() -> None:
    assert promise(judged(asked(40)), "latency p95").verdict == "kept"
    assert promise(judged(asked(39)), "latency p95") == Promise(
        "latency p95", "under 50 ms", "only 39 right answers", "not judged"
    )
    assert judged(asked(39)).verdict == "not judged"


def test_deadline_misses_are_late_expired_and_skipped_steps() -> None:
    samples = asked(96) + asked(1, latency_ms=100.5) + asked(1, outcome=EXPIRED) + asked(1, skipped=2)
    judgement = judged(samples)

    assert promise(judgement, "deadline misses") == Promise(
        "deadline misses", "at most 2.00%", "3.96% of 101 steps", "missed"
    )
    assert judgement.missed == ["deadline misses"]
    assert promise(judgement, "failures").measured == "0.00% of 99 requests"


def test_one_wrong_answer_misses_the_tier() -> None:
    wrong = asked(1, outcome=WRONG + "shape", detail="actions have shape [8, 3], expected [8, 4]")
    judgement = judged(asked(999) + wrong)

    assert judgement.missed == ["wrong answers"]
    assert promise(judgement, "wrong answers").measured == "1 (1 shape)"
    assert judgement.examples == {"wrong answer: shape": "actions have shape [8, 3], expected [8, 4]"}


def test_what_was_wrong_before_the_load_misses_the_tier() -> None:
    findings = ["9 different requests are answered by the same actions"]

    judgement = judge(Recording(READY_S, asked(), CALM), TIER, [GIB], findings)

    assert judgement.missed == ["wrong answers"]
    assert promise(judgement, "wrong answers").measured == "0, and 1 before the load"
    assert judgement.doubts == [f"before the load: {findings[0]}"]


@pytest.mark.parametrize(
    ("latency_ms", "company", "verdict"),
    [(20, 0.0, "kept"), (20, 0.5, "kept"), (60, 0.1, "missed"), (60, 0.11, "not judged")],
)
def test_other_programs_excuse_what_is_late_and_nothing_else(
    latency_ms: float, company: float, verdict: str
) -> None:
    recording = Recording(READY_S, asked(latency_ms=latency_ms), CALM)
    wrong = Recording(READY_S, asked() + asked(1, outcome=WRONG + "shape"), CALM)

    judgement = judge(recording, TIER, [GIB], company=company)

    assert promise(judgement, "latency p95").verdict == judgement.verdict == verdict
    assert bool(judgement.doubts) == (company > 0.1)
    assert judge(wrong, TIER, [GIB], company=company).verdict == "missed"


def test_adversary_counts_for_answers_and_not_for_latency() -> None:
    right = asked(50, user="adversary", latency_ms=400)
    judgement = judged(asked() + right + asked(1, user="adversary", outcome=WRONG + "refusal"))

    assert promise(judgement, "latency p95").measured == "20.0 ms"
    assert promise(judgement, "deadline misses").measured == "0.00% of 100 steps"
    assert judgement.missed == ["wrong answers"]


def test_memory_is_judged_by_its_peak() -> None:
    recording = Recording(READY_S, asked(), CALM)

    judgement = judge(recording, TIER, [1.0 * GIB, 4.25 * GIB, 2.0 * GIB])

    assert promise(judgement, "memory") == Promise("memory", "at most 4 GiB", "4.25 GiB", "missed")
    assert judge(recording, TIER, []).verdict == "not judged"


@pytest.mark.parametrize(
    ("samples", "beats", "doubt"),
    [
        (asked(), [Beat(BEGIN_S + i, 0.86) for i in range(10)], "took 86% of a core, more than 85%"),
        (asked(98) + asked(2, lag_ms=5.1), CALM, "sent 5.1 ms late or later, more than 5 ms"),
        ([], CALM, "recorded no request"),
    ],
)
def test_weak_load_generator_leaves_latency_and_deadlines_open(
    samples: list[Sample], beats: list[Beat], doubt: str
) -> None:
    judgement = judged(samples, beats)

    assert [doubt in said for said in judgement.doubts] == [True]
    assert promise(judgement, "latency p95").verdict == "not judged"
    assert promise(judgement, "deadline misses").verdict == "not judged"
    assert judgement.verdict == "not judged"


def test_one_late_request_of_a_hundred_is_no_doubt() -> None:
    assert judged(asked(99) + asked(1, lag_ms=500)).doubts == []


def test_wrong_answer_is_the_servers_whatever_the_load_generator_did() -> None:
    late = asked(lag_ms=30) + asked(1, outcome=WRONG + "bounds")

    assert judged(late).missed == ["wrong answers"]


def test_outage_lasts_from_its_first_failure_to_the_next_right_answer() -> None:
    ends = [(5.0, REFUSED), (5.5, REFUSED), (6.0, CLOSED)]
    down = [Sample("robot", BEGIN_S + at, 0, 1, outcome) for at, outcome in ends]
    back = Sample("robot", BEGIN_S + 7.98, 0, 20, "ok")
    before = asked(10)[:5]

    (outage,) = find_outages([*before, *down, back], BEGIN_S, END_S)

    assert (outage.start_s, outage.duration_s) == (pytest.approx(5.0), pytest.approx(3.0))
    assert outage.errors == {REFUSED: 2, CLOSED: 1}


def test_outage_that_does_not_end_lasts_to_the_end() -> None:
    down = [Sample("robot", BEGIN_S + 8 + 0.1 * i, 0, 1, REFUSED) for i in range(20)]
    judgement = judged(asked(1000)[:790] + down)

    (outage,) = judgement.outages
    assert (outage.start_s, outage.duration_s) == (8.0, pytest.approx(1.901))
    assert outage.errors == {REFUSED: 20}
    assert judgement.missed == ["failures", "outages"]
    assert promise(judgement, "outages").measured == "1.9 s from 8.0 s on"


def test_single_refusals_between_right_answers_are_no_outage() -> None:
    samples = asked(100) + [Sample("robot", BEGIN_S + i + 0.05, 0, 1, "503 policy_failed") for i in range(9)]

    assert find_outages(samples, BEGIN_S, END_S) == []


def test_expired_and_refused_for_cause_are_no_outage() -> None:
    samples = [
        Sample("robot", BEGIN_S + i, 0, 1, kind) for i in range(5) for kind in (EXPIRED, "400 bad_image")
    ]

    assert find_outages(samples, BEGIN_S, END_S) == []
