"""What a batch is worth counting."""

from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
import yaml
from action_spaces import space

from vla_runtime.actions import ActionChunk
from vla_runtime.errors import BadImage, DeadlineExpired, RequestError, UnsafeAction
from vla_runtime.metrics import (
    BATCH,
    CATALOGUE,
    COMMANDS,
    DEADLINES,
    ERRORS,
    INTERVENTIONS,
    MEMORY,
    SATURATION,
    STAGE,
    Meter,
    Reading,
    resident_bytes,
)
from vla_runtime.policy import Answer, Policy
from vla_runtime.safety import SafetyReport

ROOT = Path(__file__).parents[3]


def answer(status: Literal["ok", "clamped", "held"] = "ok", saturated: float | None = None) -> Answer:
    report = SafetyReport(status, (), saturated)
    chunk = ActionChunk(np.zeros((2, 2), np.float32), space(), report, None, None)
    return Answer(chunk, {"preprocess": 2.0, "inference": 8.0, "postprocess": 0.5}, batch_size=3)


@pytest.fixture
def policy(tiny_folder: Path) -> Policy:
    return Policy.load(tiny_folder)


def readings(meter: Meter, answers: list[Answer | RequestError], queue_ms: list[float]) -> list[Reading]:
    return [reading for reading in meter.readings(answers, queue_ms) if reading.metric is not MEMORY]


def test_metrics_yaml_declares_the_catalogue() -> None:
    declared = yaml.safe_load((ROOT / "metrics.yaml").read_text())["model_metrics"]
    found = {
        (metric["name"], kind, metric["unit"], tuple(metric["dimensions"]))
        for kind, metrics in declared.items()
        for metric in metrics
    }

    assert {(m.name, m.kind, m.unit, m.labels) for m in CATALOGUE} == {
        entry for entry in found if entry[0].startswith("vla_")
    }


def test_batch_of_right_answers(policy: Policy) -> None:
    meter = Meter(policy)

    assert readings(meter, [answer(), answer(), answer()], [0.0, 4.0, 1.0]) == [
        Reading(STAGE, 0.002, ("preprocess",)),
        Reading(STAGE, 0.008, ("inference",)),
        Reading(STAGE, 0.0005, ("postprocess",)),
        Reading(BATCH, 3),
        Reading(STAGE, 0.004, ("queue",)),
    ]
    assert readings(meter, [], []) == []
    assert Reading(BATCH, 3) in readings(meter, [BadImage("image", "x"), answer()], [0.0, 0.0])


def test_what_policies_want_beyond_their_bounds_is_no_intervention(policy: Policy) -> None:
    counted = readings(Meter(policy), [answer(saturated=0.5), answer(saturated=0.0), answer()], [])

    assert Reading(SATURATION, 0.25) in counted
    assert INTERVENTIONS not in {reading.metric for reading in counted}


def test_command_is_encoded_once_and_then_found(policy: Policy, tiny_folder: Path) -> None:
    row, meter = policy.example_row(tiny_folder), Meter(policy)

    policy.infer([{**row, "command": "wave"}, {**row, "command": "wave"}, {**row, "command": "bow"}, {}])
    first = readings(meter, [], [])
    policy.infer([{**row, "command": "bow"}])
    second = readings(meter, [], [])

    assert first == [Reading(COMMANDS, 1, ("hit",)), Reading(COMMANDS, 2, ("miss",))]
    assert second == [Reading(COMMANDS, 1, ("hit",))]


def test_interventions_and_errors_are_counted_by_kind(policy: Policy) -> None:
    meter = Meter(policy)
    failed = [
        BadImage("image", "x"),
        DeadlineExpired(None, "x"),
        DeadlineExpired(None, "x"),
        UnsafeAction(None, "x"),
    ]

    found = readings(meter, [answer("clamped"), answer("held"), answer("clamped"), *failed], [0.0] * 7)

    assert found[4:] == [
        Reading(INTERVENTIONS, 2, ("clamped",)),
        Reading(INTERVENTIONS, 1, ("held",)),
        Reading(ERRORS, 1, ("bad_image",)),
        Reading(ERRORS, 2, ("deadline_expired",)),
        Reading(DEADLINES, 2),
        Reading(ERRORS, 1, ("unsafe_action",)),
        Reading(INTERVENTIONS, 1, ("rejected",)),
    ]


def test_memory_is_read_once_a_second(policy: Policy) -> None:
    meter = Meter(policy, worker="9000")

    first, second = list(meter.readings([], [])), list(meter.readings([], []))

    assert [(reading.metric, reading.labels) for reading in first] == [(MEMORY, ("resident", "9000"))]
    assert first[0].value == pytest.approx(resident_bytes(), rel=0.2)
    assert second == []


def test_resident_memory_is_in_bytes() -> None:
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
