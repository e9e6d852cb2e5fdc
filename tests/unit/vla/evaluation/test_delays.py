"""Answers that come late: what is executed when, how far chunks are apart, and what the report says."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla.evaluation import delays
from vla.evaluation.conditions import trials
from vla.evaluation.episodes import Setup
from vla.evaluation.late import DelayedPlayer, Row, Seam, Way, measure
from vla.evaluation.policies import ExpertPolicy
from vla.evaluation.report import Rate
from vla.tabletop.simulator import Tabletop
from vla_client import ActionChunk, Observation, SafetyReport

PICTURE = np.zeros((4, 4, 3), np.uint8)


class Counting:
    """Chunk n of 8 actions moves the hand by 0.1 m * n + 0.01 m * the step that an action is for.

    What is given is executed: the chunk begins with it.
    """

    def __init__(self, length: int = 8) -> None:
        self.length = length
        self.seen: list[Observation] = []

    def infer(self, observation: Observation) -> ActionChunk:
        steps = np.arange(self.length, dtype=np.float32) + np.float32(np.asarray(observation.state)[0])
        actions = np.zeros((self.length, 4), np.float32)
        actions[:, 0] = 0.1 * len(self.seen) + 0.01 * steps
        if observation.delay:
            actions[: observation.delay] = np.asarray(observation.previous)[: observation.delay]
        self.seen.append(observation)
        report = SafetyReport("ok")
        return ActionChunk(actions, tuple("xyzg"), 10.0, None, report, {}, "c", "1", "r", max_delay=4)


def played(way: Way, delay: int, steps: int = 12) -> tuple[list[float], DelayedPlayer, Counting]:
    """Return x of each step [m]."""
    policy = Counting()
    player = DelayedPlayer(policy, 4, delay, way)
    made = [player.action(lambda s=step: Observation(PICTURE, "go", [s])) for step in range(steps)]
    return [float(action[0]) for action in made], player, policy


def expected(chunk_of_step: list[int]) -> list[float]:
    return [0.1 * chunk + 0.01 * step for step, chunk in enumerate(chunk_of_step)]


@pytest.mark.parametrize(
    ("delay", "chunks"),
    [(0, [0] * 4 + [1] * 4 + [2] * 4), (2, [0] * 6 + [1] * 4 + [2] * 2), (4, [0] * 8 + [1] * 4)],
)
def test_an_answer_is_executed_when_its_delay_is_over(delay: int, chunks: list[int]) -> None:
    executed, player, policy = played("plain", delay)

    np.testing.assert_allclose(executed, expected(chunks), atol=1e-6)
    assert [np.asarray(each.state)[0] for each in policy.seen] == [0, 4, 8]
    assert all(each.previous is None for each in policy.seen)
    assert [seam.jump for seam in player.seams] == pytest.approx([110] * (len(set(chunks)) - 1), rel=1e-4)
    disagreements = [seam.disagreement for seam in player.seams]
    assert (
        disagreements == pytest.approx([100.0] * len(disagreements), rel=1e-4)
        if delay
        else not any(disagreements)
    )
    assert player.within == pytest.approx([10.0] * len(player.within), rel=1e-4)
    assert len(player.within) == 11 - len(player.seams)


def test_a_policy_is_told_what_is_executed_meanwhile() -> None:
    executed, player, policy = played("planned", 2)

    np.testing.assert_allclose(executed, expected([0] * 6 + [1] * 4 + [2] * 2), atol=1e-6)
    assert [each.delay for each in policy.seen] == [None, 2, 2]
    np.testing.assert_allclose(np.asarray(policy.seen[1].previous)[:, 0], np.arange(4, 8) * 0.01, atol=1e-6)
    assert [seam.disagreement for seam in player.seams] == pytest.approx([0, 0])


def test_blending_fades_over_what_both_have_left() -> None:
    executed, player, _ = played("blended", 2, 8)

    # Of the old chunk two actions are left: a third, then two thirds of the new one.
    np.testing.assert_allclose(executed[:6], expected([0] * 6), atol=1e-6)
    np.testing.assert_allclose(executed[6:], [0.06 + 0.1 / 3, 0.07 + 0.2 / 3], atol=1e-6)
    assert player.seams[0].jump == pytest.approx(10 + 100 / 3, rel=1e-4)


def test_chunks_that_are_too_short_are_refused() -> None:
    player = DelayedPlayer(Counting(length=5), 4, 2, "plain")
    with pytest.raises(ValueError, match="chunks of 5 actions are too short"):
        player.action(lambda: Observation(PICTURE, "go", [0]))


def test_the_expert_succeeds_without_a_delay() -> None:
    with closing(Tabletop()) as env:
        todo = trials("expert", 2, 7_000_000)
        row = measure(env, ExpertPolicy(env, horizon=8), todo, Setup(4), way="plain", delay=0)

    assert row.success == Rate(2, 2)
    assert row.seams


def test_the_report_says_what_was_measured(tmp_path: Path) -> None:
    archive = tmp_path / "a.mar"
    archive.write_bytes(b"archive")
    config = delays.DelayEvaluation(archive, report=tmp_path / "runs" / "delays.md", episodes=4)
    rows = [
        Row("plain", 0, Rate(4, 4), (Seam(3.0, None), Seam(5.0, None)), 2.0),
        Row("planned", 2, Rate(1, 4), (Seam(2.0, 0.0),), 1.0),
    ]
    text = delays.write(config, rows)

    assert (tmp_path / "runs" / "delays.md").read_text() == text
    assert "| 0             | plain   | 100 [51, 100]  | 4.0 / 4.9             | -" in text
    assert "| 2             | planned | 25 [5, 70]     | 2.0 / 2.0             | 0.0 " in text
    assert "4 episodes a row, the same scenes in each, from seed 7000000 on" in text
    assert json.loads((tmp_path / "runs" / "delays.json").read_text())["rows"][1]["success"]["successes"] == 1
    with Image.open(tmp_path / "runs" / "delays.png") as picture:
        assert picture.format == "PNG"


def test_what_can_not_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"delays must be from 0 to replan = 4 steps, got \(0, 5\)"):
        delays.DelayEvaluation(delays=(0, 5))
    assert delays.main(["--archive", str(tmp_path / "none.mar")]) == 1
    assert "error: " in capsys.readouterr().err
