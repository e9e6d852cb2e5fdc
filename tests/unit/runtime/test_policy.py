"""The request path in-process: isolation, padding, caching, deadlines, safety, and the archived example."""

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from vla_runtime.actions import normalise, unnormalise
from vla_runtime.artifact import Artifact, Outputs
from vla_runtime.errors import RequestError, SpecError
from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy
from vla_runtime.preprocessing import CommandTokenizer
from vla_runtime.spec import ContinuousSpace, PolicySpec
from vla_runtime.staging import Inputs


@pytest.fixture(scope="module")
def policy(tiny_folder: Path) -> Policy:
    return Policy.load(tiny_folder)


@pytest.fixture(scope="module")
def row(policy: Policy, tiny_folder: Path) -> Row:
    return policy.example_row(tiny_folder)


def actions(answer: Answer | RequestError) -> np.ndarray:
    assert isinstance(answer, Answer), answer
    return answer.chunk.actions


def test_answers_in_physical_units(policy: Policy, row: Row) -> None:
    answer = policy.infer([row], attention=True)[0]

    assert isinstance(answer, Answer)
    assert (answer.chunk.actions.dtype, answer.chunk.actions.shape) == (np.float32, (4, 2))
    assert np.abs(answer.chunk.actions[:, 0]).max() <= np.float32(0.03)
    assert answer.chunk.attention is not None
    assert answer.chunk.attention.sum() == pytest.approx(1, abs=1e-5)
    assert answer.batch_size == 1
    assert list(answer.timing_ms) == ["preprocess", "inference", "postprocess"]


def test_each_request_of_a_batch_fails_or_succeeds_alone(policy: Policy, row: Row) -> None:
    alone = actions(policy.infer([row])[0])
    bad = [{**row, "image.front": b"x"}, {**row, "state": [1]}, {**row, "command": "word " * 100}, {}]

    answers = policy.infer([row, bad[0], row, bad[1], bad[2], row, bad[3]])

    codes = [answer.code if isinstance(answer, RequestError) else "ok" for answer in answers]
    assert codes == ["ok", "bad_image", "ok", "invalid_value", "invalid_value", "ok", "missing_field"]
    for index in (0, 2, 5):
        np.testing.assert_allclose(actions(answers[index]), alone, atol=1e-6)
    assert isinstance(answers[0], Answer)
    assert answers[0].batch_size == 3  # the refused ones were never computed


def test_padding_and_company_do_not_change_an_answer(policy: Policy, row: Row) -> None:
    commands = ["lift the red block", "push it", "reach", "go to the green cube now", "a b c d e"]
    rows = [{**row, "command": command, "state": [0.1 * i, 0.5]} for i, command in enumerate(commands)]
    alone = [actions(policy.infer([one])[0]) for one in rows]

    together = policy.infer(rows)  # five, padded to eight

    for one, answer in zip(alone, together, strict=True):
        np.testing.assert_allclose(actions(answer), one, atol=1e-6)
    assert not np.allclose(alone[0], alone[1], atol=1e-4)  # the command matters, so equality means something


def test_more_requests_than_the_largest_bucket_are_split(policy: Policy, row: Row) -> None:
    assert [actions(answer).shape for answer in policy.infer([row] * 19)] == [(4, 2)] * 19


def test_expired_request_is_not_computed(policy: Policy, row: Row) -> None:
    answers = policy.infer([{**row, "deadline_ms": 50}, row], [time.time() - 0.051] * 2)

    assert isinstance(answers[0], RequestError)
    assert answers[0].status == 504
    assert answers[0].body()["error"] == {
        "code": "deadline_expired",
        "field": "deadline_ms",
        "message": "expired before the request could be computed",
    }
    assert isinstance(answers[1], Answer)
    assert answers[1].batch_size == 1


class Fussy(Artifact):
    """The real artifact, but a batch that holds a closed gripper (state 2 of 2 at its lower bound) fails."""

    def __call__(self, observations: Sequence[Inputs], *, attention: bool = True) -> list[Outputs]:
        if any(observation.tensors["state"][1] == -1 for observation in observations):
            raise RuntimeError("out of luck")
        return super().__call__(observations, attention=attention)


def test_failing_batch_is_retried_one_by_one(policy: Policy, row: Row, tiny_folder: Path) -> None:
    assert policy.spec.tokenizer
    tokenizer = CommandTokenizer(tiny_folder, policy.spec.tokenizer)
    fussy = Policy(policy.spec, tokenizer, Fussy.load(tiny_folder, policy.spec), threads=2)

    answers = fussy.infer([row, {**row, "state": [0.1, 0.0]}, row])

    expected = actions(policy.infer([row])[0])
    np.testing.assert_allclose(actions(answers[0]), expected, atol=1e-6)
    np.testing.assert_allclose(actions(answers[2]), expected, atol=1e-6)
    assert isinstance(answers[1], RequestError)
    assert (answers[1].status, answers[1].code) == (503, "policy_failed")
    assert answers[1].message == "the policy failed on this request"


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_load_replays_the_example(copied: Path) -> None:
    spec = PolicySpec.load(copied)
    wrong = tuple((x + 0.01, g) for x, g in spec.example.actions)
    example = msgspec.structs.replace(spec.example, actions=wrong)
    msgspec.structs.replace(spec, example=example).save(copied)

    message = (
        r"^the archived example is answered differently: by 0\.33 in normalised units, at most 0\.001 is"
    )
    with pytest.raises(SpecError, match=message):
        Policy.load(copied)


def test_a_recorded_answer_is_a_table(copied: Path) -> None:
    spec = PolicySpec.load(copied)
    ragged = (*spec.example.actions[:-1], (0.0,))
    msgspec.structs.replace(spec, example=msgspec.structs.replace(spec.example, actions=ragged)).save(copied)

    with pytest.raises(SpecError, match=r"^example\.actions must have rows of one length, got \[1, 2\]$"):
        Policy.load(copied)


@pytest.mark.parametrize(("difference", "refused"), [(0.5e-3, False), (2e-3, True), (-2e-3, True)])
def test_the_example_may_differ_by_its_tolerance(copied: Path, difference: float, *, refused: bool) -> None:
    """1e-3 in normalised units, of a dimension whose bounds are 0.03 m from the middle."""
    spec = PolicySpec.load(copied)
    moved = tuple((x + 0.03 * difference, g) for x, g in spec.example.actions)
    msgspec.structs.replace(spec, example=msgspec.structs.replace(spec.example, actions=moved)).save(copied)

    if refused:
        with pytest.raises(SpecError, match=r"in normalised units, at most 0\.001 is allowed$"):
            Policy.load(copied)
    else:
        Policy.load(copied)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("policy.json", r"^policy\.json is missing in "),
        ("policy.ts", r"^policy\.ts can't be loaded: "),
        ("tokenizer.json", r"^tokenizer tokenizer\.json can't be read: "),
    ],
)
def test_incomplete_archive_is_named(copied: Path, file: str, message: str) -> None:
    (copied / file).unlink()

    with pytest.raises(SpecError, match=message):
        Policy.load(copied)


def test_normalisation_has_an_exact_inverse(policy: Policy) -> None:
    space = policy.spec.action
    assert isinstance(space, ContinuousSpace)
    values = np.array([[-0.03, -1], [0.0, 0.25], [0.03, 1]], np.float32)

    normalised = normalise(values, space)

    np.testing.assert_allclose(normalised, [[-1, -1], [0, 0.25], [1, 1]], atol=1e-6)
    np.testing.assert_allclose(unnormalise(normalised, space), values, atol=1e-8)


UNMEASURED = np.full(2, math.nan, np.float32)
