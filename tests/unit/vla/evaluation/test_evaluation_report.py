"""What episodes add up to: rates with their intervals, thresholds, tables."""

import math
import re

import numpy as np
import pytest

from vla.evaluation.conditions import CONDITIONS, Trial
from vla.evaluation.episodes import Episode
from vla.evaluation.evaluate import Evaluation
from vla.evaluation.report import Rate, Threshold, largest_difference, markdown, misses, ratio, summarise
from vla.tabletop.commands import GOALS, Goal


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        # Newcombe 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(successes, episodes, low, high):
    assert Rate(successes, episodes).interval == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_at_the_ends():
    assert Rate(0, 0).interval == (0.0, 1.0)
    z2 = 1.959963984540054**2
    assert Rate(120, 120).interval == pytest.approx((120 / (120 + z2), 1.0), abs=1e-12)
    assert Rate(0, 120).interval == pytest.approx((0.0, z2 / (120 + z2)), abs=1e-12)


def episode(*, success=True, steps=10, goal=GOALS[0], commanded=None, first=0.0, **changes):
    trial = Trial("held_out", 100_000, goal, commanded or goal, "go")
    values = {
        "outcome": goal.colour if success else None,
        "latency_ms": (4.0, 8.0),
        "batch_sizes": (1, 3),
        "interventions": 1,
        "error": None,
        **changes,
    }
    return Episode(trial, success, steps=steps, first=np.full((2, 4), first, np.float32), **values)


def test_summary():
    summary = summarise(
        "http",
        [
            episode(steps=10),
            episode(steps=20, goal=Goal("lift", "green")),
            episode(
                success=False,
                steps=50,
                goal=Goal("lift", "red"),
                commanded=Goal("lift", "blue"),
                outcome="blue",
            ),
            episode(success=False, goal=Goal("push", "red"), error="unsafe_action"),
        ],
    )
    assert summary.total == Rate(2, 4)
    assert summary.by_task == {"reach": Rate(1, 1), "lift": Rate(1, 2), "push": Rate(0, 1)}
    assert summary.named_block == Rate(3, 4)
    assert (summary.steps, summary.requests) == (15.0, 8)
    assert (summary.latency_mean_ms, summary.latency_p95_ms) == (6.0, 8.0)
    assert summary.batch_sizes == {1: 4, 3: 4}
    assert (summary.interventions, summary.errors) == (4, {"unsafe_action": 1})


def test_summary_of_failures_has_no_steps():
    summary = summarise("http", [episode(success=False, latency_ms=(), batch_sizes=())])
    assert (summary.steps, summary.latency_mean_ms, summary.latency_p95_ms) == (None, None, None)


def test_markdown():
    one = summarise("http", [episode(), episode(success=False, error="unsafe_action")])
    other = summarise("script", [episode(batch_sizes=())])
    table = markdown([one, other])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0][:6] == ["condition", "policy", "reach", "lift", "push", "all [95 %]"]
    assert lines[2] == [
        *("held_out", "http", "50", "-", "-", "50 [9.5, 90.5], 1 x unsafe_action", "50", "10.0"),
        *("6.0 / 8.0", "2.0 (3)", "2 of 4", "-"),
    ]
    assert lines[3] == [
        *("held_out", "script", "100", "-", "-", "100 [20.7, 100]", "100", "10.0"),
        *("-", "-", "-", "-"),
    ]


def test_what_a_policy_calls_done_is_judged_by_the_success():
    ends = [
        episode(steps=10, says_done=True, done_at=10),
        episode(steps=10, says_done=True, done_at=20),
        episode(steps=10, says_done=True, done_at=9),
        episode(steps=10, says_done=True),
        episode(steps=50, success=False, says_done=True, done_at=30),
        episode(steps=50, success=False, says_done=True),
    ]
    assert [end.done_in_time for end in ends] == [True, True, False, False, False, False]
    assert [end.done_early for end in ends] == [False, False, True, False, True, False]
    summary = summarise("http", ends)
    assert summary.done_in_time == {"reach": Rate(2, 4), "lift": Rate(0, 0), "push": Rate(0, 0)}
    assert summary.done_early == Rate(2, 6)
    assert markdown([summary]).splitlines()[2].split("|")[-2].strip() == "50 / - / -; 33.3"


def test_of_failures_alone_nothing_is_done_in_time():
    summary = summarise("http", [episode(success=False, says_done=True)])
    assert markdown([summary]).splitlines()[2].split("|")[-2].strip() == "- / - / -; 0"


def test_stays_and_moved_blocks_are_added_up():
    summary = summarise("http", [episode(stayed=True, disturbed=2), episode(), episode(success=False)])
    assert (summary.stayed, summary.disturbed) == (Rate(1, 3), Rate(1, 3))


def test_ratio_of_rates_with_its_interval():
    # Equal shares of 20 of 40: by Wilson's intervals, 0.3520 and 0.6480, Donner and Zou's method gives this.
    value, low, high = ratio(Rate(20, 40), Rate(20, 40))
    assert (value, low * high) == (1.0, pytest.approx(1.0, abs=1e-9))
    assert low == pytest.approx(0.6474, abs=1e-4)
    value, low, high = ratio(Rate(40, 40), Rate(40, 40))
    assert (value, low, high) == (1.0, pytest.approx(0.9124, abs=1e-4), pytest.approx(1.0961, abs=1e-4))
    assert ratio(Rate(0, 40), Rate(40, 40))[:2] == (0.0, 0.0)
    assert ratio(Rate(3, 40), Rate(0, 40)) == (math.inf, 0.0, math.inf)


def test_thresholds_are_inclusive_and_hold_for_every_policy():
    half = summarise("http", [episode(), episode(success=False)])
    full = summarise("in-process", [episode()])
    at = [Threshold("held_out", 0.5)]
    assert misses([half, full], at, []) == []
    assert misses([half], at, at) == []
    assert misses([half, full], [Threshold("held_out", 0.95)], at) == [
        "held_out (http): success 0.500 is below 0.95",
        "held_out (in-process): success 1.000 is above 0.5",
    ]
    assert misses([half], [Threshold("seen", 1.0)], []) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heldout=1", f"threshold 'heldout=1': unknown condition 'heldout'; valid: {', '.join(CONDITIONS)}"),
        ("blank=2", "threshold 'blank=2': needs a rate from 0 to 1, as in blank=0.95"),
        ("blank", "threshold 'blank': needs a rate from 0 to 1, as in blank=0.95"),
    ],
)
def test_wrong_thresholds_are_refused(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Threshold.parse(text)


def test_largest_difference_is_of_first_chunks():
    ours, theirs = [episode(first=0), episode(first=1)], [episode(first=0), episode(first=1.5)]
    assert largest_difference(ours, theirs) == 0.5
    assert largest_difference([], []) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a policy: --url of a server, --archive of a .mar, or both"),
        (
            {"url": "u", "first_seed": 1 << 40},
            f"first_seed must leave the seeds from {1 << 40} on to demonstrations",
        ),
        ({"url": "u", "first_seed": 7}, "first_seed must be at least 100000, which training never uses"),
        ({"url": "u", "robots": 0}, "robots must be at least 1, got 0"),
        ({"url": "u", "require": ("blank=1",)}, "a threshold names blank, which --conditions does not run"),
    ],
)
def test_wrong_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Evaluation(**options)
