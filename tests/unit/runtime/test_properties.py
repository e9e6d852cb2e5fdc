"""For any raw output, state and previous action: what leaves is inside every limit, or is a refusal."""

import math
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from action_spaces import SYMBOLS, outputs, space, spec

from vla_runtime.actions import to_chunk
from vla_runtime.errors import UnsafeAction
from vla_runtime.safety import SafetyReport
from vla_runtime.spec import ContinuousSpace, Dimension, PolicySpec, Safety, Statistics, Vector

hypothesis = pytest.importorskip("hypothesis", reason="make test installs it")
strategies: Any = pytest.importorskip("hypothesis.strategies")

STEPS = 5
# Any float32 at all, and often one that a policy would say.
RAW = strategies.floats(width=32) | strategies.floats(-2, 2, width=32)
READ = strategies.floats(-1.5, 1.5, width=32)
DIMENSIONS = (
    Dimension(name="dx", unit="m", low=-0.3, high=0.3, meaning="delta", state="x"),
    Dimension(name="vy", unit="m/s", low=-2, high=2, meaning="velocity", state="y"),
    Dimension(name="z", unit="m", low=-1, high=1, meaning="absolute", state="z"),
    Dimension(name="grip", unit="1", low=0, high=1, meaning="absolute"),
)
WIDTH = len(DIMENSIONS)
STATE = Vector(
    dimensions=tuple(Dimension(name=name, unit="m", low=-1, high=1) for name in "xyz"),
    normalisation="identity",
    statistics=Statistics(),
)


def limits(draw: Any, largest: float, width: int = WIDTH) -> tuple | None:
    """Some dimensions' positive limits, or none at all."""
    values = strategies.none() | strategies.floats(0.01, largest)
    return draw(strategies.none() | strategies.tuples(*[values] * width))


@strategies.composite
def policies(draw: Any) -> PolicySpec:
    boxes = strategies.none() | strategies.tuples(strategies.floats(-1, -0.1), strategies.floats(0.1, 1))
    box = draw(strategies.none() | strategies.tuples(boxes, boxes))
    near = limits(draw, 1.0, 3)
    safety = Safety(
        mode=draw(strategies.sampled_from(["clamp", "hold", "reject"])),
        max_step=limits(draw, 0.5),
        position_limits=None if box is None else (*box, None, None),
        max_from_state=None if near is None else (*near, None),
        hold_action=(None, None, None, draw(strategies.floats(0, 1))),
        min_confidence=draw(strategies.none() | strategies.floats(0, 1)),
    )
    action = space(
        dimensions=DIMENSIONS,
        normalisation="identity",
        statistics=Statistics(),
        horizon=STEPS,
        saturating=draw(strategies.booleans()),
    )
    made = spec(space(), outputs=("actions", "confidence"))
    return msgspec.structs.replace(made, action=action, state=STATE, safety=safety)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    policies(),
    strategies.lists(RAW, min_size=STEPS * WIDTH, max_size=STEPS * WIDTH),
    strategies.tuples(READ, READ, READ),
    strategies.none() | strategies.tuples(READ, READ, READ, READ),
    strategies.none() | strategies.floats(),
)
def test_what_leaves_is_inside_every_limit_or_is_a_refusal(
    policy: PolicySpec, raw: list, state: tuple, previous: tuple | None, confidence: float | None
) -> None:
    before = np.full(WIDTH, np.nan, np.float32) if previous is None else np.array(previous, np.float32)
    said, here = outputs(np.reshape(raw, (STEPS, WIDTH)), confidence), np.array(state, np.float32)
    try:
        chunk = to_chunk(said, here, before, policy)
    except UnsafeAction:
        assert policy.safety.mode == "reject"  # each of these dimensions says what standing still is
        return
    check(chunk.actions, chunk.safety, policy, here, before)
    least = policy.safety.min_confidence
    if least is not None and not (confidence is not None and confidence >= least):
        assert chunk.safety.status == "held"
        assert (
            any(line.startswith("confidence ") for line in chunk.safety.violations)
            or not np.isfinite(raw).all()
        )
    if chunk.safety.status == "ok":
        assert chunk.safety.violations == ()


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    policies(),
    strategies.lists(RAW, min_size=STEPS * WIDTH, max_size=STEPS * WIDTH),
    strategies.lists(strategies.tuples(READ, READ, READ, READ), min_size=1, max_size=STEPS - 1),
)
def test_what_follows_given_actions_is_inside_every_limit_or_is_a_refusal(
    policy: PolicySpec, raw: list, given: list
) -> None:
    action = policy.action
    assert isinstance(action, ContinuousSpace)
    prefix, said = np.array(given, np.float32), outputs(np.reshape(raw, (STEPS, WIDTH)), 1.0)
    try:
        chunk = to_chunk(said, np.zeros(3, np.float32), prefix[-1], policy, prefix)
    except UnsafeAction:
        assert policy.safety.mode == "reject"
        return
    actions, delay = chunk.actions, len(prefix)
    assert chunk.delay == delay
    assert np.isfinite(actions).all()
    assert ((actions >= action.low) & (actions <= action.high)).all()
    if chunk.safety.status != "held":
        np.testing.assert_array_equal(actions[:delay], np.clip(prefix, action.low, action.high))
        steps = [math.inf if step is None else step for step in policy.safety.max_step or [None] * WIDTH]
        assert (np.abs(np.diff(actions[delay - 1 :], axis=0)) <= np.array(steps) + 1e-5).all()


def check(
    actions: np.ndarray, report: SafetyReport, policy: PolicySpec, state: np.ndarray, before: np.ndarray
) -> None:
    action, safety = policy.action, policy.safety
    assert isinstance(action, ContinuousSpace)
    assert np.isfinite(actions).all()
    assert ((actions >= action.low) & (actions <= action.high)).all()
    places = state + np.cumsum(actions[:, :2] * np.array([1, 1 / action.control_hz]), axis=0)[:, [0, 1, 1]]
    places[:, 2] = actions[:, 2]
    check_places(places, safety, state, held=report.status == "held")
    if safety.max_step and report.status != "held":
        steps = np.array([math.inf if step is None else step for step in safety.max_step])
        start = np.clip(np.where([False, False, True, False], [*state, 0], before), action.low, action.high)
        first = np.where(np.isfinite(start), start, actions[0])
        assert (np.abs(np.diff(np.vstack([first, actions]), axis=0)) <= steps + 1e-5).all()


def check_places(places: np.ndarray, safety: Safety, state: np.ndarray, *, held: bool) -> None:
    for column, box in enumerate(safety.position_limits or ()):
        if box is not None:
            path = np.array([state[column], *places[:, column]])
            outside = np.maximum(np.maximum(box[0] - path, path - box[1]), 0)
            assert (np.diff(outside) <= 1e-5).all()  # never further out than it was
    for column, far in enumerate(safety.max_from_state or ()):
        if far is not None and not (held and column == 2):
            assert (np.abs(places[:, column] - state[column]) <= far + 1e-5).all()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    strategies.lists(strategies.floats(width=32), min_size=12, max_size=12),
    strategies.none() | strategies.floats(),
    strategies.sampled_from(["clamp", "hold", "reject"]),
    strategies.none() | strategies.floats(0, 1),
)
def test_symbols_that_leave_are_certain_enough_or_held(
    logits: list, confidence: float | None, mode: Literal["clamp", "hold", "reject"], least: float | None
) -> None:
    policy = spec(
        SYMBOLS,
        Safety(mode=mode, hold_action="stop", min_confidence=least),
        outputs=("logits", "confidence"),
    )
    try:
        chunk = to_chunk(outputs(np.reshape(logits, (2, 6)), confidence), np.zeros(0), np.zeros(6), policy)
    except UnsafeAction:
        assert mode == "reject"
        return
    assert chunk.probabilities is not None
    np.testing.assert_allclose(chunk.probabilities.sum(-1), 1, atol=1e-5)
    sure = least is None or (chunk.confidence is not None and chunk.confidence >= least)
    assert chunk.safety.status == ("ok" if sure and np.isfinite(logits).all() else "held")
    if chunk.safety.status == "held":
        assert chunk.chosen == ("stop", "stop")
