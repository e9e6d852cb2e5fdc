"""The module's side: commands are encoded once, kept within a bound, and never change one another."""

from pathlib import Path

import numpy as np
import pytest

from vla_runtime.errors import RequestError
from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy


@pytest.fixture(scope="module")
def row(tiny_folder: Path) -> Row:
    return Policy.load(tiny_folder).example_row(tiny_folder)


def actions(answer: Answer | RequestError) -> np.ndarray:
    assert isinstance(answer, Answer), answer
    return answer.chunk.actions


def test_repeated_command_is_encoded_once(tiny_folder: Path, row: Row) -> None:
    policy = Policy.load(tiny_folder)  # the example's command is now cached
    before = policy.command_uses

    policy.infer([row, {**row, "command": "lift"}, {**row, "command": "lift"}])

    assert (before, policy.command_uses) == ((0, 1), (2, 2))


def test_commands_encoded_together_equal_those_encoded_alone(tiny_folder: Path, row: Row) -> None:
    commands = [f"push the {colour} block" for colour in ("red", "green", "blue")]
    together = Policy.load(tiny_folder)
    answers = together.infer([{**row, "command": command} for command in (*commands, commands[0])])

    assert together.command_uses == (2, 3)  # the red one was the example's: two hits, and three encodings
    for command, answer in zip(commands, answers, strict=False):
        alone = Policy.load(tiny_folder).infer([{**row, "command": command}])[0]
        np.testing.assert_allclose(actions(answer), actions(alone), atol=1e-6)


def test_cache_of_commands_is_bounded(tiny_folder: Path, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three queries of 8 numbers and their mask: two commands fit.
    monkeypatch.setattr("vla_runtime.artifact.CACHE_BYTES", 2 * 3 * (8 * 4 + 1))
    policy = Policy.load(tiny_folder)
    expected = actions(policy.infer([{**row, "command": "go 0"}])[0])

    answers = policy.infer([{**row, "command": f"go {n}"} for n in range(5)])

    encoded = policy.command_uses[1]
    policy.infer([{**row, "command": "go 4"}, {**row, "command": "go 0"}])  # the latest two, padding last
    assert policy.command_uses[1] == encoded
    policy.infer([{**row, "command": "go 2"}])  # the one before is not
    assert policy.command_uses[1] == encoded + 1
    np.testing.assert_allclose(actions(answers[0]), expected, atol=1e-6)


def test_a_command_larger_than_the_cache_is_kept_alone(
    tiny_folder: Path, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_runtime.artifact.CACHE_BYTES", 1)
    policy = Policy.load(tiny_folder)
    policy.infer([{**row, "command": "go 0"}])
    encoded = policy.command_uses[1]

    policy.infer([{**row, "command": "go 0"}])
    assert policy.command_uses[1] == encoded
    policy.infer([{**row, "command": "go 1"}])
    policy.infer([{**row, "command": "go 0"}])
    assert policy.command_uses[1] == encoded + 2
